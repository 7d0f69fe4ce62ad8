"""Playback of a media file: video frames on a grid of 25 Hz, with the audio, in segments."""

import contextlib

import numpy as np

from cavmae.datasets.media.audio_reader import AudioReader
from cavmae.datasets.media.frames import PyAVDecoder
from cavmae.datasets.media.geometry import Geometry
from cavmae.datasets.media.planes import pack_rgb
from cavmae.datasets.media.probe import Probe
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.datasets.stream.rates import VIDEO_RATE

SAMPLES = SAMPLE_RATE // VIDEO_RATE  # audio samples of a grid frame
NEAR = 0.499  # frame durations after a grid time within which a frame still belongs to it


def extent(seconds: float) -> tuple[int, int]:
    """Numbers of grid frames and audio samples of a duration; frames cover all samples."""
    samples = max(1, round(seconds * SAMPLE_RATE))
    return -(-samples // SAMPLES), samples


class Playback:
    """Reads a file from its beginning, as a player would show it, in bounded memory.

    Time begins at the player's 0:00 and ends with the video or the audio, whichever ends later.
    Each grid time has the frame that is on screen. Frames are black before the first frame, and
    the last one stays for as long as the audio goes on.

    Args:
        info: probe of the file.
        geometry: of the frames.
        first: grid frame before which no frames are read.
        packed: frames are packed YUV of :mod:`.planes`, which encoders take, instead of RGB.

    Attributes:
        seconds: duration.
        frames: number of grid frames.
        samples: number of audio samples at 16 kHz.
        last_frame_time: time of the last video frame in seconds.
        wanted: number of distinct video frames on the grid.
        missing: number of frames so far that do not decode; the one before stays on screen.
        mixdown: layouts of all audio read so far, as in :class:`.AudioReader`.
    """

    def __init__(self, info: Probe, geometry: Geometry, first: int = 0, packed: bool = False):
        self.seconds = max(info.span[1], 1 / VIDEO_RATE)
        self.frames, self.num_samples = extent(self.seconds)
        grid_times = np.arange(self.frames) / VIDEO_RATE
        near = NEAR / max(VIDEO_RATE, info.frame_rate)
        self._index = np.searchsorted(info.frame_times, grid_times + near, side="right") - 1
        self.last_frame_time = int(self._index.argmax()) / VIDEO_RATE  # the first of the largest
        self._info, self._geometry = info, geometry
        self._first, self._packed = first, packed
        self._wanted = np.unique(self._index[first:][self._index[first:] >= 0])
        self.wanted = len(self._wanted)
        self._closing = contextlib.ExitStack()
        self.rewind()

    def rewind(self) -> None:
        """Begin again: what was read before counts no longer."""
        self._closing.close()
        self._decoder = PyAVDecoder(self._info, self._geometry, self._wanted, self._packed)
        self._closing.callback(self._decoder.close)
        self._audio = AudioReader(self._info, steady=True)
        self._closing.callback(self._audio.close)
        self._cached: dict[int, np.ndarray] = {}
        self._before: np.ndarray | None = None  # last frame that decoded
        self._num_frames_read = self._first  # grid frames
        self._waveform = np.zeros(0, dtype=np.float32)  # audio up to the last frame read
        self._num_audio_frames_read = 0  # grid frames
        self.mixdown: tuple[str, ...] = ()
        self.missing = 0

    def reopen(self, first: int) -> "Playback":
        """A second playback of the file, whose frames are read from a grid frame on."""
        return Playback(self._info, self._geometry, first, self._packed)

    def __enter__(self) -> "Playback":
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.close()

    @property
    def has_frame(self) -> np.ndarray:
        """Whether each grid time has a frame, bool [frames]."""
        has_frame: np.ndarray = self._index >= 0
        return has_frame

    @property
    def damaged_audio(self) -> int:
        """Number of audio packets so far that do not decode."""
        return self._audio.damaged

    def read_frames(self, start: int, count: int) -> list[np.ndarray]:
        """Reads grid frames ``start`` to ``start + count``: uint8 RGB [height, width, 3] each.

        Packed ones are uint8 [1.5 height, width].

        A frame that stays on screen, or that several segments have, is one array.

        Segments are read in order of their starts. After the end the last frame stays.
        """
        grid = self._index[start : start + count]
        first = min((int(i) for i in grid if i >= 0), default=0)
        self._cached = {i: f for i, f in self._cached.items() if i >= first}
        indices = np.unique(self._index[self._num_frames_read : start + count]).tolist()
        fresh = [i for i in indices if i >= 0 and i not in self._cached]
        self._num_frames_read = max(self._num_frames_read, start + count)
        decoded = self._decoder.read(fresh)
        for index in fresh:
            frame = decoded.get(index)
            if frame is None:
                self.missing += 1
                frame = self._before if self._before is not None else self._black()
            self._cached[index] = self._before = np.ascontiguousarray(frame)
        frames = [self._cached[int(i)] if i >= 0 else self._black() for i in grid]
        frames += frames[-1:] * (count - len(frames))
        return frames

    def _black(self) -> np.ndarray:
        black = np.zeros((*self._geometry.size, 3), dtype=np.uint8)
        return pack_rgb(black) if self._packed else black

    def read_audio(self, start: int, count: int) -> np.ndarray:
        """Reads the audio of a segment of grid frames: float32 [count * 640] at 16 kHz.

        Segments are read in order of their starts. Silence where the file has no audio.
        """
        first = self._num_audio_frames_read * SAMPLES - len(self._waveform)  # sample in the buffer
        self._waveform = self._waveform[max(0, start * SAMPLES - first) :]
        if self._num_audio_frames_read < start + count:
            fresh, _ = self._audio.read(
                self._num_audio_frames_read / VIDEO_RATE, (start + count) / VIDEO_RATE
            )
            self.mixdown = tuple(dict.fromkeys((*self.mixdown, *self._audio.mixdown)))
            wanted = (start + count - self._num_audio_frames_read) * SAMPLES
            fresh = np.pad(fresh, (0, max(0, wanted - len(fresh))))[:wanted]
            self._waveform = np.concatenate([self._waveform, fresh])
            self._num_audio_frames_read = start + count
        begin = start * SAMPLES - (self._num_audio_frames_read * SAMPLES - len(self._waveform))
        segment: np.ndarray = self._waveform[begin : begin + count * SAMPLES]
        return segment
