"""Windows of a recording as inputs of an event classifier, read in one pass over the file."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from cavmae.datasets.media import Probe
from cavmae.datasets.media.audio_reader import AudioReader
from cavmae.datasets.media.frames import open_decoder
from cavmae.datasets.media.geometry import Geometry, cut_from
from cavmae.datasets.sharding.planning import choose_frames
from cavmae.datasets.sharding.settings import ShardSettings
from cavmae.datasets.stream.features import (
    FBANK_RATE,
    HOP,
    MEL_BINS,
    SAMPLE_RATE,
    WINDOW,
    fbank,
    fbank_frames,
    to_float,
    to_int16,
)
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.datasets.stream.view import GREY_RESAMPLING, fit, nearest_frames
from cavmae.finetune.inference.event_timeline import WindowPlan

CLIP_FRAMES = 10  # frames of a clip of the `events` profile, among which evaluation chooses


class MotionInput(NamedTuple):
    """Grey frames of a model with a motion pathway.

    Attributes:
        times: of the grey frames in seconds from a window's start, float64 [T].
        size: (height, width) in pixels.
    """

    times: np.ndarray
    size: tuple[int, int]


class WindowInput(NamedTuple):
    """Inputs of one window.

    Attributes:
        fbank: float16 [frames, 128], not padded; None: the mode takes no audio.
        frames: uint8 RGB [F, height, width, 3]; None: the mode takes no video.
        motion: uint8 [T, h, w], grey frames; None: the model has no motion pathway.
    """

    fbank: np.ndarray | None
    frames: np.ndarray | None
    motion: np.ndarray | None


class EventWindows:
    """Reads the windows of a recording in order of time, in bounded memory.

    Of the video, only the frames of the windows are decoded, and those that they are predicted
    from; filter banks of overlapping windows are computed once. Frames and fbanks equal those of
    shards of the `events` profile (with a motion pathway: at 25 frames a second) with clips in the
    place of the windows.

    Args:
        info: probe of the file.
        plan: windows.
        frames: number of frames of a window; 0: the mode takes no video.
        size: (height, width) of the frames.
        audio: whether the mode takes audio.
        motion: times of the grey frames and their size; None: there is no motion pathway.

    Attributes:
        wanted: number of distinct frames that are decoded.
        missing: number of frames so far that do not decode; the one before is taken instead.
        peak: largest absolute sample so far, of 16 bits.
    """

    def __init__(
        self, info: Probe, plan: WindowPlan, frames: int, size: tuple[int, int], audio: bool,
        motion: MotionInput | None = None,
    ):  # fmt: skip
        self._plan, self._size, self._closing = plan, size, contextlib.ExitStack()
        self._motion = motion
        self._indices = [
            frame_indices(info, plan, s, frames, motion) for s in plan.starts if frames
        ]
        self._fbanks: _FbankReader | None = None
        self._before = np.zeros((*size, 3), dtype=np.uint8)  # last frame that decoded
        self._cached: dict[int, np.ndarray] = {}
        self._reached = -1
        self.wanted = self.missing = 0
        if frames:
            self._wanted = np.unique(
                np.concatenate([part for indices in self._indices for part in indices])
            )
            self.wanted = len(self._wanted)
            self._decoder = open_decoder(info, cover(info, size), self._wanted)
            self._closing.callback(self._decoder.close)
        if audio:
            self._fbanks = _FbankReader(AudioReader(info, steady=True))
            self._closing.callback(self._fbanks.close)

    def __enter__(self) -> "EventWindows":
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.close()

    @property
    def damaged_audio(self) -> int:
        """Number of audio packets so far that do not decode."""
        return 0 if self._fbanks is None else self._fbanks.damaged

    @property
    def peak(self) -> int:
        """Largest absolute sample so far, of 16 bits."""
        return 0 if self._fbanks is None else self._fbanks.peak

    def __iter__(self) -> Iterator[WindowInput]:
        plan = self._plan
        for number, start in enumerate(plan.starts):
            rows = None
            if self._fbanks is not None:
                samples = min(plan.length, plan.rows - start) * HOP
                rows = self._fbanks.read(start, fbank_frames(samples))
            frames, motion = self._read_frames(number) if self._indices else (None, None)
            yield WindowInput(rows, frames, motion)

    def _read_frames(self, number: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Frames and grey frames of a window, in order of time.

        A decoder does not go back, so frames of the windows that follow are kept on the way.
        """
        indices, grey_indices = self._indices[number]
        both = np.concatenate([indices, grey_indices])
        self._cached = {i: f for i, f in self._cached.items() if i >= both.min()}
        until = np.searchsorted(self._wanted, [self._reached, both.max()], side="right")
        fresh = self._wanted[slice(*until)].tolist()
        decoded = self._decoder.read(fresh)
        for index in fresh:
            self.missing += index not in decoded
            self._before = self._cached[index] = np.ascontiguousarray(
                decoded.get(index, self._before)
            )
            self._reached = index
        frames = np.stack([self._cached[int(i)] for i in indices])
        if self._motion is None:
            return frames, None
        size = self._motion.size
        grey = {int(i): grey_frame(self._cached[int(i)], size) for i in np.unique(grey_indices)}
        return frames, np.stack([grey[int(i)] for i in grey_indices])


def frame_indices(
    info: Probe, plan: WindowPlan, start: int, count: int, motion: MotionInput | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Frames and grey frames of a window, as evaluation takes them of a clip, some repeated.

    See :meth:`cavmae.datasets.stream.view.View.select`.

    Returns:
        int64 [count] and int64 [T], of which the second is empty without ``motion``.
    """
    begin, end = start / FBANK_RATE, min(start + plan.length, plan.rows) / FBANK_RATE
    if motion is None:
        settings = ShardSettings(frames=max(CLIP_FRAMES, count)).resolved()
        stored = choose_frames(info, begin, end, settings)
        chosen = stored[[int((i + 0.5) * len(stored) / count) for i in range(count)]]
        return chosen, np.zeros(0, dtype=np.int64)
    stored = choose_frames(info, begin, end, ShardSettings(frame_rate=VIDEO_RATE).resolved())
    known = info.frame_times[stored] - begin
    times = (np.arange(count) + 0.5) * len(motion.times) / VIDEO_RATE / count
    return stored[nearest_frames(known, times)], stored[nearest_frames(known, motion.times)]


def grey_frame(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Grey frame of a size (height, width), uint8, of an RGB frame of the same shape or larger."""
    return fit(np.asarray(Image.fromarray(frame).convert("L")), size, GREY_RESAMPLING)


def cover(info: Probe, size: tuple[int, int]) -> Geometry:
    """Geometry of frames that are scaled to cover a size, and cropped to it in the middle.

    Args:
        info: probe of the file.
        size: (height, width) in pixels.
    """
    height, width = info.display
    scale = max(size[0] / height, size[1] / width)
    upright = max(size[0], round(height * scale)), max(size[1], round(width * scale))
    return cut_from(info, upright, size)


class _FbankReader:
    """Filter banks of a recording, computed once, of which windows are read in order of time."""

    def __init__(self, audio: AudioReader):
        self._audio = audio
        self._rows = np.zeros((0, MEL_BINS), dtype=np.float16)
        self._first = 0  # number of the first buffered row
        self._samples = np.zeros(0, dtype=np.int16)  # from the first sample of the next row on
        self._position = 0  # samples that were read
        self.peak = 0

    @property
    def damaged(self) -> int:
        return self._audio.damaged

    def close(self) -> None:
        self._audio.close()

    def read(self, start: int, count: int) -> np.ndarray:
        """Rows of a window, float16 [count, 128]; silence where the file has no audio.

        Args:
            start: number of the first row; never less than in the call before.
            count: number of rows.
        """
        if start + count > self._first + len(self._rows):
            until = (start + count - 1) * HOP + WINDOW
            self._samples = np.concatenate([self._samples, self._read_samples(until)])
            fresh = fbank(torch.from_numpy(to_float(self._samples))).numpy().astype(np.float16)
            self._rows = np.concatenate([self._rows, fresh])
            self._samples = self._samples[len(fresh) * HOP :]
        self._rows = self._rows[start - self._first :]
        self._first = start
        return self._rows[:count]

    def _read_samples(self, until: int) -> np.ndarray:
        """Samples up to a number of samples, int16."""
        count = until - self._position
        waveform, _ = self._audio.read(self._position / SAMPLE_RATE, until / SAMPLE_RATE)
        samples = to_int16(np.pad(waveform, (0, max(0, count - len(waveform))))[:count])
        self._position = until
        self.peak = max(self.peak, int(np.abs(samples.astype(np.int32)).max(initial=0)))
        return samples
