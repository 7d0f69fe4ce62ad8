"""Views: the members that are read of a sample, and the arrays that they decode to.

A :class:`View` works in two steps: it selects the members of a sample reference (only those are
read from the shard), and later, when the sample leaves the shuffle buffer, decodes them to arrays.
Every random choice comes from the sample reference's own generator, so a resumed stream gives the
same arrays.
"""

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from cavmae.common.errors import SampleError, UsageError
from cavmae.datasets.format import sample
from cavmae.datasets.format.sample import SampleInfo
from cavmae.datasets.stream.features import FBANK_RATE, HOP, SAMPLE_RATE, SILENCE
from cavmae.datasets.stream.rates import VIDEO_RATE

GREY_RESAMPLING = Image.Resampling.BOX  # as decoders of JPEG scale down


@dataclasses.dataclass(frozen=True)
class View:
    """The audio, frames and masks that are read of each sample.

    Args:
        fbank: give the log-mel filter bank.
        fbank_frames: length of the filter bank; shorter ones are padded, longer ones cut, and
            frames after its end are left out. With a window the window sets the length.
        padding: ``zero`` as the CAV-MAE reference pads (before normalising), or ``silence``: the
            value of digital silence.
        frames: a ``random`` frame of the clip, the ``middle`` one, ``all``, ``none``, or a number
            of frames, evenly spaced. With a window, ``all`` is one frame for each 1/25 s of it.
        time_bins: number of equal parts of the window, from whose middles ``frames`` frames are
            drawn, in random order and no part twice; None: evenly spaced, in order of time.
        window: length in seconds of a part of the clip; None: the whole clip. Audio, frames and
            masks are of exactly that part.
        random_window: begin the window anywhere (training), or center it (evaluation).
        waveform: give the 16 kHz waveform.
        masks: give the masks of the frames.
        motion_size: (height, width) of grey frames, scaled and cropped as ``frames`` are: one for
            each 1/25 s of the view's length, the last one repeated beyond the end of a shorter
            clip. A number of ``frames`` is then spread over that length, too. None: none.
        frame_size: (height, width) to scale and crop frames and masks to; None: as stored, which
            must then be the same for all samples of a batch.

    Raises:
        UsageError: values that contradict each other or are out of range.
    """

    fbank: bool = True
    fbank_frames: int = 1024
    padding: Literal["zero", "silence"] = "zero"
    frames: Literal["random", "middle", "all", "none"] | int = "random"
    time_bins: int | None = None
    window: float | None = None
    random_window: bool = True
    waveform: bool = False
    masks: bool = False
    motion_size: tuple[int, int] | None = None
    frame_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.frames, int) and self.frames < 1:
            raise UsageError(f"frames {self.frames}: the number of frames must be at least 1.")
        if self.window is not None and round(self.window * VIDEO_RATE, 6) % 1:
            raise UsageError(f"window {self.window}: must be a multiple of {1 / VIDEO_RATE} s.")
        if self.time_bins is not None and (
            self.window is None
            or not isinstance(self.frames, int)
            or not self.frames <= self.time_bins
        ):
            raise UsageError(
                f"time_bins {self.time_bins}: needs a window, and a number of frames that is not "
                "more."
            )
        if self.masks and self.frames == "none":
            raise UsageError("masks need frames: set frames to random, middle, all or a number.")

    @property
    def length(self) -> int:
        """Number of fbank frames."""
        return self.fbank_frames if self.window is None else round(self.window * FBANK_RATE)

    @property
    def motion_times(self) -> np.ndarray:
        """Times of the grey frames in seconds from the window's start: float64 [T]."""
        return np.arange(self.length * VIDEO_RATE // FBANK_RATE) / VIDEO_RATE

    @property
    def padding_value(self) -> float:
        """Log-mel value of fbank frames beyond the end of a clip."""
        return 0.0 if self.padding == "zero" else SILENCE

    @property
    def needs_info(self) -> bool:
        """Whether :meth:`select` needs the sample's ``json``."""
        several = self.fbank and self.frames != "none"  # those of the audio's time are taken
        return self.window is not None or self.motion_size is not None or several

    def select(self, names: Sequence[str], info: SampleInfo | None, rng: random.Random) -> "Choice":
        """Selects the members, the frames and the window of a sample.

        Args:
            names: extensions of the sample's members.
            info: of the sample, if :attr:`needs_info`.
            rng: of this sample reference.

        Raises:
            SampleError: ``missing_member`` for a clip without frames.
        """
        count = sum(name.endswith(".jpg") for name in names)
        start = 0.0
        if self.window is None:
            frames = self._clip_frames(self._frames_within_audio(count, info), rng)
        else:
            assert info is not None
            steps = max(0, int((info.duration - self.window) * VIDEO_RATE + 1e-6))
            step = rng.randrange(steps + 1) if self.random_window else steps // 2
            start = step / VIDEO_RATE
            frames = self._window_frames(info, start, rng)
        motion: list[int] = []
        if self.motion_size is not None:
            assert info is not None
            if not info.frame_times:
                raise SampleError("missing_member", "no frames")
            seconds = self.length / FBANK_RATE
            times = start + self.motion_times
            motion = nearest_frames(info.frame_times, times, start, start + seconds)
            if self.window is None and isinstance(self.frames, int):
                times = (np.arange(self.frames) + 0.5) * seconds / self.frames
                frames = nearest_frames(info.frame_times, times)
            elif self.window is None and self.frames == "random":
                frames = [rng.randrange(max(1, sum(t < seconds for t in info.frame_times)))]
        members = ["json"]
        members += ["fbank.npy"] if self.fbank else []
        members += ["flac"] if self.waveform else []
        members += [sample.frame_member(i) for i in sorted({*frames, *motion})]
        if self.masks:
            available = set(names)
            masks = [sample.mask_member(i) for i in sorted(set(frames))]
            members += [name for name in masks if name in available]
        return Choice(self, tuple(members), tuple(frames), start, tuple(motion))

    def _frames_within_audio(self, count: int, info: SampleInfo | None) -> int:
        """Number of the first frames of a clip that lie within the audio that is heard of it."""
        if info is None or not (self.fbank or self.motion_size) or not info.frame_times:
            return count
        seconds = self.length / FBANK_RATE
        return max(1, sum(time < seconds for time in info.frame_times))

    def _clip_frames(self, count: int, rng: random.Random) -> list[int]:
        if self.frames == "none":
            return []
        if count == 0:
            raise SampleError("missing_member", "no frames")
        if self.frames == "random":
            return [rng.randrange(count)]
        if self.frames == "middle":
            return [count // 2]
        if self.frames == "all":
            return list(range(count))
        return [int((i + 0.5) * count / self.frames) for i in range(self.frames)]

    def _window_frames(self, info: SampleInfo, start: float, rng: random.Random) -> list[int]:
        assert self.window is not None
        if self.frames == "none":
            return []
        if self.frames == "all":
            times = start + np.arange(round(self.window * VIDEO_RATE)) / VIDEO_RATE
        elif self.frames == "random":
            times = np.array([start + rng.random() * self.window])
        else:
            number = 1 if self.frames == "middle" else self.frames
            parts = self.time_bins or number
            drawn = rng.sample(range(parts), number) if self.time_bins else range(number)
            times = start + (np.array(drawn) + 0.5) * self.window / parts
        return nearest_frames(info.frame_times, times, start, start + self.window)


def nearest_frames(
    stored: Sequence[float], times: np.ndarray, start: float = 0.0, end: float = math.inf
) -> list[int]:
    """Numbers of the stored frames that are nearest to times.

    Args:
        stored: times of the stored frames in seconds, rising.
        times: in seconds, rising or not.
        start: frames of half a video frame before it on are taken.
        end: frames before it are taken. Where there is none between both, all are.
    """
    known = np.array(stored)
    inside = (known >= start - 0.5 / VIDEO_RATE) & (known < end)
    offset = 0
    if inside.any():
        offset = int(np.flatnonzero(inside)[0])
        known = known[inside]
    after = np.clip(np.searchsorted(known, times), 1, max(1, len(known) - 1))
    before = after - 1
    after = np.minimum(after, len(known) - 1)
    nearer = np.abs(known[after] - times) < np.abs(known[before] - times) - 1e-6
    return [offset + int(i) for i in np.where(nearer, after, before)]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Members, frames and window selected of one sample.

    Attributes:
        view: the view that selected them.
        members: extensions to be read.
        frames: numbers of the frames, in order (as drawn, with ``time_bins``); repeated where the
            frame rate of the video is lower than that of the view.
        start: of the window, in seconds from the clip's start.
        motion: numbers of the grey frames, in order.
    """

    view: View
    members: tuple[str, ...]
    frames: tuple[int, ...]
    start: float
    motion: tuple[int, ...] = ()

    def decode(self, members: Mapping[str, bytes]) -> dict[str, Any]:
        """Decodes members to arrays.

        Returns:
            ``info``: SampleInfo; ``fbank``: float16 [rows, 128], not padded; ``frames``: uint8
            [frames, height, width, 3]; ``frame_times``: float32 [frames], seconds from the
            window's start; ``motion``: uint8 [T, height, width]; ``waveform``: int16 [samples], not
            padded; ``masks``: uint8 [frames, height, width]; ``masked``: bool [frames], true for
            frames with a mask.

        Raises:
            SampleError: a member is damaged or contradicts the ``json``.
        """
        view = self.view
        info = SampleInfo.from_bytes(members["json"])
        arrays: dict[str, Any] = {"info": info}
        if view.fbank:
            arrays["fbank"] = self._fbank(members["fbank.npy"], info)
        if view.waveform:
            arrays["waveform"] = self._waveform(members["flac"], info)
        if max((*self.frames, *self.motion), default=-1) >= len(info.frame_times):
            raise SampleError("bad_json", "fewer frame_times than frames")
        if self.frames:
            decoded = {
                i: self._frame(members, info, i, view.frame_size)
                for i in dict.fromkeys(self.frames)
            }
            first = decoded[self.frames[0]][None]
            single = len(self.frames) == 1  # the usual case, and a copy saved
            arrays["frames"] = first if single else np.stack([decoded[i] for i in self.frames])
            times = np.array([info.frame_times[i] for i in self.frames], dtype=np.float32)
            arrays["frame_times"] = times - np.float32(self.start)
        if view.motion_size is not None:
            grey = {
                i: self._frame(members, info, i, view.motion_size, grey=True)
                for i in dict.fromkeys(self.motion)
            }
            arrays["motion"] = np.stack([grey[i] for i in self.motion])
        if view.masks:
            arrays["masks"], arrays["masked"] = self._masks(members, info)
        return arrays

    def _fbank(self, data: bytes, info: SampleInfo) -> np.ndarray:
        fbank = sample.decode_fbank(data, info.fbank_frames)
        first = round(self.start * FBANK_RATE)
        return fbank[first : first + self.view.length]

    def _waveform(self, data: bytes, info: SampleInfo) -> np.ndarray:
        seconds = info.duration if self.view.window is None else self.view.window
        samples = round(seconds * SAMPLE_RATE)
        return sample.decode_waveform(data, round(self.start * SAMPLE_RATE), samples)

    def _frame(
        self, members: Mapping[str, bytes], info: SampleInfo, number: int,
        size: tuple[int, int] | None, grey: bool = False,
    ) -> np.ndarray:  # fmt: skip
        """Frame, scaled and cropped to a size: uint8 [height, width, 3], or grey without the 3."""
        min_size = size
        if min_size is not None:  # scaling keeps the aspect ratio and covers the size
            scale = max(min_size[0] / info.frame_size[0], min_size[1] / info.frame_size[1])
            min_size = math.ceil(info.frame_size[0] * scale), math.ceil(info.frame_size[1] * scale)
        data = members[sample.frame_member(number)]
        image = sample.decode_frame(data, info.frame_size, min_size, grey)
        return fit(image, size, GREY_RESAMPLING if grey else Image.Resampling.BILINEAR)

    def _masks(
        self, members: Mapping[str, bytes], info: SampleInfo
    ) -> tuple[np.ndarray, np.ndarray]:
        height, width = self.view.frame_size or info.frame_size
        masks = np.zeros((len(self.frames), height, width), dtype=np.uint8)
        masked = np.zeros(len(self.frames), dtype=bool)
        for index, number in enumerate(self.frames):
            data = members.get(sample.mask_member(number))
            if data is not None:
                mask = sample.decode_mask(data, info.frame_size)
                masks[index] = fit(mask, self.view.frame_size, Image.Resampling.NEAREST)
                masked[index] = True
        return masks, masked


def fit(
    image: np.ndarray, size: tuple[int, int] | None, resampling: Image.Resampling
) -> np.ndarray:
    """Picture scaled to cover a size, and cropped to it in the middle.

    Args:
        image: uint8 [height, width], or [height, width, 3].
        size: (height, width) in pixels; None: as it is.
        resampling: of the scaling.
    """
    if size is None or image.shape[:2] == size:
        return image
    height, width = size
    scale = max(height / image.shape[0], width / image.shape[1])
    scaled_size = round(image.shape[1] * scale), round(image.shape[0] * scale)
    scaled = np.asarray(Image.fromarray(image).resize(scaled_size, resampling))
    top, left = (scaled.shape[0] - height) // 2, (scaled.shape[1] - width) // 2
    return scaled[top : top + height, left : left + width]


def num_waveform_samples(view: View) -> int:
    """Number of 16 kHz samples of a view's waveforms, set by its window or its fbank length."""
    if view.window is not None:
        return round(view.window * SAMPLE_RATE)
    return view.fbank_frames * HOP
