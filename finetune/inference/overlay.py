"""Overlay: frames of a recording with all people outlined and numbered."""

import functools
from collections.abc import Collection, Mapping

import numpy as np
from contourpy import contour_generator
from PIL import Image, ImageDraw, ImageFont

from cavmae.finetune.inference.mask_tracks import THRESHOLD, MaskRegion

# Palette of Okabe and Ito, safe for colour-blind viewers.
PALETTE = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167),
)  # fmt: skip
TINT = 0.3  # opacity of the color over a person who speaks
CONTOUR_STRIDE = 4  # pixels between the values that outlines are interpolated from


def color_of(number: int) -> tuple[int, int, int]:
    """Color of the outline of a person; seven colors repeat."""
    return PALETTE[(number - 1) % len(PALETTE)]


def draw_people(
    frame: np.ndarray, regions: Mapping[int, MaskRegion], speaking: Collection[int]
) -> np.ndarray:
    """Frame with people outlined and numbered; those who speak have a thicker line and a tint.

    Args:
        frame: uint8 RGB [height, width, 3].
        regions: masks by the number of the person.
        speaking: numbers of the people who speak.
    """
    image = Image.fromarray(frame)
    for number, region in regions.items():
        if number in speaking:
            _tint(image, region, color_of(number))
        line_width = max(1, round(min(image.size) / (120 if number in speaking else 240)))
        pen = ImageDraw.Draw(image)
        for line in outlines(region):
            pen.line(line.flatten().tolist(), color_of(number), line_width)
    for number, region in regions.items():
        _draw_label(image, region, _label(number, image.size))
    return np.asarray(image)


def outlines(region: MaskRegion) -> list[np.ndarray]:
    """Closed outlines of a mask: float [points, 2], x and y in pixels of the frame.

    Found where the interpolated values, with nothing around the region, cross the threshold.
    """
    values = region.values[::CONTOUR_STRIDE, ::CONTOUR_STRIDE]
    padded = np.pad(values, 1)
    lines = contour_generator(z=padded, name="serial").lines(THRESHOLD)
    offset = np.array([region.left, region.top]) - CONTOUR_STRIDE
    return [line * CONTOUR_STRIDE + offset for line in lines]


def _tint(image: Image.Image, region: MaskRegion, color: tuple[int, int, int]) -> None:
    height, width = region.values.shape
    box = (region.left, region.top, region.left + width, region.top + height)
    part = image.crop(box)
    tinted = Image.blend(part, Image.new("RGB", part.size, color), TINT)
    image.paste(tinted, box, Image.fromarray(region.mask))


@functools.lru_cache(maxsize=64)
def _label(number: int, size: tuple[int, int]) -> Image.Image:
    """Disc with the number of a person, RGBA, for frames of a size."""
    side = max(18, round(min(size) / 12))
    image = Image.new("RGBA", (side, side))
    pen = ImageDraw.Draw(image)
    color = color_of(number)
    pen.ellipse((0, 0, side - 1, side - 1), fill=(*color, 255), outline=(0, 0, 0, 255))
    dark = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] < 110
    font = ImageFont.load_default(size=side * 0.62)
    ink = (255, 255, 255, 255) if dark else (0, 0, 0, 255)
    pen.text((side / 2, side / 2), str(number), fill=ink, font=font, anchor="mm")
    return image


def _draw_label(image: Image.Image, region: MaskRegion, label: Image.Image) -> None:
    """Draw a label at the top of a mask."""
    mask = region.mask
    # Narrow rows are skipped: a speck above a head is not its top.
    widths = mask.sum(1)
    if not widths.any():
        return
    rows = np.flatnonzero(widths > 0.2 * widths.max())
    columns = np.flatnonzero(mask[rows[0] : rows[0] + max(1, len(rows) // 10)].any(0))
    side = label.width
    top = min(max(0, region.top + int(rows[0]) - side // 2), image.height - side)
    left = min(max(0, region.left + int(columns.mean()) - side // 2), image.width - side)
    if top >= 0 and left >= 0:  # else the frame is smaller than the label
        image.paste(label, (left, top), label)
