"""Sources of a recording for the first pass: a media file, or arrays in memory."""

import contextlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional

from cavmae.common.errors import UsageError
from cavmae.datasets.media.downmix import USUAL, are_inverted, layout_of, weights_of
from cavmae.datasets.media.playback import NEAR, SAMPLES, extent
from cavmae.datasets.stream.features import resample
from cavmae.datasets.stream.rates import VIDEO_RATE


class MediaSource(Protocol):
    """Frames on a grid of 25 Hz and audio at 16 kHz, read in windows in order of their starts.

    :class:`~cavmae.datasets.media.playback.Playback` is the source of a file.

    Attributes:
        seconds: duration.
        frames: number of grid frames.
        num_samples: number of audio samples.
        last_frame_time: time of the last frame in seconds, which stays from then on.
        wanted: number of distinct frames of the video on the grid.
        missing: number of frames so far that do not decode.
        mixdown: channel layouts of the audio read so far, each with its downmix.
    """

    seconds: float
    frames: int
    num_samples: int
    last_frame_time: float
    wanted: int
    missing: int
    mixdown: tuple[str, ...]

    @property
    def has_frame(self) -> np.ndarray:
        """Whether each grid time has a frame, bool [frames]."""
        ...

    @property
    def damaged_audio(self) -> int:
        """Number of audio packets so far that do not decode."""
        ...

    def rewind(self) -> None:
        """Begin again: what was read before counts no longer."""
        ...

    def reopen(self, first: int) -> contextlib.AbstractContextManager["MediaSource"]:
        """A second source of the recording, whose frames are read from one on."""
        ...

    def read_frames(self, start: int, count: int) -> Sequence[np.ndarray]:
        """Read grid frames: uint8 RGB [height, width, 3] each."""
        ...

    def read_audio(self, start: int, count: int) -> np.ndarray:
        """Read the audio of grid frames: float32 [count * 640]."""
        ...


class ArraySource:
    """Frames and audio in memory, as a file of them would play.

    Each grid time has the frame that is on screen, and the last frame stays for as long as the
    audio goes on.

    Args:
        frames: uint8 RGB [T, H, W, 3].
        waveform: float [S] or [S, channels], full scale 1. Two channels are averaged, or
            subtracted if one is the inverse of the other; more have FFmpeg's usual layouts.
        sample_rate: of the waveform, in Hz.
        frame_rate: of the frames, in Hz.
        size: (height, width) of the frames that are read.

    Attributes:
        seconds, frames, num_samples, last_frame_time, wanted, missing, mixdown: as in
            :class:`MediaSource`.
        damaged_audio: 0, nothing is decoded.

    Raises:
        UsageError: see :func:`check_arrays`.
    """

    def __init__(
        self,
        frames: np.ndarray,
        waveform: np.ndarray,
        sample_rate: int,
        frame_rate: float,
        size: tuple[int, int],
    ):
        check_arrays(frames, waveform, sample_rate, frame_rate)
        self.seconds = max(len(frames) / frame_rate, len(waveform) / sample_rate)
        self.frames, self.num_samples = extent(self.seconds)
        self.wanted, self.missing, self.damaged_audio = len(frames), 0, 0
        mono, layout = _downmix(waveform.astype(np.float32, copy=False).reshape(len(waveform), -1))
        self.mixdown: tuple[str, ...] = (layout,)
        self._audio = resample(mono, sample_rate)
        self._video, self._size = frames, size
        self._times = np.arange(len(frames)) / frame_rate
        self.last_frame_time = float(self._times[-1])
        self._near = NEAR / max(VIDEO_RATE, frame_rate)

    @property
    def has_frame(self) -> np.ndarray:
        """Whether each grid time has a frame, bool [frames]: always."""
        return np.ones(self.frames, dtype=bool)

    def rewind(self) -> None:
        """Begin again, which takes nothing: any part can be read at any time."""

    def reopen(self, first: int) -> contextlib.AbstractContextManager["ArraySource"]:
        """This source, since any part can be read at any time."""
        return contextlib.nullcontext(self)

    def read_frames(self, start: int, count: int) -> Sequence[np.ndarray]:
        """Read grid frames: uint8 RGB [height, width, 3] each."""
        grid_times = np.arange(start, start + count) / VIDEO_RATE
        index = np.searchsorted(self._times, grid_times + self._near, side="right") - 1
        fresh, inverse = np.unique(index, return_inverse=True)
        video = self._video[fresh]
        if video.shape[1:3] != self._size:
            video_nchw = torch.from_numpy(video).permute(0, 3, 1, 2)
            resized = functional.interpolate(
                video_nchw, self._size, mode="bilinear", antialias=True
            )
            video = resized.permute(0, 2, 3, 1).numpy()
        return [np.ascontiguousarray(video[i]) for i in inverse]

    def read_audio(self, start: int, count: int) -> np.ndarray:
        """Read the audio of grid frames: float32 [count * 640]; silence after the end."""
        audio = self._audio[start * SAMPLES : (start + count) * SAMPLES]
        return np.pad(audio, (0, count * SAMPLES - len(audio)))


def check_arrays(
    frames: np.ndarray, waveform: np.ndarray, sample_rate: int, frame_rate: float
) -> None:
    """Check arrays of a recording.

    Raises:
        UsageError: a shape, a type or a rate is wrong, or the waveform has NaN or Inf.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise UsageError(
            f"frames is {frames.dtype} {list(frames.shape)}: give uint8 [T, H, W, 3], RGB."
        )
    if waveform.dtype.kind != "f" or waveform.ndim not in (1, 2) or not waveform.size:
        raise UsageError(
            f"waveform is {waveform.dtype} {list(waveform.shape)}: give float [S] or "
            "[S, channels] with full scale 1."
        )
    if not np.isfinite(waveform).all():
        raise UsageError("waveform has NaN or Inf: give finite samples.")
    if sample_rate < 1 or not 0 < frame_rate < float("inf"):
        raise UsageError(
            f"sample_rate {sample_rate} and frame_rate {frame_rate:g}: give both in Hz, above 0."
        )


def _downmix(waveform: np.ndarray) -> tuple[np.ndarray, str]:
    """Mono mix float32 [S] of a waveform [S, channels], and the name of its channel layout."""
    count = waveform.shape[1]
    if count == 2 and are_inverted([waveform.T]):
        return (waveform[:, 0] - waveform[:, 1]) / np.float32(2), "stereo: one channel inverted"
    if count not in USUAL:
        return waveform.mean(1), f"{count} channels"
    layout = layout_of(USUAL[count])
    if count == 2:
        return (waveform[:, 0] + waveform[:, 1]) / np.float32(2), "stereo: mean"
    if count == 1:
        return waveform[:, 0], "mono"
    return waveform @ weights_of(layout.channels), f"{layout.name}: weighted"


def working_size(
    display: tuple[int, int], model_size: tuple[int, int], max_side: int | None
) -> tuple[int, int]:
    """Size of the frames that are read: the model's input size, or more for a second look.

    Args:
        display: (height, width) of the recording in pixels.
        model_size: (height, width) of the model's input in pixels.
        max_side: longer side of frames for a second look; None: there is none.
    """
    height, width = display
    scale = min(model_size[0] / height, model_size[1] / width)
    if max_side is not None:
        scale = max(scale, min(1.0, max_side / max(height, width)))
    return max(16, round(height * scale)), max(16, round(width * scale))
