"""The second pass over a recording: mask videos, and the video with everybody outlined."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional

from cavmae.common.progress import Progress
from cavmae.datasets.media import Probe
from cavmae.datasets.media.geometry import Geometry, cut_from
from cavmae.datasets.media.playback import RATE, Playback
from cavmae.datasets.media.writing import VideoWriter, Wave
from cavmae.datasets.mixtures.compositing import dilate
from cavmae.finetune.inference.audio import Span
from cavmae.finetune.inference.first_pass import FirstPass, Sighting
from cavmae.finetune.inference.overlap_add import CrossfadeWeights
from cavmae.finetune.inference.predictor import Box
from cavmae.finetune.inference.tracker import between

# Okabe and Ito's colours, told apart by colour-blind eyes, too.
PALETTE = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167),
)  # fmt: skip
TINT = 0.3  # of a colour over a person who speaks
KEPT = (np.arange(256) * (1 - TINT)).astype(np.uint8)  # of each value under a tint
QUALITY = {"overlay": 23.0, "mask": 20.0}  # x264's CRF
AT_ONCE = 25  # frames that are read together


class Shown(NamedTuple):
    """Somebody in a frame: where their mask lies, and its values there.

    Attributes:
        rows, columns: of the picture.
        mask: float32 [rows, columns], 0 to 1.
    """

    rows: slice
    columns: slice
    mask: np.ndarray


class Masks:
    """Somebody's mask at every frame: the weighted mean of what windows say.

    Args:
        found: of the first pass.
        sightings: of the person.
    """

    def __init__(self, found: FirstPass, sightings: Sequence[Sighting]):
        self._found = found
        self._sightings = {sighting.window: sighting for sighting in sightings}
        self._weights = CrossfadeWeights(found.starts, found.length)
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # masks and weights of windows

    def at(self, frame: int, size: tuple[int, int]) -> list[Shown]:
        """What windows say of a frame, in a picture of a size; it adds up."""
        starts, length = self._found.starts, self._found.length
        first = int(np.searchsorted(starts, frame - length, side="right"))
        last = int(np.searchsorted(starts, frame, side="right"))
        windows = [w for w in range(first, last) if w in self._sightings]
        self._kept = {w: m for w, m in self._kept.items() if w >= first}
        shown = []
        for window in windows:
            sighting = self._sightings[window]
            if window not in self._kept:
                self._kept[window] = self._found.masks(sighting), self._weights.of(window)
            masks, weights = self._kept[window]
            place = frame - starts[window]
            value = between(masks, np.array([place]), self._found.keys)[0]
            shown.append(_placed(value * weights[place], sighting.box, size))
        return shown


def _placed(mask: np.ndarray, box: Box, size: tuple[int, int]) -> Shown:
    """A mask of a box at a picture's size, cut to where there is anything."""
    top, bottom = round(box[1] * size[0]), max(round(box[3] * size[0]), round(box[1] * size[0]) + 1)
    left, right = round(box[0] * size[1]), max(round(box[2] * size[1]), round(box[0] * size[1]) + 1)
    large = functional.interpolate(
        torch.from_numpy(mask)[None, None], (bottom - top, right - left), mode="bilinear"
    )[0, 0].numpy()
    rows, columns = slice(top, min(bottom, size[0])), slice(left, min(right, size[1]))
    return Shown(rows, columns, large[: rows.stop - top, : columns.stop - left])


def _whole(parts: Sequence[Shown], size: tuple[int, int]) -> np.ndarray:
    """bool [height, width], what parts say together."""
    found = np.zeros(size, dtype=np.float32)
    for part in parts:
        found[part.rows, part.columns] += part.mask
    whole: np.ndarray = found > 0.5
    return whole


def display_geometry(info: Probe, height: int) -> Geometry:
    """Frames of written videos: as shown, at most so high, sides even."""
    scale = min(1.0, height / info.display[0])
    rows, columns = (max(2, round(side * scale / 2) * 2) for side in info.display)
    return cut_from(info, (rows, columns), (rows, columns))


def second_pass(
    info: Probe,
    found: FirstPass,
    people: Mapping[int, Sequence[Sighting]],
    spans: Mapping[int, Sequence[Span]],
    sound: Wave,
    overlay: Path | None,
    masks: Mapping[int, Path],
    height: int,
) -> None:
    """Writes the videos, one after the other: however many people there are, one file is open.

    Args:
        people: sightings of those who are shown, by number.
        spans: when they speak.
        sound: of the overlay.
        overlay: file of the video with everybody outlined; None: it is not written.
        masks: files of mask videos by number.
    """
    geometry = display_geometry(info, height)
    seconds = -(-found.frames // AT_ONCE)
    with Progress(seconds * (len(masks) + (overlay is not None)), "second of video") as progress:
        for number, path in masks.items():
            _write_masks(path, Masks(found, people[number]), found.frames, geometry.size, progress)
        if overlay is not None:
            with Playback(info, geometry) as playing:
                _write_overlay(
                    overlay, playing, geometry.size, found, people, spans, sound, progress
                )


def _write_masks(
    path: Path, masks: Masks, frames: int, size: tuple[int, int], progress: Progress
) -> None:
    with VideoWriter(path, size[::-1], RATE, QUALITY["mask"], None) as film:
        for frame in range(frames):
            film.write(frame, _whole(masks.at(frame, size), size).astype(np.uint8) * 255)
            if frame % AT_ONCE == 0:
                progress.done()


def _write_overlay(
    path: Path,
    playing: Playback,
    size: tuple[int, int],
    found: FirstPass,
    people: Mapping[int, Sequence[Sighting]],
    spans: Mapping[int, Sequence[Span]],
    sound: Wave,
    progress: Progress,
) -> None:
    tracks = {number: Masks(found, sightings) for number, sightings in people.items()}
    speaks = {number: _frames_of(spans[number], found.frames) for number in people}
    with VideoWriter(path, size[::-1], RATE, QUALITY["overlay"], sound) as film:
        for start in range(0, found.frames, AT_ONCE):
            pictures = playing.read_frames(start, min(AT_ONCE, found.frames - start))
            for frame, picture in enumerate(pictures, start):
                # Of those who are not in this frame nothing is made: there may be hundreds.
                parts = {number: track.at(frame, size) for number, track in tracks.items()}
                shown = {number: _whole(some, size) for number, some in parts.items() if some}
                for number, mask in shown.items():
                    _outline(picture, mask, number, bool(speaks[number][frame]))
                for number, mask in shown.items():
                    _number(picture, mask, _label(number, size))
                film.write(frame, picture)
            progress.done()


def _frames_of(spans: Sequence[Span], frames: int) -> np.ndarray:
    found = np.zeros(frames, dtype=bool)
    for first, last in spans:
        found[round(first * RATE) : round(last * RATE)] = True
    return found


def colour_of(number: int) -> tuple[int, int, int]:
    """Of a person's outline; there are seven, then they come again."""
    return PALETTE[(number - 1) % len(PALETTE)]


def _outline(picture: np.ndarray, mask: np.ndarray, number: int, speaks: bool) -> None:
    """Draws a person's edge, thick and with a tint while they speak."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return
    wide = max(1, round(min(picture.shape[:2]) / (120 if speaks else 240)))
    part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    inside = mask[part]
    # What is left when the mask shrinks by the width of the line is not edge.
    out = np.pad(~inside, wide, constant_values=True)[None]
    edge = inside & dilate(out, wide)[0, wide:-wide, wide:-wide]
    colour = np.array(colour_of(number), dtype=np.uint8)
    here = picture[part]
    if speaks:
        tinted = KEPT[here] + (colour * TINT).astype(np.uint8)
        np.copyto(here, tinted, where=inside[..., None])
    np.copyto(here, colour, where=edge[..., None])


@functools.lru_cache(maxsize=64)
def _label(number: int, size: tuple[int, int]) -> np.ndarray:
    """A disc with a person's number: uint8 [h, w, 4]."""
    side = max(18, round(min(size) / 12))
    image = Image.new("RGBA", (side, side))
    pen = ImageDraw.Draw(image)
    colour = colour_of(number)
    pen.ellipse((0, 0, side - 1, side - 1), fill=(*colour, 255), outline=(0, 0, 0, 255))
    dark = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] < 110
    font = ImageFont.load_default(size=side * 0.62)
    ink = (255, 255, 255, 255) if dark else (0, 0, 0, 255)
    pen.text((side / 2, side / 2), str(number), fill=ink, font=font, anchor="mm")
    return np.asarray(image)


def _number(picture: np.ndarray, mask: np.ndarray, label: np.ndarray) -> None:
    """Puts a label at the top of a mask."""
    # Rows of some width: a speck above a head is not its top.
    width = mask.sum(1)
    rows = np.flatnonzero(width > 0.2 * width.max())
    if not width.any():
        return
    columns = np.flatnonzero(mask[rows[0] : rows[0] + max(1, len(rows) // 10)].any(0))
    side = label.shape[0]
    top = min(max(0, int(rows[0]) - side // 2), picture.shape[0] - side)
    left = min(max(0, int(columns.mean()) - side // 2), picture.shape[1] - side)
    if top < 0 or left < 0:
        return  # a picture smaller than a label
    here = picture[top : top + side, left : left + side]
    opaque = label[..., 3:] > 127
    here[:] = np.where(opaque, label[..., :3], here)
