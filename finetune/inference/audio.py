"""Audio files of voices: WAV output at any rate, loudness, and detection of speech spans."""

import dataclasses
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from cavmae.datasets.media.playback import SAMPLES
from cavmae.datasets.media.writing import Wave
from cavmae.datasets.stream.features import SAMPLE_RATE, resample
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.finetune.inference.settings import Thresholds

BLOCK = 10 * SAMPLE_RATE  # samples processed at a time
MARGIN = 0.16  # s around a block while it is resampled; whole samples at all usual rates
CEILING = 0.99  # of the largest sample

Span = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class RawWave:
    """float32 samples in a file, read in slices; silent beyond the end of the file."""

    path: Path
    samples: int

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, part: slice) -> np.ndarray:
        first, last, _ = part.indices(self.samples)
        samples = np.zeros(max(0, last - first), dtype=np.float32)
        with self.path.open("rb") as file:
            file.seek(first * 4)
            stored = np.frombuffer(file.read(samples.nbytes), np.float32)
        samples[: len(stored)] = stored
        return samples


def blocks(samples: int) -> Iterator[slice]:
    """Yield slices of at most :data:`BLOCK` samples that cover a wave."""
    for first in range(0, samples, BLOCK):
        yield slice(first, min(first + BLOCK, samples))


def peak_of(wave: Wave, rate: int = SAMPLE_RATE) -> float:
    """The largest absolute sample of a wave at a sample rate; 0 for an empty one.

    Between the samples of a lower rate a wave may be larger than at them.
    """
    parts = (_resampled(wave, part, 1.0, rate) for part in blocks(len(wave)))
    return max((float(np.abs(samples).max(initial=0.0)) for samples in parts), default=0.0)


class _ErrorKeepingFile(io.RawIOBase):
    """File object for libsndfile that keeps write errors, since libsndfile hides their cause."""

    def __init__(self, path: Path):
        self._file = path.open("wb", buffering=0)
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        try:
            while rest:  # a full disk takes a part first
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.error = self.error or error
        return len(data) - len(rest)

    def seek(self, place: int, whence: int = 0) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()


def write_wav(path: Path, wave: Wave, gain: float, rate: int) -> None:
    """Write a 16-bit mono WAV file of exactly the length of a wave.

    Args:
        wave: float32 [samples] at 16 kHz.
        gain: factor that all samples are multiplied by.
        rate: sample rate of the file in Hz.

    Raises:
        OSError: the file cannot be written.
    """
    container = "RF64" if len(wave) / SAMPLE_RATE * rate * 2 > 4e9 else "WAV"
    with _ErrorKeepingFile(path) as raw:
        try:
            with soundfile.SoundFile(
                raw, "w", samplerate=rate, channels=1, subtype="PCM_16", format=container
            ) as file:
                for part in blocks(len(wave)):
                    samples = _resampled(wave, part, gain, rate)
                    pcm = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
                    file.write(pcm)
        except (soundfile.SoundFileError, AssertionError):
            if raw.error is None:
                raise
        if raw.error is not None:
            raise raw.error


def read_wave(wave: Wave, rate: int) -> np.ndarray:
    """Read a whole wave at a sample rate: float32 [samples]."""
    parts = [_resampled(wave, part, 1.0, rate) for part in blocks(len(wave))]
    return np.concatenate(parts)


def _resampled(wave: Wave, part: slice, gain: float, rate: int) -> np.ndarray:
    """Slice of a wave at another sample rate: float32 [samples]."""
    margin = round(MARGIN * SAMPLE_RATE)
    first, last = max(0, part.start - margin), min(len(wave), part.stop + margin)
    samples = wave[first:last] * np.float32(gain)
    if rate != SAMPLE_RATE:
        samples = resample(samples, SAMPLE_RATE, rate)
        begin = round((part.start - first) * rate / SAMPLE_RATE)
        until = round(part.stop * rate / SAMPLE_RATE) - round(part.start * rate / SAMPLE_RATE)
        samples = samples[begin : begin + until]
        samples = np.pad(samples, (0, until - len(samples)))
    else:
        samples = samples[part.start - first : part.stop - first]
    return samples


def loudness(wave: Wave) -> np.ndarray:
    """RMS level of each frame of 40 ms in dB of full scale: float32 [frames]."""
    levels = []
    for part in blocks(len(wave)):
        block = wave[part]
        power = np.square(np.pad(block, (0, -len(block) % SAMPLES))).reshape(-1, SAMPLES).mean(1)
        levels.append(10 * np.log10(power + 1e-12))
    return np.concatenate(levels).astype(np.float32)


def speech_spans(
    voice: np.ndarray, mixture: np.ndarray, activity_prob: np.ndarray, thresholds: Thresholds
) -> list[Span]:
    """Speech spans of a voice, in seconds.

    Args:
        voice: float32 [frames], :func:`loudness` of the voice.
        mixture: float32 [frames], :func:`loudness` of the mixture.
        activity_prob: float32 [frames], probability that the voice is active.
        thresholds: of speech.
    """
    likely = activity_prob > thresholds.min_activity_prob
    if not likely.any():
        return []
    # A rare voice is loud in few frames, so the percentile is over its likely frames alone.
    loud_level = float(np.percentile(voice[likely], 95)) + thresholds.min_voice_db
    audible_level = float(np.percentile(mixture, 95)) + thresholds.min_mixture_db
    min_level = max(loud_level, audible_level, thresholds.min_level_db)
    return spans_of((voice > min_level) & likely, thresholds)


def spans_of(active: np.ndarray, thresholds: Thresholds) -> list[Span]:
    """Spans of true frames, in seconds; short gaps are closed, short spans dropped."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], active.astype(np.int8), [0]])))
    merged: list[list[int]] = []
    for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if merged and first - merged[-1][1] <= thresholds.max_pause * VIDEO_RATE:
            merged[-1][1] = last
        else:
            merged.append([first, last])
    return [
        (a / VIDEO_RATE, b / VIDEO_RATE)
        for a, b in merged
        if b - a >= thresholds.min_span * VIDEO_RATE
    ]


def write_residual(mixture: Wave, voices: Sequence[Wave], path: Path) -> RawWave:
    """Write the residual, the mixture minus all voices, to a file of raw float32 samples."""
    with path.open("wb") as file:
        for part in blocks(len(mixture)):
            residual = mixture[part].copy()
            for voice in voices:
                residual -= voice[part]
            file.write(residual.tobytes())
    return RawWave(path, len(mixture))
