"""What training sees of a sample: which members are read, and what becomes of them.

A :class:`View` is asked twice: which members a visit to a sample needs (only those are read from
the shard), and later, when the sample leaves the shuffle buffer, for the arrays. All chance in it
comes from the visit's own generator, so a resumed stream shows the same.
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
from cavmae.datasets.stream.features import FRAME_RATE, HOP, SAMPLE_RATE, SILENCE

GRID = 25  # Hz: windows begin on this grid, so 4 fbank frames and 640 samples apart


@dataclasses.dataclass(frozen=True)
class View:
    """What is read of each sample.

    Args:
        fbank: give the log-mel filter bank.
        fbank_frames: its length; shorter ones are padded, longer ones cut. With a window the
            window sets the length.
        padding: ``zero`` as the CAV-MAE reference pads (before normalising), ``silence`` with what
            digital silence gives.
        frames: ``random`` one of the clip, the ``middle`` one, ``all``, ``none``, or a number of
            them, evenly spaced. With a window, ``all`` is one for each 1/25 s of it.
        moments: draw the (number of) frames from the middles of so many equal parts of the window,
            in random order and no part twice; None: evenly spaced, in order of time.
        window: length in seconds of the part of the clip that is shown; None: the whole clip.
            Sound, frames and masks are of exactly that part.
        random_window: begin it anywhere (training), or in the middle (evaluation).
        waveform: give the 16 kHz waveform.
        masks: give the masks of the frames.
        frame_size: (height, width) to scale and crop frames and masks to; None: as stored, which
            must then be the same for all samples of a batch.
    """

    fbank: bool = True
    fbank_frames: int = 1024
    padding: Literal["zero", "silence"] = "zero"
    frames: Literal["random", "middle", "all", "none"] | int = "random"
    moments: int | None = None
    window: float | None = None
    random_window: bool = True
    waveform: bool = False
    masks: bool = False
    frame_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.frames, int) and self.frames < 1:
            raise UsageError(f"frames {self.frames}: the number of frames must be at least 1.")
        if self.window is not None and round(self.window * GRID, 6) % 1:
            raise UsageError(f"window {self.window}: must be a multiple of {1 / GRID} s.")
        if self.moments is not None and (
            self.window is None
            or not isinstance(self.frames, int)
            or not self.frames <= self.moments
        ):
            raise UsageError(
                f"moments {self.moments}: needs a window, and a number of frames that is not more."
            )
        if self.masks and self.frames == "none":
            raise UsageError("masks need frames: set frames to random, middle, all or a number.")

    @property
    def length(self) -> int:
        """Number of fbank frames shown."""
        return self.fbank_frames if self.window is None else round(self.window * FRAME_RATE)

    @property
    def padding_value(self) -> float:
        """Log-mel value of fbank frames that a clip does not have."""
        return 0.0 if self.padding == "zero" else SILENCE

    @property
    def needs_info(self) -> bool:
        """Whether members cannot be chosen without the sample's ``json``."""
        return self.window is not None

    def choose(
        self, names: Sequence[str], info: SampleInfo | None, chance: random.Random
    ) -> "Choice":
        """Decides what a visit shows.

        Args:
            names: extensions of the sample's members.
            info: of the sample, if :attr:`needs_info`.
            chance: of this visit.
        """
        count = sum(name.endswith(".jpg") for name in names)
        start = 0.0
        if self.window is None:
            frames = self._of_clip(count, chance)
        else:
            assert info is not None
            steps = max(0, int((info.duration - self.window) * GRID + 1e-6))
            step = chance.randrange(steps + 1) if self.random_window else steps // 2
            start = step / GRID
            frames = self._of_window(info, start, chance)
        members = ["json"]
        members += ["fbank.npy"] if self.fbank else []
        members += ["flac"] if self.waveform else []
        members += [sample.frame_member(i) for i in sorted(set(frames))]
        if self.masks:
            available = set(names)
            masks = [sample.mask_member(i) for i in sorted(set(frames))]
            members += [name for name in masks if name in available]
        return Choice(self, tuple(members), tuple(frames), start)

    def _of_clip(self, count: int, chance: random.Random) -> list[int]:
        if self.frames == "none":
            return []
        if count == 0:
            raise SampleError("missing_member", "no frames")
        if self.frames == "random":
            return [chance.randrange(count)]
        if self.frames == "middle":
            return [count // 2]
        if self.frames == "all":
            return list(range(count))
        return [int((i + 0.5) * count / self.frames) for i in range(self.frames)]

    def _of_window(self, info: SampleInfo, start: float, chance: random.Random) -> list[int]:
        assert self.window is not None
        if self.frames == "none":
            return []
        if self.frames == "all":
            times = start + np.arange(round(self.window * GRID)) / GRID
        elif self.frames == "random":
            times = np.array([start + chance.random() * self.window])
        else:
            number = 1 if self.frames == "middle" else self.frames
            parts = self.moments or number
            drawn = chance.sample(range(parts), number) if self.moments else range(number)
            times = start + (np.array(drawn) + 0.5) * self.window / parts
        stored = np.array(info.frame_times)
        inside = (stored >= start - 0.5 / GRID) & (stored < start + self.window)
        offset = 0
        if inside.any():  # else the nearest of all
            offset = int(np.flatnonzero(inside)[0])
            stored = stored[inside]
        after = np.clip(np.searchsorted(stored, times), 1, max(1, len(stored) - 1))
        before = after - 1
        after = np.minimum(after, len(stored) - 1)
        nearer = np.abs(stored[after] - times) < np.abs(stored[before] - times) - 1e-6
        return [offset + int(i) for i in np.where(nearer, after, before)]


@dataclasses.dataclass(frozen=True)
class Choice:
    """What one visit to a sample shows.

    Attributes:
        view: whose choice this is.
        members: extensions to be read.
        frames: numbers of the frames, in order (as drawn, with ``moments``); repeated where the
            video is slower than asked.
        start: of the window, in seconds from the clip's start.
    """

    view: View
    members: tuple[str, ...]
    frames: tuple[int, ...]
    start: float

    def decode(self, members: Mapping[str, bytes]) -> dict[str, Any]:
        """Arrays of the visit.

        Returns:
            ``info``: SampleInfo; ``fbank``: float16 [rows, 128], not padded; ``frames``: uint8
            [frames, height, width, 3]; ``frame_times``: float32 [frames], seconds from the
            window's start; ``waveform``: int16 [samples], not padded; ``masks``: uint8
            [frames, height, width]; ``masked``: bool [frames], which frames have a mask.

        Raises:
            SampleError: a member is not what it should be.
        """
        view = self.view
        info = SampleInfo.from_bytes(members["json"])
        shown: dict[str, Any] = {"info": info}
        if view.fbank:
            shown["fbank"] = self._fbank(members["fbank.npy"], info)
        if view.waveform:
            shown["waveform"] = self._waveform(members["flac"], info)
        if self.frames:
            if max(self.frames) >= len(info.frame_times):
                raise SampleError("bad_json", "fewer frame_times than frames")
            pictures = {i: self._picture(members, info, i) for i in dict.fromkeys(self.frames)}
            first = pictures[self.frames[0]][None]
            alone = len(self.frames) == 1  # the usual case, and a copy saved
            shown["frames"] = first if alone else np.stack([pictures[i] for i in self.frames])
            times = np.array([info.frame_times[i] for i in self.frames], dtype=np.float32)
            shown["frame_times"] = times - np.float32(self.start)
        if view.masks:
            shown["masks"], shown["masked"] = self._masks(members, info)
        return shown

    def _fbank(self, data: bytes, info: SampleInfo) -> np.ndarray:
        fbank = sample.decode_fbank(data, info.fbank_frames)
        first = round(self.start * FRAME_RATE)
        return fbank[first : first + self.view.length]

    def _waveform(self, data: bytes, info: SampleInfo) -> np.ndarray:
        seconds = info.duration if self.view.window is None else self.view.window
        wanted = round(seconds * SAMPLE_RATE)
        return sample.decode_waveform(data, round(self.start * SAMPLE_RATE), wanted)

    def _picture(self, members: Mapping[str, bytes], info: SampleInfo, number: int) -> np.ndarray:
        enough = self.view.frame_size
        if enough is not None:  # scaling keeps the shape and covers frame_size
            scale = max(enough[0] / info.frame_size[0], enough[1] / info.frame_size[1])
            enough = math.ceil(info.frame_size[0] * scale), math.ceil(info.frame_size[1] * scale)
        data = members[sample.frame_member(number)]
        return self._fit(sample.decode_frame(data, info.frame_size, enough))

    def _fit(self, picture: np.ndarray) -> np.ndarray:
        """Scales and crops a frame or a mask to ``frame_size``."""
        size = self.view.frame_size
        if size is None or picture.shape[:2] == size:
            return picture
        height, width = size
        scale = max(height / picture.shape[0], width / picture.shape[1])
        scaled = round(picture.shape[1] * scale), round(picture.shape[0] * scale)
        labels = picture.ndim == 2
        how = Image.Resampling.NEAREST if labels else Image.Resampling.BILINEAR
        image = np.asarray(Image.fromarray(picture).resize(scaled, how))
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        return image[top : top + height, left : left + width]

    def _masks(
        self, members: Mapping[str, bytes], info: SampleInfo
    ) -> tuple[np.ndarray, np.ndarray]:
        height, width = self.view.frame_size or info.frame_size
        masks = np.zeros((len(self.frames), height, width), dtype=np.uint8)
        masked = np.zeros(len(self.frames), dtype=bool)
        for place, number in enumerate(self.frames):
            data = members.get(sample.mask_member(number))
            if data is not None:
                masks[place] = self._fit(sample.decode_mask(data, info.frame_size))
                masked[place] = True
        return masks, masked


def samples_in(view: View) -> int:
    """16 kHz samples of the part a view shows: fixed by its window, or by its fbank length."""
    if view.window is not None:
        return round(view.window * SAMPLE_RATE)
    return view.fbank_frames * HOP
