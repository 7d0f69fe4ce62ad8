"""A canvas of several frames that clips and surfaces are pasted onto."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from cavmae.datasets.mixtures.clip_pool import PoolClip
from cavmae.datasets.mixtures.scene_spec import Corner, Place

Size = tuple[int, int]  # height, width

AT_ONCE = 4  # grey frames that are resized together
FINE = 4  # pixels of a drawn polygon per pixel of the canvas, along each side


class PasteCanvas:
    """Frames of a scene under composition, float32 [N, C, height, width] from 0 to 255.

    Args:
        size: (height, width) of the canvas.
        scene: (height, width) that positions refer to.
        count: N, number of frames.
        channels: C.
    """

    def __init__(self, size: Size, scene: Size, count: int, channels: int):
        self.size = size
        self.ratio = size[0] / scene[0], size[1] / scene[1]
        self.pixels = torch.zeros(count, channels, *size)  # [N, C, height, width]

    def size_of(self, clip: PoolClip, place: Place) -> Size:
        """(height, width) of a clip's whole frame on the canvas."""
        height, width = clip.info.frame_size
        return (
            max(1, round(height * place.scale * self.ratio[0])),
            max(1, round(width * place.scale * self.ratio[1])),
        )

    def crop_visible(
        self, frames_nchw: Tensor, clip: PoolClip, place: Place
    ) -> tuple[Tensor, tuple[slice, slice]]:
        """Resizes a clip's frames and crops them to the part that lies on the canvas.

        Args:
            frames_nchw: uint8 [N, C, h, w].

        Returns:
            uint8 [N, C, rows, columns], and the canvas's rows and columns; possibly none.
        """
        height, width = self.size_of(clip, place)
        resized = resize(frames_nchw, (height, width))
        if place.flip:
            resized = resized.flip(-1)
        top, left = round(place.top * self.ratio[0]), round(place.left * self.ratio[1])
        first, last = 0, self.size[1]
        if place.window is not None:
            first, last = (round(x * self.ratio[1]) for x in place.window)
        first_row, last_row = 0, self.size[0]
        if place.rows is not None:
            first_row, last_row = (round(y * self.ratio[0]) for y in place.rows)
        rows = slice(max(first_row, top), max(first_row, top, min(last_row, top + height)))
        columns = slice(max(first, left), max(first, left, min(last, left + width)))
        visible = resized[
            :, :, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ]
        return visible, (rows, columns)

    def paste(
        self, frames_nchw: Tensor, clip: PoolClip, place: Place, alpha: Tensor | None
    ) -> None:
        """Pastes a clip's frames [N, C, h, w] into the scene.

        Args:
            alpha: float [N, 1, rows, columns], opacity of the part on the canvas; None: opaque.
        """
        visible, (rows, columns) = self.crop_visible(frames_nchw, clip, place)
        below = self.pixels[:, :, rows, columns]
        if alpha is None:
            below.copy_(visible)
        else:
            below.lerp_(visible.float(), alpha.expand_as(below))

    def fill(self, plate: Tensor, weights: Tensor | None = None) -> None:
        """Fills the scene with a background plate [3, h, w], centred and cropped.

        Args:
            weights: [3], of the colours on a canvas of one channel; None: it has three.
        """
        scale = max(self.size[0] / plate.shape[1], self.size[1] / plate.shape[2])
        height = max(self.size[0], round(plate.shape[1] * scale))
        width = max(self.size[1], round(plate.shape[2] * scale))
        large = functional.interpolate(plate[None], (height, width), mode="bilinear")[0]
        top, left = (height - self.size[0]) // 2, (width - self.size[1]) // 2
        large = large[:, top : top + self.size[0], left : left + self.size[1]]
        if weights is not None:
            large = (large * weights[:, None, None]).sum(0, keepdim=True)
        self.pixels[:] = large

    def draw_polygon(
        self, outline: Sequence[Corner], surface: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Draws a polygon with a surface [3, h, w], stretched over the polygon's box.

        Args:
            outline: corners, in pixels of the scene that positions refer to.
            weights: as for :meth:`fill`.

        Returns:
            opacity of the canvas's pixels, float32 [height, width] from 0 to 1.
        """
        corners = [(x * self.ratio[1], y * self.ratio[0]) for x, y in outline]
        left, top = (math.floor(min(corner[axis] for corner in corners)) for axis in (0, 1))
        right, bottom = (math.ceil(max(corner[axis] for corner in corners)) for axis in (0, 1))
        height, width = self.size
        rows = slice(min(max(0, top), height), min(max(0, bottom), height))
        columns = slice(min(max(0, left), width), min(max(0, right), width))
        opacity = torch.zeros(height, width)
        visible = rows.stop - rows.start, columns.stop - columns.start
        if 0 in visible:
            return opacity
        if weights is not None:
            surface = (surface * weights[:, None, None]).sum(0, keepdim=True)
        # Only the visible part of the surface is stretched: outlines may be far larger.
        down, across = surface.shape[1] / (bottom - top), surface.shape[2] / (right - left)
        part = surface[
            :,
            pixel_range((rows.start - top) * down, (rows.stop - top) * down, surface.shape[1]),
            pixel_range(
                (columns.start - left) * across, (columns.stop - left) * across, surface.shape[2]
            ),
        ]
        stretched = functional.interpolate(part[None], visible, mode="bilinear", antialias=True)
        # Pillow draws polygons without soft edges: four times as large, and reduced.
        image = Image.new("L", (visible[1] * FINE, visible[0] * FINE))
        ImageDraw.Draw(image).polygon(
            [((x - columns.start) * FINE, (y - rows.start) * FINE) for x, y in corners], fill=255
        )
        inside = torch.from_numpy(np.array(image.reduce(FINE))).float() / 255
        opacity[rows, columns] = inside
        self.pixels[:, :, rows, columns].lerp_(
            stretched.expand(len(self.pixels), -1, -1, -1), inside
        )
        return opacity


def pixel_range(first: float, end: float, count: int) -> slice:
    """Whole pixels nearest to a range within ``count`` of them, at least one."""
    start = min(max(0, round(first)), count - 1)
    return slice(start, max(start + 1, min(count, round(end))))


def resize(frames_nchw: Tensor, size: Size) -> Tensor:
    """Resizes frames uint8 [N, C, h, w] to a (height, width)."""
    count, channels = frames_nchw.shape[:2]
    if channels > 1 or count % AT_ONCE:
        return functional.interpolate(frames_nchw, size, mode="bilinear", antialias=True)
    # torch computes four channels for any number of channels: four grey frames as channels of one
    # frame give the same bytes in a third of the time.
    packed = frames_nchw.contiguous().view(-1, AT_ONCE, *frames_nchw.shape[2:])
    resized = functional.interpolate(packed, size, mode="bilinear", antialias=True)
    return resized.view(count, 1, *size)
