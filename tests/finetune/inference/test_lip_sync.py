"""Sound and pictures that are apart: what lips say of it, and where results lie in time."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cavmae.common.errors import UsageError
from cavmae.datasets.synthetic.articulation import OPENING, at_frames, from_audio
from cavmae.datasets.synthetic.recordings import active_level
from cavmae.finetune.inference.detections import DetectedPerson
from cavmae.finetune.inference.lip_sync import LipSync
from cavmae.finetune.inference.mask_tracks import MaskTrack
from cavmae.finetune.inference.predictor import PreparedMixture
from cavmae.finetune.inference.progress import ignore_progress
from cavmae.finetune.inference.separation import SeparatedRecording, separate_media
from cavmae.finetune.inference.settings import SeparateSettings
from cavmae.finetune.inference.sources import ArraySource
from cavmae.finetune.inference.views import WindowView
from tests.finetune.inference.predictors import make_predictor

SAMPLES = 640  # of a frame
LENGTH = 64


def speech(frames: int, seed: int) -> np.ndarray:
    """Syllables of random lengths and levels, of a voice with many harmonics."""
    rng = np.random.default_rng(seed)
    level = np.repeat(rng.random(frames) * (rng.random(frames) > 0.3), rng.integers(2, 6, frames))
    level = np.convolve(level[:frames], [0.25, 0.5, 0.25], "same")
    time = np.arange(frames * SAMPLES) / 16_000
    voice = sum(np.sin(2 * np.pi * 140 * k * time + rng.random()) / k for k in range(1, 12))
    loud = np.interp(np.arange(len(time)) / SAMPLES, np.arange(frames) + 0.5, level)
    return (0.2 * loud * voice).astype(np.float32)


def openings(wave: np.ndarray) -> np.ndarray:
    """Mouth that goes with a voice."""
    times = (np.arange(len(wave) // SAMPLES) + 0.5) / 25
    return at_frames(from_audio(wave, active_level(wave)), times)[:, OPENING]


def shifted(wave: np.ndarray, samples: int) -> np.ndarray:
    """Sound that is ahead of its pictures by some samples, of the same length."""
    rolled = np.roll(wave, -samples)
    if samples > 0:
        rolled[-samples:] = 0
    elif samples < 0:
        rolled[:-samples] = 0
    return rolled


def measured(lips: np.ndarray, wave: np.ndarray, hop: float = 0.5) -> LipSync:
    sync = LipSync(LENGTH, hop)
    for start in range(0, len(lips) - LENGTH + 1, round(hop * LENGTH)):
        sync.add(lips[start : start + LENGTH], wave[start * SAMPLES : (start + LENGTH) * SAMPLES])
    return sync


@settings(max_examples=40)
@given(lead=st.integers(-7 * SAMPLES, 7 * SAMPLES), seed=st.integers(0, 50))
def test_the_lead_is_found(lead: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    wave = speech(200, seed)
    lips = openings(wave) + 0.15 * rng.normal(size=200)  # as imprecisely as lips are read
    sync = measured(lips.astype(np.float32), shifted(wave, lead))
    assert abs(sync.lead() - lead) <= 240 or (sync.lead() == 0 and abs(lead) < 800)


@pytest.mark.parametrize("lead", [-12, -9, 9, 12])
def test_beyond_the_reach_nothing_is_said(lead: int) -> None:
    wave = speech(200, 5)
    assert measured(openings(wave), shifted(wave, lead * SAMPLES)).lead() == 0


def test_lips_of_somebody_else_say_nothing() -> None:
    taken = [measured(openings(speech(130, n)), speech(130, n + 99)).lead() for n in range(60)]
    assert sum(lead != 0 for lead in taken) <= 3  # of slow and regular voices; real ones: 2 of 300


def test_lips_that_do_not_move_say_nothing() -> None:
    wave = speech(200, 1)
    for lips in (np.zeros(200, np.float32), np.full(200, 0.4, np.float32)):
        assert measured(lips, wave).lead() == 0
    assert measured(openings(wave), np.zeros_like(wave)).lead() == 0
    assert LipSync(LENGTH, 0.5).lead() == 0


def test_early_looks_are_rare_and_take_only_what_is_clear() -> None:
    wave = speech(1200, 1)
    lips = openings(wave)
    looks = []
    sync = LipSync(LENGTH, 1.0)
    for number in range(1, 19):
        part = slice((number - 1) * LENGTH, number * LENGTH)
        sync.add(lips[part], shifted(wave, 1280)[part.start * SAMPLES : part.stop * SAMPLES])
        sync.add(np.zeros_like(lips[part]), wave[: LENGTH * SAMPLES])  # which do not count
        sync.add(lips[part], np.zeros_like(wave[: LENGTH * SAMPLES]))
        if sync.early_lead():
            looks.append(number)
    assert looks == [6, 12]
    vague = lips + 0.45 * np.random.default_rng(0).normal(size=1200).astype(np.float32)
    sync = measured(vague[:200], shifted(wave, 1280)[: 200 * SAMPLES], hop=0.25)
    assert 0.65 < sync.correlations.max() * np.sqrt(1 + 0.25 * 8) < 1
    assert sync.early_lead() == 0
    assert sync.lead() == pytest.approx(1280, abs=320)


@pytest.mark.parametrize("hop", [0.1, 0.25, 0.5, 0.75])
def test_one_window_is_one_whatever_the_step(hop: float) -> None:
    wave = speech(LENGTH, 2)
    assert measured(openings(wave), shifted(wave, 1920), hop).lead() == pytest.approx(1920, abs=160)
    assert measured(openings(wave), wave, hop).lead() == 0  # lips that agree perfectly


class Lips:
    """A predictor of one person, whose frames tell their own number by their grey.

    The person has all of the sound, stands further right in each frame, and is said to speak in the
    second of two seconds *of the sound*.
    """

    def __init__(self, lips: np.ndarray, lead: int):
        real = make_predictor()
        self.config, self.keys, self.thresholds = real.config, real.keys, real.thresholds
        self.prepare, self.sizes = real.prepare, real.sizes
        self.device, self.is_large = real.device, real.is_large
        self.encode_key_views, self.class_number = real.encode_key_views, real.class_number
        self.lips, self.lead, self.looks = lips, lead, 0

    def predict(
        self, view: WindowView, mixture: PreparedMixture, *_: object
    ) -> list[DetectedPerson]:
        self.looks += 1
        numbers = view.motion.flatten(1).amax(1).numpy()  # grey between black bars
        masks = np.zeros((len(self.keys), 32, 200), np.uint8)
        for row, key in enumerate(self.keys):
            masks[row, 4:28, numbers[key] : numbers[key] + 20] = 255
        # Frames that stay after the end have a sound of their own.
        steps = np.arange(len(numbers))
        first = int(numbers[0]) if numbers[0] else int(numbers[-1]) - int(steps[-1])
        active = ((first + steps - round(self.lead / SAMPLES)) // 25 % 2 == 1).astype(np.float32)
        return [
            DetectedPerson(
                0, 0.9, active, (0.0, 0.0, 1.0, 1.0), masks, mixture.wave[0].numpy(),
                np.zeros((len(self.keys), 1, 1, 64), np.float32), self.lips[numbers],
            )
        ]  # fmt: skip


FRAMES = 150


def separated(
    folder: Path, lead: int, options: SeparateSettings
) -> tuple[SeparatedRecording, Lips, np.ndarray]:
    in_step = speech(FRAMES, 3)
    predictor = Lips(openings(in_step), lead)
    frames = np.broadcast_to(
        np.arange(FRAMES, dtype=np.uint8)[:, None, None, None], (FRAMES, 32, 200, 3)
    )
    frames = np.ascontiguousarray(frames)
    wave = shifted(in_step, lead)
    media = ArraySource(frames, wave, 16_000, 25.0, (32, 200))
    folder.mkdir(exist_ok=True)
    result = separate_media(
        predictor,
        "made",
        media,
        0,
        folder,
        options,
        None,
        ignore_progress,  # type: ignore[arg-type]
    )
    return result, predictor, wave


@pytest.mark.parametrize("lead", [-1920, -1440, 960, 1280, 1920])
def test_results_lie_where_sound_and_pictures_are(
    tmp_path: Path, lead: int, caplog: pytest.LogCaptureFixture
) -> None:
    options = SeparateSettings(second_look=False)
    result, predictor, wave = separated(tmp_path / "auto", lead, options)
    assert result.recording.sound_lead == lead
    assert f"{abs(lead) / 16000:.2f} s {'ahead of' if lead > 0 else 'behind'} its" in caplog.text
    windows = len(result.recording.starts)
    assert windows < predictor.looks <= 2 * windows + 1
    np.testing.assert_allclose(result.mixture[:], wave, atol=1e-6)
    voice, residual = result.voices[1][:], result.residual[:]
    np.testing.assert_allclose(voice + residual, wave, atol=1e-6)
    np.testing.assert_allclose(voice, wave, atol=1e-6)
    # Masks are those of the pictures.
    track = MaskTrack(result.recording, result.people[1])
    for frame in (20, 75, 120):
        region = track.at(frame, (32, 200))
        assert region is not None
        columns = region.left + np.flatnonzero(region.mask.any(0))
        assert columns[0] + columns[-1] == pytest.approx(2 * frame + 19, abs=8)
    # Speech is where it is heard.
    for begin, end in result.spans[1]:
        assert begin % 2 > 0.9
        assert end % 2 in (0.0,) or end % 2 > 0.9
    given, single, _ = separated(
        tmp_path / "given", lead, SeparateSettings(second_look=False, av_offset=lead / 16_000)
    )
    assert single.looks == windows
    np.testing.assert_array_equal(given.voices[1][:], voice)


def test_an_offset_of_0_takes_them_as_they_are(tmp_path: Path) -> None:
    options = SeparateSettings(second_look=False, av_offset=0.0)
    result, predictor, wave = separated(tmp_path, 1920, options)
    assert result.recording.sound_lead == 0
    assert predictor.looks == len(result.recording.starts)
    np.testing.assert_allclose(result.voices[1][:], wave, atol=1e-6)


def test_an_offset_of_more_than_half_a_window(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--av-offset 5\.0 is more than half of the 0\.64 s"):
        separated(tmp_path, 0, SeparateSettings(av_offset=5.0))


@pytest.mark.parametrize("offset", [None, "Auto", float("nan"), float("inf")])
def test_an_offset_that_is_none(offset: object) -> None:
    with pytest.raises(UsageError, match="is neither seconds nor auto"):
        SeparateSettings(av_offset=offset)  # type: ignore[arg-type]
