"""Overlay: frames of a recording with all people outlined and numbered."""

import functools
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cavmae.datasets.media.planes import planes_of, yuv_of
from cavmae.finetune.inference.mask_tracks import MaskRegion

# Palette of Okabe and Ito, safe for colour-blind viewers.
PALETTE = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167),
)  # fmt: skip
SHIFT = 7
OPAQUE = 1 << SHIFT  # products of opacities and differences of 8-bit values fit into int16
TINT = round(0.3 * OPAQUE)  # opacity of the color over a person who speaks
DIAGONAL = 0.7  # rows and columns of a diagonal of length 1


class _Label(NamedTuple):
    """Disc with the number of a person: values, int16, and their opacities, uint8, 0 to OPAQUE.

    Attributes:
        luma, luma_opacity: [s, s], of an even side.
        chroma, chroma_opacity: [s / 2, s], as in packed frames.
    """

    luma: np.ndarray
    luma_opacity: np.ndarray
    chroma: np.ndarray
    chroma_opacity: np.ndarray


def color_of(number: int) -> tuple[int, int, int]:
    """Color of the outline of a person; seven colors repeat."""
    return PALETTE[(number - 1) % len(PALETTE)]


def draw_people(
    frame: np.ndarray, regions: Mapping[int, MaskRegion], speaking: Collection[int]
) -> np.ndarray:
    """Frame with people outlined and numbered; those who speak have a thicker line and a tint.

    Args:
        frame: packed YUV of :mod:`~cavmae.datasets.media.planes`, uint8 [1.5 h, w].
        regions: masks by the number of the person, in pixels of luma.
        speaking: numbers of the people who speak.

    Returns:
        a packed frame.
    """
    drawn = frame.copy()
    size = planes_of(frame)[0].shape
    for number, region in regions.items():
        speaks = number in speaking
        line_width = max(1, round(min(size) / (120 if speaks else 240)))
        _draw_mask(drawn, region, color_of(number), line_width, TINT if speaks else 0)
    for number, region in regions.items():
        _draw_label(drawn, region, _label(number, size))
    return drawn


def _draw_mask(
    frame: np.ndarray,
    region: MaskRegion,
    color: tuple[int, int, int],
    line_width: int,
    tint: int,
) -> None:
    """Outline and tint a mask in place."""
    top, left = region.top % 2, region.left % 2
    rows, columns = region.mask.shape
    # Bounds of whole pixels of chroma.
    mask = np.pad(region.mask, ((top, (top + rows) % 2), (left, (left + columns) % 2)))
    opacity = outline(mask, line_width) * np.uint8(OPAQUE - tint)
    if tint:
        opacity += mask * np.uint8(tint)
    # A pixel of chroma, a pair of values, is as opaque as the most opaque of its four of luma.
    pairs = np.maximum(opacity[::2], opacity[1::2])
    pairs[:, ::2] = pairs[:, 1::2] = np.maximum(pairs[:, ::2], pairs[:, 1::2])
    y, u, v = yuv_of(np.array(color)).astype(np.int16)
    luma, chroma = _parts(frame, region.top - top, region.left - left, mask.shape)
    _blend(luma, y, opacity)
    _blend(chroma, np.tile([u, v], mask.shape[1] // 2), pairs)


def outline(mask: np.ndarray, line_width: int) -> np.ndarray:
    """Pixels of a mask that are near its edge; around the array is nothing.

    Args:
        mask: bool [h, w].
        line_width: in pixels.

    Returns:
        bool [h, w].
    """
    inner = np.pad(mask, line_width)
    # By small steps first, which close the gaps between the eight directions of larger ones.
    width_left, step = line_width, 1
    while width_left:
        step = min(step, width_left)
        inner = _eroded(inner, step)
        width_left, step = width_left - step, step * 2
    line: np.ndarray = mask ^ inner
    return line


def _eroded(mask: np.ndarray, distance: int) -> np.ndarray:
    """Pixels that are in a mask, as are those at a distance in eight directions.

    Args:
        mask: bool [h, w].
        distance: in pixels.

    Returns:
        bool [h - 2 distance, w - 2 distance], without the margin.
    """
    height, width = (side - 2 * distance for side in mask.shape)
    diagonal = round(DIAGONAL * distance)
    inner = mask[distance : distance + height, distance : distance + width].copy()
    for row, column in (
        (0, distance), (0, -distance), (distance, 0), (-distance, 0),
        (diagonal, diagonal), (diagonal, -diagonal), (-diagonal, diagonal), (-diagonal, -diagonal),
    ):  # fmt: skip
        top, left = distance + row, distance + column
        inner &= mask[top : top + height, left : left + width]
    return inner


def _parts(
    frame: np.ndarray, top: int, left: int, size: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Luma and chroma of a part of a packed frame, whose bounds are even."""
    luma, chroma = planes_of(frame)
    bottom, columns = top + size[0], slice(left, left + size[1])
    return luma[top:bottom, columns], chroma[top // 2 : bottom // 2, columns]


def _blend(plane: np.ndarray, values: np.ndarray, opacity: np.ndarray) -> None:
    """Blend values into a plane, in place.

    Args:
        plane: uint8 [h, w].
        values: int16, broadcast to [h, w].
        opacity: uint8 [h, w], 0 to OPAQUE.
    """
    difference = np.subtract(values, plane, dtype=np.int16)
    difference *= opacity
    difference >>= SHIFT
    plane += difference.astype(np.uint8)  # negative ones modulo 256, as their sum


@functools.lru_cache(maxsize=64)
def _label(number: int, size: tuple[int, ...]) -> _Label:
    """Label of a person in frames of a size."""
    side = max(18, round(min(size) / 24) * 2)
    image = Image.new("RGBA", (side, side))
    pen = ImageDraw.Draw(image)
    color = color_of(number)
    pen.ellipse((0, 0, side - 1, side - 1), fill=(*color, 255), outline=(0, 0, 0, 255))
    dark = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] < 110
    font = ImageFont.load_default(size=side * 0.62)
    ink = (255, 255, 255, 255) if dark else (0, 0, 0, 255)
    pen.text((side / 2, side / 2), str(number), fill=ink, font=font, anchor="mm")
    rgb, alpha = image.convert("RGB"), image.getchannel("A")
    luma, chroma = yuv_of(np.asarray(rgb))[..., 0], yuv_of(np.asarray(rgb.reduce(2)))[..., 1:]
    return _Label(
        luma.astype(np.int16),
        _opacity(alpha),
        chroma.reshape(side // 2, side).astype(np.int16),
        np.repeat(_opacity(alpha.reduce(2)), 2, axis=1),
    )


def _opacity(alpha: Image.Image) -> np.ndarray:
    return np.rint(np.asarray(alpha) * (OPAQUE / 255)).astype(np.uint8)


def _draw_label(frame: np.ndarray, region: MaskRegion, label: _Label) -> None:
    """Draw a label at the top of a mask, in place."""
    mask = region.mask
    # Narrow rows are skipped: a speck above a head is not its top.
    widths = mask.view(np.uint8).sum(1, dtype=np.uint16)  # bool is summed at a third of the speed
    if not widths.any():
        return
    rows = np.flatnonzero(widths > 0.2 * widths.max())
    columns = np.flatnonzero(mask[rows[0] : rows[0] + max(1, len(rows) // 10)].any(0))
    side, (height, width) = len(label.luma), planes_of(frame)[0].shape
    top = min(max(0, region.top + int(rows[0]) - side // 2), height - side) // 2 * 2
    left = min(max(0, region.left + int(columns.mean()) - side // 2), width - side) // 2 * 2
    if top >= 0 and left >= 0:  # else the frame is smaller than the label
        luma, chroma = _parts(frame, top, left, label.luma.shape)
        _blend(luma, label.luma, label.luma_opacity)
        _blend(chroma, label.chroma, label.chroma_opacity)
