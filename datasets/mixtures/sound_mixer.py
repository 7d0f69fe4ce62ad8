"""Mixtures of recordings with articulation cues, made in batches on the training device.

Every random number is drawn on the CPU by the generator of a seed, so that a seed makes the same
mixtures on every device, but for rounding; and only small tensors travel to the device.

Shapes: N mixtures, K people with a cue, S samples, T frames of 40 ms, M rendered recordings, C
channels of a cue.
"""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor

from cavmae.common.errors import UsageError
from cavmae.datasets.mixtures.cue_spoiling import draw_defects, spoil
from cavmae.datasets.mixtures.sound_filters import SoundFilters, on_device
from cavmae.datasets.mixtures.sound_settings import SoundSettings
from cavmae.datasets.mixtures.speech_bank import CUE_CHANNELS, CUE_SCALE, RecordingBank
from cavmae.datasets.mixtures.time_stretch import stretch
from cavmae.datasets.mixtures.voice_codecs import apply_codecs, draw_codecs
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.datasets.synthetic.articulation import STEP

FRAME = SAMPLE_RATE // VIDEO_RATE  # samples of 40 ms
SPEED_STEPS = 40  # of the speed 1: resampled voices differ in steps of 2.5 %
COARSE = 4  # steps: voices with a pitch of their own differ by 10 %, so that few batches are made
RESAMPLED = 64  # samples, of whose multiples such voices are: lengths that are fast to transform
AUGMENTATION_SEED = 0x5EED  # of the numbers that mixtures without such augmentation do without
MARGIN = 1280  # samples on either side of a crop, which take the wrap-around of its resampling
CANDIDATES = 8  # recordings among which one of another speaker is chosen
REFERENCE_DB = -20.0  # RMS of a voice at 0 dB
EDGE = SAMPLE_RATE // 100  # samples of a fade
QUIETEST = 1e-3  # RMS by which a mixture is divided at least
SHORTEST_PART = 0.25  # of a mixture, in which a voice that begins or ends is heard


class SoundBatch(NamedTuple):
    """Mixtures with an RMS of 1, and what they consist of.

    Attributes:
        mixture: [N, S], the sum of voices and residual.
        voices: [N, K, S], each person's voice; zeros for silent people.
        residual: [N, S], noise and voices without a cue.
        cues: [N, K, T, C].
        visible: bool [N, K, T], False in gaps of the cues: a hidden mouth is known to be hidden.
        speakers: int64 [N, K] on the CPU, of each voice, an index of the bank's names.
    """

    mixture: Tensor
    voices: Tensor
    residual: Tensor
    cues: Tensor
    visible: Tensor
    speakers: Tensor


class _Crops(NamedTuple):
    """Crops of recordings, on the CPU: recording, first sample, speed, pitch, int64 [N, V]."""

    recordings: Tensor
    starts: Tensor
    speed_steps: Tensor
    pitch_steps: Tensor


class SoundMixer:
    """Mixtures of banks of recordings.

    Args:
        speech: bank of speech of at least as many speakers as voices in a mixture.
        noise: bank of noise; None: mixtures without noise.
        settings: distribution of mixtures.

    Raises:
        UsageError: too few speakers.
    """

    def __init__(self, speech: RecordingBank, noise: RecordingBank | None, settings: SoundSettings):
        if len(speech.names) <= settings.voices:
            raise UsageError(
                f"The speech is of {len(speech.names)} speakers, but mixtures need "
                f"{settings.voices + 1}: name folders with more."
            )
        self.speech, self.noise, self.settings = speech, noise, settings
        self.filters = SoundFilters(settings)
        self._device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        """Moves the banks to a device."""
        if self._device == device:
            return
        self.speech = self.speech.to(device)
        self.noise = None if self.noise is None else self.noise.to(device)
        self.filters.to(device)
        self._device = device

    def at(self, progress: float) -> "SoundMixer":
        """Mixer of the same banks with the distribution at a fraction of training."""
        eased = copy.copy(self)
        eased.settings = self.settings.at(progress)
        eased.filters = copy.copy(self.filters)
        eased.filters.settings = eased.settings
        return eased

    @torch.no_grad()
    def mix(self, seed: int, count: int) -> SoundBatch:
        """The ``count`` mixtures of a seed, on the device of the banks."""
        settings, device = self.settings, self._device
        n, k, s = count, settings.voices, settings.samples
        rng = torch.Generator().manual_seed(seed)
        augmentation_rng = torch.Generator().manual_seed(seed ^ AUGMENTATION_SEED)

        def drawn(probability: float, *shape: int) -> Tensor:
            return torch.rand(shape, generator=rng) < probability

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(shape, generator=rng)

        crops = self._draw_speech(n, k + 1, rng, augmentation_rng)
        silent = drawn(settings.silent_prob, n, k)
        moving = drawn(settings.moving_prob, n, k)
        audible = torch.cat([~silent, drawn(settings.off_screen_prob, n, 1)], 1)
        levels = uniform(-settings.level_db, settings.level_db, n, k + 1)
        first, last = self._draw_parts(n, k + 1, rng)
        filters = self.filters.draw(n, k + 1, rng)
        codecs = draw_codecs(settings, n, k + 1, augmentation_rng)

        rows = audible.flatten().nonzero()[:, 0]
        waves = self._render(self.speech, crops, rows, REFERENCE_DB + levels)
        waves = apply_codecs(self.filters.apply(waves, filters, rows), codecs, rows)
        waves *= _gate(first.flatten()[rows], last.flatten()[rows], s, 1, device)
        voices = torch.zeros(n * (k + 1), s, device=device)
        voices[on_device(rows, device)] = waves
        voices = voices.view(n, k + 1, s)
        residual = voices[:, -1] + self._draw_noise(n, rng)
        voices = voices[:, :-1]
        mixture = voices.sum(1) + residual
        scale = mixture.square().mean(1, keepdim=True).sqrt().clamp(min=QUIETEST)

        defects = draw_defects(settings, n * k, s // FRAME, CUE_CHANNELS, rng)
        cues = self._sample_cues(crops, defects.shift.view(n, k))
        mouth = _gate(first[:, :k].flatten(), last[:, :k].flatten(), s // FRAME, FRAME, device)
        mouth = mouth * on_device((~silent).flatten()[:, None], device)
        mouth = torch.where(on_device(moving.flatten()[:, None], device), 1.0, mouth)
        defects = type(defects)(*(on_device(value, device) for value in defects))
        cues = spoil(cues * mouth[..., None], defects).view(n, k, -1, CUE_CHANNELS)
        visible = (defects.kept > 0).view(n, k, -1)
        speakers = self.speech.speakers[crops.recordings[:, :k]]
        mixture, voices, residual = mixture / scale, voices / scale[..., None], residual / scale
        return SoundBatch(mixture, voices, residual, cues, visible, speakers)

    def _draw_speech(
        self, n: int, v: int, rng: torch.Generator, augmentation_rng: torch.Generator
    ) -> _Crops:
        """Crops of recordings of different speakers in each mixture, long ones more often."""
        bank = self.speech
        candidates = _draw_recordings(bank, (n, v, CANDIDATES), rng)
        speakers = bank.speakers[candidates]
        chosen = candidates[:, :, 0].clone()
        for index in range(1, v):
            taken = bank.speakers[chosen[:, :index]]  # [N, index]
            other = (speakers[:, index, :, None] != taken[:, None]).all(-1)  # [N, CANDIDATES]
            first = other.int().argmax(1)
            # A bank of few speakers: any recording of a speaker that is not in the mixture.
            for row in (~other.any(1)).nonzero()[:, 0].tolist():
                left = (bank.speakers[:, None] != taken[row]).all(1).nonzero()[:, 0]
                pick = int(torch.randint(len(left), (1,), generator=rng))
                candidates[row, index, 0], first[row] = left[pick], 0
            chosen[:, index] = candidates[:, index].gather(1, first[:, None])[:, 0]
        slowest, fastest = _limits(self.settings.max_speed, 1)
        steps = torch.randint(slowest, fastest + 1, (n, v), generator=rng)
        resampled = torch.rand(n, v, generator=rng) < self.settings.speed_prob
        steps = torch.where(resampled, steps, SPEED_STEPS)
        speeds, pitches = self._draw_pitches(steps, augmentation_rng)
        return _Crops(chosen, self._draw_starts(bank, chosen, speeds, rng), speeds, pitches)

    def _draw_pitches(self, steps: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Speeds and pitches of voices [N, V], which are the same but for a share of them."""
        apart = torch.rand(steps.shape, generator=rng) < self.settings.pitch_prob
        lowest, highest = _limits(self.settings.max_pitch, COARSE)
        pitches = torch.randint(lowest, highest + 1, steps.shape, generator=rng) * COARSE
        slowest, fastest = _limits(self.settings.max_speed, COARSE)
        coarse = (steps / COARSE).round().long().clamp(slowest, fastest) * COARSE
        return torch.where(apart, coarse, steps), torch.where(apart, pitches, steps)

    def _draw_starts(
        self, bank: RecordingBank, recordings: Tensor, steps: Tensor, rng: torch.Generator
    ) -> Tensor:
        """First sample of each crop; a shorter recording lies somewhere in its crop."""
        slack = bank.lengths[recordings] - self.settings.samples * steps // SPEED_STEPS
        place = torch.rand(recordings.shape, generator=rng, dtype=torch.float64)
        return (slack * place).round().long()

    def _draw_parts(self, n: int, v: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """First and last sample of each voice: [N, V]; most talk all the time."""
        s = self.settings.samples
        partial = torch.rand(n, 1, generator=rng) < self.settings.partial_prob
        begins, ends = torch.rand(2, n, v, generator=rng) < 0.5
        length = SHORTEST_PART + (1 - SHORTEST_PART) * torch.rand(n, v, generator=rng)
        place = torch.rand(n, v, generator=rng)
        low = (1 - length) * torch.where(ends, place, 1.0) * (partial & begins)
        high = torch.where(partial & ends, torch.minimum(low + length, torch.tensor(1.0)), 1.0)
        first = torch.where(low > 0, low * s, -float(EDGE))
        last = torch.where(high < 1, high * s, float(s + EDGE))
        return first, last

    def _draw_noise(self, n: int, rng: torch.Generator) -> Tensor:
        """Noise of mixtures [N, S], zeros where there is none."""
        settings, device = self.settings, self._device
        noise = torch.zeros(n, settings.samples, device=device)
        noisy = torch.rand(n, 1, generator=rng) < settings.noise_prob
        ratio = torch.rand(n, 1, generator=rng)
        ratio = settings.min_noise_db + (settings.max_noise_db - settings.min_noise_db) * ratio
        if self.noise is None:
            return noise
        recordings = _draw_recordings(self.noise, (n, 1), rng)
        steps = torch.full((n, 1), SPEED_STEPS)
        starts = self._draw_starts(self.noise, recordings, steps, rng)
        rows = noisy.flatten().nonzero()[:, 0]
        crops = _Crops(recordings, starts, steps, steps)
        noise[on_device(rows, device)] = self._render(self.noise, crops, rows, REFERENCE_DB - ratio)
        return noise

    def _render(self, bank: RecordingBank, crops: _Crops, rows: Tensor, levels: Tensor) -> Tensor:
        """Resampled crops [M, S] of the rows of flattened crops, at levels in dB of full scale."""
        settings = self.settings
        recordings = crops.recordings.flatten()[rows]
        gains = 10 ** ((levels.flatten()[rows] - bank.levels[recordings]) / 20) / 32767
        starts = crops.starts.flatten()[rows]
        steps = torch.stack([crops.speed_steps, crops.pitch_steps], -1).flatten(0, 1)[rows]
        waves = torch.zeros(len(rows), settings.samples, device=self._device)
        total = settings.samples + 2 * MARGIN
        for speed, pitch in steps.unique(dim=0).tolist():
            chosen = (steps == torch.tensor([speed, pitch])).all(1).nonzero()[:, 0]
            first = starts[chosen] - MARGIN * speed // SPEED_STEPS
            crop = self._crop(bank, recordings[chosen], first, total * speed // SPEED_STEPS)
            if speed == pitch:
                crop = _resample(crop, total)
            else:
                resampled = round(total * speed / pitch / RESAMPLED) * RESAMPLED
                crop = stretch(_resample(crop, resampled), total)
            waves[on_device(chosen, self._device)] = crop[:, MARGIN : MARGIN + settings.samples]
        return waves * on_device(gains[:, None], self._device)

    def _crop(self, bank: RecordingBank, recordings: Tensor, starts: Tensor, length: int) -> Tensor:
        """Crops [M, length] of recordings, zeros before and behind them."""
        device = self._device
        index = torch.arange(length, device=device) + on_device(starts[:, None], device)
        lengths = on_device(bank.lengths[recordings][:, None], device)
        offsets = on_device(bank.starts[recordings][:, None], device)
        samples = bank.samples[index.clamp(min=0).minimum(lengths - 1) + offsets]
        return samples * ((index >= 0) & (index < lengths)).float()

    def _sample_cues(self, crops: _Crops, shift: Tensor) -> Tensor:
        """Cues [N K, T, C] at the centers of frames, each ``shift`` [N, K] frames late."""
        bank, device = self.speech, self._device
        k = shift.shape[1]
        recordings = crops.recordings[:, :k].flatten()
        frames = torch.arange(self.settings.samples // FRAME) + 0.5
        speeds = crops.speed_steps[:, :k].flatten()[:, None].double() / SPEED_STEPS
        time = (frames - shift.flatten()[:, None]) * FRAME * speeds
        position = (time + crops.starts[:, :k].flatten()[:, None]) / STEP - 0.5  # [N K, T]
        steps = (bank.lengths[recordings] // STEP)[:, None]
        whole = position.floor()
        part = on_device((position - whole).float(), device)[..., None]
        offsets = (bank.starts[recordings] // STEP)[:, None]
        ends = []
        for step in (whole.long(), whole.long() + 1):
            inside = on_device((step >= 0) & (step < steps), device)
            index = on_device(step.clamp(min=0).minimum(steps - 1) + offsets, device)
            ends.append(bank.cues[index] * inside[..., None] / CUE_SCALE)
        return ends[0] * (1 - part) + ends[1] * part


def _limits(largest: float, step: int) -> tuple[int, int]:
    """Steps of the smallest and of the largest factor, in ``step`` / SPEED_STEPS."""
    unit = SPEED_STEPS / step
    return math.ceil(unit / largest), math.floor(unit * largest)


def _resample(waves: Tensor, length: int) -> Tensor:
    """Waves [M, length], exactly: the spectrum is cut off, or filled up with zeros."""
    if waves.shape[1] == length:
        return waves
    return torch.fft.irfft(torch.fft.rfft(waves), length) * (length / waves.shape[1])


def _draw_recordings(bank: RecordingBank, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Recordings that a random sample of the bank falls into."""
    place = torch.rand(shape, generator=rng, dtype=torch.float64) * len(bank.samples)
    return torch.searchsorted(bank.starts, place.long(), right=True) - 1


def _gate(first: Tensor, last: Tensor, count: int, step: int, device: torch.device) -> Tensor:
    """1 from ``first`` to ``last`` [M], with fades, at samples 0, step, ...: [M, count]."""
    at = (torch.arange(count, device=device) + 0.5) * step
    rise = (at - on_device(first, device)[:, None]) / EDGE
    fall = (on_device(last, device)[:, None] - at) / EDGE
    return rise.minimum(fall).clamp(0, 1)
