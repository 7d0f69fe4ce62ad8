"""Reading of untrusted audio files: listed formats only, in memory bounded by their content."""

import os
from collections.abc import Collection
from pathlib import Path

import numpy as np
import soundfile

from cavmae.common.errors import CavmaeError

# First bytes of the accepted formats: libsndfile parses many more, but less robustly.
MAGIC: dict[str, tuple[bytes, ...]] = {
    "WAV": (b"RIFF", b"RIFX", b"RF64"),
    "FLAC": (b"fLaC",),
    "OGG": (b"OggS",),
    "MP3": (b"ID3", *(bytes((0xFF, second)) for second in range(0xE0, 0x100))),
}
MAX_RATE = 768_000  # Hz
MAX_CHANNELS = 64
BLOCK = 1 << 20  # samples of all channels in one read


class AudioFileError(CavmaeError):
    """An audio file that does not decode, or has none of the requested formats."""


def read_audio(
    path: str | Path, kinds: Collection[str], start: float = 0.0, seconds: float | None = None
) -> tuple[np.ndarray, int]:
    """Reads a segment of an audio file, without trusting the length in its header.

    Args:
        path: of a regular file.
        kinds: accepted formats, keys of :data:`MAGIC`.
        start: of the segment, in seconds.
        seconds: maximal length of the segment; None: to the end.

    Returns:
        float32 [samples, channels], and the sample rate in Hz.

    Raises:
        AudioFileError: the file is missing, damaged, or of another format.
    """
    if not Path(path).is_file():
        raise AudioFileError(f"{path} is no file.")
    try:
        with Path(path).open("rb") as file:
            head = file.read(4)
        if not any(head.startswith(magic) for kind in kinds for magic in MAGIC[kind]):
            raise AudioFileError(f"{path} is not {' or '.join(kinds)}.")
        with soundfile.SoundFile(os.fsencode(path)) as audio:
            rate: int = audio.samplerate
            if not 0 < rate <= MAX_RATE or audio.channels > MAX_CHANNELS:
                raise AudioFileError(f"{path} claims {audio.channels} channels at {rate} Hz.")
            audio.seek(min(round(start * rate), audio.frames))
            samples = _read(audio, None if seconds is None else round(seconds * rate))
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise AudioFileError(f"{path} does not decode: {error}") from error
    if not np.isfinite(samples).all():
        raise AudioFileError(f"{path} has samples that are not numbers.")
    return samples, rate


def _read(audio: soundfile.SoundFile, count: int | None) -> np.ndarray:
    blocks = [np.zeros((0, audio.channels), np.float32)]
    size = max(1, BLOCK // audio.channels)
    while count is None or count > 0:
        wanted = size if count is None else min(size, count)
        block = audio.read(wanted, dtype="float32", always_2d=True)
        if not len(block):
            break
        blocks.append(block)
        count = None if count is None else count - len(block)
    return np.concatenate(blocks)
