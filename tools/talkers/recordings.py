"""Speech recordings: which there are, who reads them, and stretches of them."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from cavmae.datasets.errors import CavmaeError
from cavmae.datasets.features import SAMPLE_RATE, resample

ENDINGS = (".flac", ".wav", ".ogg", ".opus", ".mp3")
SHORTEST = 1.0  # s: what is shorter is no utterance
QUIETEST = 1e-4  # RMS below which there is nothing to hear


@dataclasses.dataclass(frozen=True)
class Recording:
    """One file of one reader.

    Attributes:
        path: relative to the folder.
        bytes: its size, by which an altered file is noticed.
        seconds: length.
    """

    path: str
    bytes: int
    seconds: float


def find(folder: Path) -> Iterator[tuple[str, str]]:
    """(reader, path within the folder) of every sound file, in the order of their paths.

    Raises:
        CavmaeError: no such folder, or no sound in it.
    """
    if not folder.is_dir():
        raise CavmaeError(f"--speech {folder} is not a folder.")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
    if not paths:
        raise CavmaeError(
            f"--speech {folder} has no recordings ({', '.join(ENDINGS)}) in it; "
            "convert them to FLAC or name another folder."
        )
    for path in paths:
        yield reader_of(path), path.relative_to(folder).as_posix()


def reader_of(path: Path) -> str:
    """A recording's reader: its name up to the first ``-`` or ``_``."""
    return re.split(r"[-_]", path.stem, maxsplit=1)[0] or path.stem


def read(path: Path, start: float = 0.0, seconds: float | None = None) -> np.ndarray:
    """A stretch of a recording: float32 [samples] at 16 kHz, mono.

    Raises:
        CavmaeError: the file does not decode.
    """
    try:
        with soundfile.SoundFile(str(path)) as file:
            rate = file.samplerate
            file.seek(min(round(start * rate), file.frames))
            count = -1 if seconds is None else round(seconds * rate)
            sound = file.read(count, dtype="float32", always_2d=True).mean(axis=1)
    except (soundfile.SoundFileError, OSError) as error:
        raise CavmaeError(f"{path} does not decode: {error}") from error
    return resample(np.ascontiguousarray(sound), rate)


def survey(folder: Path, name: str) -> Recording | tuple[str, str]:
    """What a file of a folder holds, or why it cannot be used: (reason, detail)."""
    path = folder / name
    try:
        sound = read(path)
    except CavmaeError as error:
        return "decode_error", str(error)
    seconds = len(sound) / SAMPLE_RATE
    if seconds < SHORTEST:
        return "too_short", f"{seconds:.2f} s, needed are {SHORTEST:g} s"
    if not np.isfinite(sound).all():
        return "decode_error", "samples that are not numbers"
    if float(np.sqrt(np.mean(sound**2))) < QUIETEST:
        return "silent", "nothing to hear"
    return Recording(name, path.stat().st_size, seconds)
