"""Geometry from coded to stored frames: square pixels, rotation, resizing, cropping."""

import dataclasses

import numpy as np
from PIL import Image

from cavmae.datasets.format.sample import MAX_SIDE
from cavmae.datasets.media.container import MediaError
from cavmae.datasets.media.probe import Probe


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Mapping from a video's coded frames to stored frames.

    Attributes:
        resized: (height, width) that the decoder scales to, before rotation.
        rotation: degrees counter-clockwise: 0, 90, 180 or 270.
        size: (height, width) of the stored frame, a central crop.
        mirrored: left and right are swapped before the rotation.
    """

    resized: tuple[int, int]
    rotation: int
    size: tuple[int, int]
    mirrored: bool = False

    def finish(self, frame: np.ndarray) -> np.ndarray:
        """Mirrors, rotates and crops a frame [*resized, ...] to [*size, ...]."""
        if self.mirrored:
            frame = frame[:, ::-1]
        frame = np.rot90(frame, self.rotation // 90)
        height, width = self.size
        top, left = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
        return frame[top : top + height, left : left + width]

    def mask(self, mask: Image.Image, display: tuple[int, int]) -> np.ndarray:
        """Maps a mask of the video's frame to a mask of the stored frame.

        Args:
            mask: as displayed or as coded; the two differ only for rotated and mirrored videos.
            display: (height, width) of the frame as displayed.
        """
        height, width = self.resized
        if (mask.height, mask.width) == display:  # undo what finish() does
            if self.rotation:
                mask = mask.rotate(-self.rotation, Image.Resampling.NEAREST, expand=True)
            if self.mirrored:
                mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        scaled = mask.resize((width, height), Image.Resampling.NEAREST)
        return self.finish(np.asarray(scaled).astype(np.uint8))


def geometry(probe: Probe, shorter_side: int, crop: str) -> Geometry:
    """Geometry that scales the shorter displayed side to ``shorter_side`` pixels.

    Args:
        crop: ``square``: a central square; ``patches``: both sides are cropped to multiples of
            16, so that a frame is whole patches of 16x16.

    Raises:
        MediaError: ``bad_size``: frames are too large to store.
    """
    height, width = probe.display
    scale = shorter_side / min(height, width)
    upright = max(shorter_side, round(height * scale)), max(shorter_side, round(width * scale))
    if crop == "square":
        size = (shorter_side, shorter_side)
    else:
        size = (max(16, upright[0] // 16 * 16), max(16, upright[1] // 16 * 16))
    if max(size) > MAX_SIDE:
        raise MediaError("bad_size", f"frames of {size[1]}x{size[0]} pixels are too large to store")
    return cut_from(probe, upright, size)


def cut_from(probe: Probe, upright: tuple[int, int], size: tuple[int, int]) -> Geometry:
    """Geometry of a resize to ``upright`` and a central crop to ``size``.

    Args:
        upright, size: (height, width) in pixels, as displayed.
    """
    resized = (upright[1], upright[0]) if probe.rotation % 180 else upright
    return Geometry(resized, probe.rotation, size, probe.mirrored)


def fit_inside(shape: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """Largest (height, width) of the given shape inside a box, both in pixels."""
    scale = min(box[0] / shape[0], box[1] / shape[1])
    return (
        min(box[0], max(1, round(shape[0] * scale))),
        min(box[1], max(1, round(shape[1] * scale))),
    )
