"""Overlay: frames of a recording with all people outlined and numbered."""

import functools
from collections.abc import Collection, Mapping

import numpy as np
from contourpy import contour_generator
from PIL import Image, ImageDraw, ImageFont

from cavmae.datasets.media.planes import pack, planes_of, yuv_of
from cavmae.finetune.inference.mask_tracks import THRESHOLD, MaskRegion

# Palette of Okabe and Ito, safe for colour-blind viewers.
PALETTE = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167),
)  # fmt: skip
TINT = 0.3  # opacity of the color over a person who speaks
STEPS = 1, 2  # pixels of luma per pixel of luma and of chroma
CONTOUR_STRIDE = 4  # pixels between the values that outlines are interpolated from


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
    planes = [Image.fromarray(plane) for plane in planes_of(frame)]
    size = planes[0].size
    for number, region in regions.items():
        line_width = max(1, round(min(size) / (120 if number in speaking else 240)))
        lines = outlines(region)
        for plane, value, step in zip(planes, _values(color_of(number)), STEPS, strict=True):
            if number in speaking:
                _tint(plane, region, value, step)
            pen = ImageDraw.Draw(plane)
            for line in lines:
                # The middle of a pixel of chroma is the corner of four of luma.
                points = (line + 0.5) / step - 0.5
                pen.line(points.flatten().tolist(), value, -(-line_width // step))
    for number, region in regions.items():
        _draw_label(planes, region, *_label(number, size))
    luma, chroma = (np.asarray(plane) for plane in planes)
    return pack(luma, chroma)


def _values(color: tuple[int, int, int]) -> tuple[int | tuple[int, int], ...]:
    """Values of a color in luma and in chroma."""
    y, u, v = yuv_of(np.array(color)).tolist()
    return y, (u, v)


def outlines(region: MaskRegion) -> list[np.ndarray]:
    """Closed outlines of a mask: float [points, 2], x and y in pixels of the frame.

    Found where the interpolated values, with nothing around the region, cross the threshold.
    """
    values = region.values[::CONTOUR_STRIDE, ::CONTOUR_STRIDE]
    padded = np.pad(values, 1)
    lines = contour_generator(z=padded, name="serial").lines(THRESHOLD)
    offset = np.array([region.left, region.top]) - CONTOUR_STRIDE
    return [line * CONTOUR_STRIDE + offset for line in lines]


def _tint(plane: Image.Image, region: MaskRegion, value: int | tuple[int, int], step: int) -> None:
    """Tint a region of a plane that has every ``step``-th pixel."""
    top, left = -(-region.top // step), -(-region.left // step)
    mask = region.mask[top * step - region.top :: step, left * step - region.left :: step]
    if not mask.size:
        return
    box = (left, top, left + mask.shape[1], top + mask.shape[0])
    part = plane.crop(box)
    tinted = Image.blend(part, Image.new(part.mode, part.size, value), TINT)
    plane.paste(tinted, box, Image.fromarray(np.ascontiguousarray(mask)))


@functools.lru_cache(maxsize=64)
def _label(number: int, size: tuple[int, int]) -> tuple[list[Image.Image], list[Image.Image]]:
    """Disc with the number of a person, for frames of a size: its planes, and their opacities."""
    side = max(18, round(min(size) / 24) * 2)
    image = Image.new("RGBA", (side, side))
    pen = ImageDraw.Draw(image)
    color = color_of(number)
    pen.ellipse((0, 0, side - 1, side - 1), fill=(*color, 255), outline=(0, 0, 0, 255))
    dark = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] < 110
    font = ImageFont.load_default(size=side * 0.62)
    ink = (255, 255, 255, 255) if dark else (0, 0, 0, 255)
    pen.text((side / 2, side / 2), str(number), fill=ink, font=font, anchor="mm")
    yuv = yuv_of(np.asarray(image.convert("RGB")))
    planes = [Image.fromarray(yuv[..., 0]), Image.fromarray(yuv[..., 1:]).reduce(STEPS[1])]
    return planes, [image.getchannel("A").reduce(step) for step in STEPS]


def _draw_label(
    planes: list[Image.Image],
    region: MaskRegion,
    label: list[Image.Image],
    opacity: list[Image.Image],
) -> None:
    """Draw a label at the top of a mask."""
    mask = region.mask
    # Narrow rows are skipped: a speck above a head is not its top.
    widths = mask.sum(1)
    if not widths.any():
        return
    rows = np.flatnonzero(widths > 0.2 * widths.max())
    columns = np.flatnonzero(mask[rows[0] : rows[0] + max(1, len(rows) // 10)].any(0))
    side, (width, height) = label[0].width, planes[0].size
    top = min(max(0, region.top + int(rows[0]) - side // 2), height - side)
    left = min(max(0, region.left + int(columns.mean()) - side // 2), width - side)
    if top >= 0 and left >= 0:  # else the frame is smaller than the label
        for plane, part, alpha, step in zip(planes, label, opacity, STEPS, strict=True):
            plane.paste(part, (left // step, top // step), alpha)
