"""Speech recordings: which there are, who reads them, and stretches of them."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cavmae.common.errors import UsageError
from cavmae.common.folders import search
from cavmae.datasets.media.audio_files import MAGIC, SoundError, read_sound
from cavmae.datasets.stream.features import SAMPLE_RATE, resample

ENDINGS = (".flac", ".wav", ".ogg", ".opus", ".mp3")
SHORTEST = 1.0  # s: what is shorter is no utterance
QUIETEST = -80.0  # dB: below it there is nothing to hear
HOP = SAMPLE_RATE // 50  # samples over which levels are taken
ACTIVE_BELOW_LOUDEST = 30.0  # dB
PAUSE_BELOW = 22.0  # dB below the level of speech


@dataclasses.dataclass(frozen=True)
class SpeechRecording:
    """One file of one reader.

    Attributes:
        path: relative to the folder.
        bytes: its size, by which an altered file is noticed.
        start: when the first sound is heard, in seconds.
        seconds: from there to the last sound.
        level_db: RMS while there is something to hear.
    """

    path: str
    bytes: int
    start: float
    seconds: float
    level_db: float


def list_recordings(folder: Path) -> Iterator[tuple[str, str]]:
    """(reader, path within the folder) of every sound file, in the order of their paths.

    Raises:
        UsageError: no such folder, or no sound in it.
    """
    if not folder.is_dir():
        raise UsageError(f"--speech {folder} is not a folder.")
    found = search(folder, ENDINGS)
    found.log_unused("recordings")
    paths = sorted(path for path in found.files if not path.name.startswith("."))
    if not paths:
        raise UsageError(
            f"--speech {folder} has no recordings ({', '.join(ENDINGS)}) in it; "
            "convert them to FLAC or name another folder."
        )
    for path in paths:
        inside = path.relative_to(folder)
        yield reader_of(inside), inside.as_posix()


def reader_of(path: Path) -> str:
    """A recording's reader: its name up to the first ``-`` or ``_``, else the folder it is in.

    Args:
        path: within the folder of all recordings.
    """
    parts = re.split(r"[-_]", path.stem, maxsplit=1)
    name = parts[0] if len(parts) > 1 and parts[0] else (path.parent.name or path.stem)
    return name.replace("+", "_")  # tables join the speakers of a clip by it


def read(path: Path, start: float = 0.0, seconds: float | None = None) -> np.ndarray:
    """A stretch of a recording: float32 [samples] at 16 kHz, mono.

    Raises:
        SoundError: the file does not decode.
    """
    samples, rate = read_sound(path, MAGIC, start, seconds)
    sound = samples.mean(axis=1)
    return resample(np.ascontiguousarray(sound), rate)


def inspect_recording(folder: Path, name: str) -> SpeechRecording | tuple[str, str]:
    """What a file of a folder holds, or why it cannot be used: (reason, detail)."""
    path = folder / name
    try:
        sound = read(path)
    except SoundError as error:
        return "decode_error", str(error)
    level = active_level(sound)
    if len(sound) and level < QUIETEST:
        return "silent", "nothing to hear"
    heard = np.flatnonzero(levels(sound, HOP) > level - PAUSE_BELOW) * HOP / SAMPLE_RATE
    seconds = float(heard[-1] - heard[0]) + HOP / SAMPLE_RATE if len(heard) else 0.0
    if seconds < SHORTEST:
        return "too_short", f"{seconds:.2f} s of sound, needed are {SHORTEST:g} s"
    return SpeechRecording(name, path.stat().st_size, float(heard[0]), seconds, round(level, 2))


def levels(sound: np.ndarray, hop: int) -> np.ndarray:
    """float [len // hop]: level of each stretch of ``hop`` samples, in dB (full scale: 0)."""
    whole = sound[: len(sound) // hop * hop].reshape(-1, hop)
    power = np.mean(whole.astype(np.float64) ** 2, axis=1)
    found: np.ndarray = 10 * np.log10(power + 1e-12)
    return found


def active_level(sound: np.ndarray) -> float:
    """RMS of the parts that are not much quieter than the loudest, in dB; -120 for silence."""
    level = levels(sound, HOP)
    if len(level) == 0 or level.max() < QUIETEST:
        return -120.0
    active = level[level > level.max() - ACTIVE_BELOW_LOUDEST]
    return float(10 * np.log10(np.mean(10 ** (active / 10))))
