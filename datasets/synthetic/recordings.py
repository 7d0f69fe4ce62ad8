"""Speech recordings: their files, readers, levels and segments."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cavmae.common.errors import UsageError
from cavmae.common.folders import search
from cavmae.datasets.media.audio_files import MAGIC, AudioFileError, read_audio
from cavmae.datasets.stream.features import SAMPLE_RATE, resample

ENDINGS = (".flac", ".wav", ".ogg", ".opus", ".mp3")
SHORTEST = 1.0  # s: shorter speech is no utterance
QUIETEST = -80.0  # dB: a quieter recording is silent
HOP = SAMPLE_RATE // 50  # samples over which levels are taken
ACTIVE_BELOW_LOUDEST = 30.0  # dB
PAUSE_BELOW = 22.0  # dB below the level of speech


@dataclasses.dataclass(frozen=True)
class SpeechRecording:
    """One file of one reader.

    Attributes:
        path: relative to the folder.
        bytes: its size, by which an altered file is noticed.
        start: of the first audible speech, in seconds.
        seconds: from there to the last audible speech.
        level_db: RMS of the active parts.
    """

    path: str
    bytes: int
    start: float
    seconds: float
    level_db: float


def list_recordings(folder: Path) -> Iterator[tuple[str, str]]:
    """List (reader, path within the folder) of every audio file, in the order of their paths.

    Raises:
        UsageError: no such folder, or no audio file in it.
    """
    if not folder.is_dir():
        raise UsageError(f"--speech {folder} is not a folder.")
    files = search(folder, ENDINGS)
    files.log_unused("recordings")
    paths = sorted(path for path in files.files if not path.name.startswith("."))
    if not paths:
        raise UsageError(
            f"--speech {folder} has no recordings ({', '.join(ENDINGS)}) in it; "
            "convert them to FLAC or name another folder."
        )
    for path in paths:
        inside = path.relative_to(folder)
        yield reader_of(inside), inside.as_posix()


def reader_of(path: Path) -> str:
    """Reader of a recording: its name up to the first ``-`` or ``_``, else its folder.

    Args:
        path: within the folder of all recordings.
    """
    parts = re.split(r"[-_]", path.stem, maxsplit=1)
    name = parts[0] if len(parts) > 1 and parts[0] else (path.parent.name or path.stem)
    return name.replace("+", "_")  # "+" joins the speakers of a clip in tables


def read(path: Path, start: float = 0.0, seconds: float | None = None) -> np.ndarray:
    """Read a segment of a recording: float32 [samples] at 16 kHz, mono.

    Raises:
        AudioFileError: the file does not decode.
    """
    samples, rate = read_audio(path, MAGIC, start, seconds)
    mono = samples.mean(axis=1)
    return resample(np.ascontiguousarray(mono), rate)


def inspect_recording(folder: Path, name: str) -> SpeechRecording | tuple[str, str]:
    """Measure a recording; returns (reason, detail) if it cannot be used."""
    path = folder / name
    try:
        waveform = read(path)
    except AudioFileError as error:
        return "decode_error", str(error)
    level = active_level(waveform)
    if len(waveform) and level < QUIETEST:
        return "silent", "nothing to hear"
    times = np.flatnonzero(levels(waveform, HOP) > level - PAUSE_BELOW) * HOP / SAMPLE_RATE
    seconds = float(times[-1] - times[0]) + HOP / SAMPLE_RATE if len(times) else 0.0
    if seconds < SHORTEST:
        return "too_short", f"{seconds:.2f} s of speech, needed are {SHORTEST:g} s"
    return SpeechRecording(name, path.stat().st_size, float(times[0]), seconds, round(level, 2))


def levels(waveform: np.ndarray, hop: int) -> np.ndarray:
    """Level of each block of ``hop`` samples in dB of full scale, float [len // hop]."""
    blocks = waveform[: len(waveform) // hop * hop].reshape(-1, hop)
    power = np.mean(blocks.astype(np.float64) ** 2, axis=1)
    level: np.ndarray = 10 * np.log10(power + 1e-12)
    return level


def active_level(waveform: np.ndarray) -> float:
    """RMS of the blocks within 30 dB of the loudest, in dB; -120 for silence."""
    level = levels(waveform, HOP)
    if len(level) == 0 or level.max() < QUIETEST:
        return -120.0
    active = level[level > level.max() - ACTIVE_BELOW_LOUDEST]
    return float(10 * np.log10(np.mean(10 ** (active / 10))))
