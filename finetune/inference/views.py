"""Views: what a model sees of a window, a region of its frames in the sizes of the model."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cavmae.common.boxes import Box
from cavmae.datasets.mixtures.compositing import GREY
from cavmae.finetune.speaker.model_tensors import MASK_STRIDE


@dataclasses.dataclass(frozen=True)
class Letterbox:
    """Placement of a region of the frame in the input of the model, with black bars.

    Attributes:
        part: top, left, height and width of the region in pixels of the frame.
        inner: top, left, height and width of the region in mask pixels of the input.
        size: (height, width) of the input in mask pixels.
    """

    part: tuple[int, int, int, int]
    inner: tuple[int, int, int, int]
    size: tuple[int, int]

    @classmethod
    def of(cls, box: Box, frame_size: tuple[int, int], model_size: tuple[int, int]) -> "Letterbox":
        """Place a box of the frame.

        Args:
            box: region of the frame.
            frame_size: (height, width) of the frame in pixels.
            model_size: (height, width) of the input of the model in pixels.
        """
        left, right = round(box[0] * frame_size[1]), round(box[2] * frame_size[1])
        top, bottom = round(box[1] * frame_size[0]), round(box[3] * frame_size[0])
        height, width = max(1, bottom - top), max(1, right - left)
        size = model_size[0] // MASK_STRIDE, model_size[1] // MASK_STRIDE
        scale = min(size[0] / height, size[1] / width)
        inner = max(1, round(height * scale)), max(1, round(width * scale))
        place = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
        return cls((top, left, height, width), (*place, *inner), size)

    def crop(self, frames: Tensor) -> Tensor:
        """Crop frames [N, C, h, w] to the region."""
        top, left, height, width = self.part
        return frames[:, :, top : top + height, left : left + width]

    def resize(self, frames: Tensor, size: tuple[int, int]) -> Tensor:
        """Letterbox frames uint8 [N, C, h, w] to uint8 [N, C, *size]; the bars are black."""
        rows, columns = self.place_in(size)
        resized = torch.zeros(*frames.shape[:2], *size, dtype=torch.uint8)
        inner = rows.stop - rows.start, columns.stop - columns.start
        resized[:, :, rows, columns] = functional.interpolate(
            self.crop(frames), inner, mode="bilinear", antialias=True
        )
        return resized

    def place_in(self, size: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of the region in an input of another (height, width)."""
        rows, columns = (
            slice(
                round(self.inner[axis] * size[axis] / self.size[axis]),
                round((self.inner[axis] + self.inner[2 + axis]) * size[axis] / self.size[axis]),
            )
            for axis in (0, 1)
        )
        return rows, columns

    def crop_masks(self, masks: Tensor) -> Tensor:
        """Crop masks [..., *size] of the input to the region."""
        top, left, height, width = self.inner
        return masks[..., top : top + height, left : left + width]

    def map_votes(self, votes: Tensor) -> Tensor:
        """Map votes [2, F, *size] (x, y) from fractions of the input to those of the region."""
        top, left, height, width = self.inner
        across = (self.crop_masks(votes[0]) * self.size[1] - left) / width
        down = (self.crop_masks(votes[1]) * self.size[0] - top) / height
        return torch.stack([across, down])

    def map_box(self, box: Box, frame_size: tuple[int, int]) -> Box:
        """Map a box of the frame to fractions of the input, clipped to the region."""
        top, left, height, width = self.part
        edges = []
        for value, side, begin, extent, axis in (
            (box[0], frame_size[1], left, width, 1), (box[1], frame_size[0], top, height, 0),
            (box[2], frame_size[1], left, width, 1), (box[3], frame_size[0], top, height, 0),
        ):  # fmt: skip
            fraction = min(1.0, max(0.0, (value * side - begin) / extent))
            place, inner = self.inner[axis], self.inner[2 + axis]
            edges.append((place + fraction * inner) / self.size[axis])
        return edges[0], edges[1], edges[2], edges[3]


class KeyView(NamedTuple):
    """A region of a key frame.

    Attributes:
        image: uint8 [3, H, W], the input of the model, with black bars.
        colors: uint8 [3, h, w], the region at the size of its masks.
    """

    image: Tensor
    colors: Tensor


class WindowView(NamedTuple):
    """A region of the frames of a window.

    Attributes:
        box: the region.
        frame_size: (height, width) of the frames in pixels.
        motion: uint8 [T, h', w'], grey frames for the motion pathway.
        key_views: of each key frame.
    """

    box: Box
    frame_size: tuple[int, int]
    motion: Tensor
    key_views: Sequence[KeyView]


@dataclasses.dataclass(frozen=True)
class ViewSizes:
    """Sizes in which a model sees frames.

    Attributes:
        image: (height, width) of key frames.
        motion: (height, width) of grey frames.
    """

    image: tuple[int, int]
    motion: tuple[int, int]

    def letterbox(self, box: Box, frame_size: tuple[int, int]) -> Letterbox:
        """Placement of a region of frames of (height, width)."""
        return Letterbox.of(box, frame_size, self.image)

    def motion_of(self, frame: np.ndarray, box: Box) -> Tensor:
        """Grey frame uint8 [h', w'] of a region of a frame, uint8 [h, w, 3]."""
        letterbox = self.letterbox(box, (frame.shape[0], frame.shape[1]))
        resized = letterbox.resize(_nchw(frame), self.motion).float()[0]
        return (resized * torch.tensor(GREY)[:, None, None]).sum(0).round_().byte()

    def key_of(self, frame: np.ndarray, box: Box) -> KeyView:
        """View of a region of a key frame, uint8 [h, w, 3]."""
        letterbox = self.letterbox(box, (frame.shape[0], frame.shape[1]))
        frame_nchw = _nchw(frame)
        colors = functional.interpolate(
            letterbox.crop(frame_nchw), letterbox.inner[2:], mode="bilinear", antialias=True
        )
        return KeyView(letterbox.resize(frame_nchw, self.image)[0], colors[0])


def _nchw(frame: np.ndarray) -> Tensor:
    """A frame uint8 [h, w, 3] as a batch [1, 3, h, w], without a copy."""
    return torch.from_numpy(frame)[None].permute(0, 3, 1, 2)
