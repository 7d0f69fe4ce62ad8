"""A file as it plays: frames on a grid of 25 a second, with the sound, stretch by stretch."""

import contextlib

import numpy as np

from cavmae.datasets.media.frames import open_decoder
from cavmae.datasets.media.geometry import Geometry
from cavmae.datasets.media.probe import Probe
from cavmae.datasets.media.sound import Sound
from cavmae.datasets.stream.features import SAMPLE_RATE

RATE = 25  # frames a second
SAMPLES = SAMPLE_RATE // RATE  # of a frame
NEAR = 0.499  # of a frame: one that comes up so soon after a moment is that moment's


def extent(seconds: float) -> tuple[int, int]:
    """Frames and samples of a time: as many frames as it takes to show all samples."""
    samples = max(1, round(seconds * SAMPLE_RATE))
    return -(-samples // SAMPLES), samples


class Playback:
    """Reads a file from its beginning, in bounded memory.

    Its time begins where a player shows 0:00 and ends with its picture or its sound, whichever
    ends later. A moment has the frame that is on screen: the last one stays for as long as the
    sound goes on. Before the first frame the picture is black.

    Args:
        info: of the file.
        geometry: of frames.
    """

    def __init__(self, info: Probe, geometry: Geometry):
        self.seconds = max(info.span[1], 1 / RATE)
        self.frames, self.samples = extent(self.seconds)
        moments = np.arange(self.frames) / RATE
        near = NEAR / max(RATE, info.frame_rate)
        self._index = np.searchsorted(info.frame_times, moments + near, side="right") - 1
        self._geometry = geometry
        wanted = np.unique(self._index[self._index >= 0])
        self.wanted = len(wanted)  # frames that are shown at all
        self._closing = contextlib.ExitStack()
        self._decoder = open_decoder(info, geometry, wanted)
        self._closing.callback(self._decoder.close)
        self._audio = Sound(info, steady=True)
        self._closing.callback(self._audio.close)
        self._cached: dict[int, np.ndarray] = {}
        self._before: np.ndarray | None = None  # the last frame that could be decoded
        self._num_frames_read = 0  # grid frames read
        self._waveform = np.zeros(0, dtype=np.float32)
        self._num_audio_frames_read = 0  # grid frames whose sound was read
        self.mixdown: tuple[str, ...] = ()  # of all sound read so far, as Sound has it
        self.missing = 0  # frames that could not be decoded: the one before stays on screen

    def __enter__(self) -> "Playback":
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.close()

    @property
    def has_frame(self) -> np.ndarray:
        """bool [frames], whether there is a picture."""
        found: np.ndarray = self._index >= 0
        return found

    @property
    def damaged_audio(self) -> int:
        """Packets of sound that could not be decoded so far."""
        return self._audio.damaged

    def read_frames(self, start: int, count: int) -> np.ndarray:
        """Frames of a stretch that begins no sooner than the one before: [count, h, w, 3], uint8.

        After the end the last one stays.
        """
        grid = self._index[start : start + count]
        first = min((int(i) for i in grid if i >= 0), default=0)
        self._cached = {i: f for i, f in self._cached.items() if i >= first}
        told = np.unique(self._index[self._num_frames_read : start + count]).tolist()
        fresh = [i for i in told if i >= 0 and i not in self._cached]
        self._num_frames_read = max(self._num_frames_read, start + count)
        decoded = self._decoder.read(fresh)
        for index in fresh:
            picture = decoded.get(index)
            if picture is None:
                self.missing += 1
                picture = self._before if self._before is not None else self._black()
            self._cached[index] = self._before = np.ascontiguousarray(picture)
        shown = [self._cached[int(i)] if i >= 0 else self._black() for i in grid]
        shown += shown[-1:] * (count - len(shown))
        return np.stack(shown)

    def _black(self) -> np.ndarray:
        return np.zeros((*self._geometry.size, 3), dtype=np.uint8)

    def read_audio(self, start: int, count: int) -> np.ndarray:
        """The sound of a stretch of frames that begins no sooner than the one before: float32
        [count * 640] at 16 kHz, silence where there is none.
        """
        first = self._num_audio_frames_read * SAMPLES - len(self._waveform)  # of what is kept
        self._waveform = self._waveform[max(0, start * SAMPLES - first) :]
        if self._num_audio_frames_read < start + count:
            fresh, _ = self._audio.read(self._num_audio_frames_read / RATE, (start + count) / RATE)
            self.mixdown = tuple(dict.fromkeys((*self.mixdown, *self._audio.mixdown)))
            wanted = (start + count - self._num_audio_frames_read) * SAMPLES
            fresh = np.pad(fresh, (0, max(0, wanted - len(fresh))))[:wanted]
            self._waveform = np.concatenate([self._waveform, fresh])
            self._num_audio_frames_read = start + count
        begin = start * SAMPLES - (self._num_audio_frames_read * SAMPLES - len(self._waveform))
        found: np.ndarray = self._waveform[begin : begin + count * SAMPLES]
        return found
