"""Sound files of other people: kinds from a list, and no more memory than there is sound."""

import os
from collections.abc import Collection
from pathlib import Path

import numpy as np
import soundfile

from cavmae.common.errors import CavmaeError

# First bytes of the kinds that are opened: libsndfile parses many more, seldom and less well.
MAGIC: dict[str, tuple[bytes, ...]] = {
    "WAV": (b"RIFF", b"RIFX", b"RF64"),
    "FLAC": (b"fLaC",),
    "OGG": (b"OggS",),
    "MP3": (b"ID3", *(bytes((0xFF, second)) for second in range(0xE0, 0x100))),
}
MAX_RATE = 768_000  # Hz
MAX_CHANNELS = 64
BLOCK = 1 << 20  # samples, of all channels, that are read at once


class SoundError(CavmaeError):
    """A sound file that does not decode, or is none of the kinds asked for."""


def read_audio(
    path: str | Path, kinds: Collection[str], start: float = 0.0, seconds: float | None = None
) -> tuple[np.ndarray, int]:
    """A stretch of a sound file. Its header is not believed as to how much there is.

    Args:
        path: of a regular file.
        kinds: of :data:`MAGIC`.
        start: of the stretch, in seconds.
        seconds: its length at most; None: to the end.

    Returns:
        float32 [samples, channels], and the rate in Hz.

    Raises:
        SoundError: it is no such file.
    """
    if not Path(path).is_file():
        raise SoundError(f"{path} is no file.")
    try:
        with Path(path).open("rb") as file:
            first = file.read(4)
        if not any(first.startswith(magic) for kind in kinds for magic in MAGIC[kind]):
            raise SoundError(f"{path} is not {' or '.join(kinds)}.")
        with soundfile.SoundFile(os.fsencode(path)) as sound:
            rate: int = sound.samplerate
            if not 0 < rate <= MAX_RATE or sound.channels > MAX_CHANNELS:
                raise SoundError(f"{path} claims {sound.channels} channels at {rate} Hz.")
            sound.seek(min(round(start * rate), sound.frames))
            samples = _read(sound, None if seconds is None else round(seconds * rate))
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise SoundError(f"{path} does not decode: {error}") from error
    if not np.isfinite(samples).all():
        raise SoundError(f"{path} has samples that are not numbers.")
    return samples, rate


def _read(sound: soundfile.SoundFile, count: int | None) -> np.ndarray:
    blocks = [np.zeros((0, sound.channels), np.float32)]
    size = max(1, BLOCK // sound.channels)
    while count is None or count > 0:
        wanted = size if count is None else min(size, count)
        block = sound.read(wanted, dtype="float32", always_2d=True)
        if not len(block):
            break
        blocks.append(block)
        count = None if count is None else count - len(block)
    return np.concatenate(blocks)
