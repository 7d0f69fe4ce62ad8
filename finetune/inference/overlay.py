"""Second pass over a recording: mask videos, and the overlay video with outlined people."""

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
from cavmae.datasets.media.playback import Playback
from cavmae.datasets.media.writing import VideoWriter, Wave
from cavmae.datasets.mixtures.compositing import dilate
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.finetune.inference.audio import Span
from cavmae.finetune.inference.first_pass import FirstPass, Sighting
from cavmae.finetune.inference.overlap_add import CrossfadeWeights
from cavmae.finetune.inference.predictor import Box
from cavmae.finetune.inference.tracker import interpolate_masks

# Palette of Okabe and Ito, safe for colour-blind viewers.
PALETTE = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167),
)  # fmt: skip
TINT = 0.3  # opacity of the color over a person who speaks
TINTED_VALUES = (np.arange(256) * (1 - TINT)).astype(np.uint8)  # of each byte under a tint
QUALITY = {"overlay": 23.0, "mask": 20.0}  # x264's CRF
FRAMES_PER_READ = 25  # frames that are read together


class Shown(NamedTuple):
    """Mask of a person in a region of a frame.

    Attributes:
        rows, columns: region of the frame.
        mask: float32 [rows, columns], 0 to 1.
    """

    rows: slice
    columns: slice
    mask: np.ndarray


class Masks:
    """Masks of a person at every frame, as the weighted mean over windows.

    Args:
        recording: result of the first pass.
        sightings: the person in each window.
    """

    def __init__(self, recording: FirstPass, sightings: Sequence[Sighting]):
        self._recording = recording
        self._sightings = {sighting.window: sighting for sighting in sightings}
        self._weights = CrossfadeWeights(recording.starts, recording.length)
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # masks and weights of windows

    def at(self, frame: int, size: tuple[int, int]) -> list[Shown]:
        """Weighted masks of a frame at a frame size, one for each window; they add up."""
        starts, length = self._recording.starts, self._recording.length
        first = int(np.searchsorted(starts, frame - length, side="right"))
        last = int(np.searchsorted(starts, frame, side="right"))
        windows = [w for w in range(first, last) if w in self._sightings]
        self._cache = {w: m for w, m in self._cache.items() if w >= first}
        parts = []
        for window in windows:
            sighting = self._sightings[window]
            if window not in self._cache:
                self._cache[window] = self._recording.masks(sighting), self._weights.of(window)
            masks, weights = self._cache[window]
            offset = frame - starts[window]
            value = interpolate_masks(masks, np.array([offset]), self._recording.keys)[0]
            parts.append(_place_mask(value * weights[offset], sighting.box, size))
        return parts


def _place_mask(mask: np.ndarray, box: Box, size: tuple[int, int]) -> Shown:
    """Resize the mask of a box to its region of a frame."""
    top, bottom = round(box[1] * size[0]), max(round(box[3] * size[0]), round(box[1] * size[0]) + 1)
    left, right = round(box[0] * size[1]), max(round(box[2] * size[1]), round(box[0] * size[1]) + 1)
    large = functional.interpolate(
        torch.from_numpy(mask)[None, None], (bottom - top, right - left), mode="bilinear"
    )[0, 0].numpy()
    rows, columns = slice(top, min(bottom, size[0])), slice(left, min(right, size[1]))
    return Shown(rows, columns, large[: rows.stop - top, : columns.stop - left])


def _merge_masks(parts: Sequence[Shown], size: tuple[int, int]) -> np.ndarray:
    """Binary mask of the sum of weighted masks: bool [height, width]."""
    total = np.zeros(size, dtype=np.float32)
    for part in parts:
        total[part.rows, part.columns] += part.mask
    whole: np.ndarray = total > 0.5
    return whole


def display_geometry(info: Probe, height: int) -> Geometry:
    """Geometry of written videos: display size, limited in height, with even sides."""
    scale = min(1.0, height / info.display[0])
    rows, columns = (max(2, round(side * scale / 2) * 2) for side in info.display)
    return cut_from(info, (rows, columns), (rows, columns))


def second_pass(
    info: Probe,
    recording: FirstPass,
    people: Mapping[int, Sequence[Sighting]],
    spans: Mapping[int, Sequence[Span]],
    audio: Wave,
    overlay: Path | None,
    masks: Mapping[int, Path],
    height: int,
) -> None:
    """Write the videos one after the other, so that a single file is open.

    Args:
        info: streams of the recording.
        recording: result of the first pass.
        people: sightings of each person, by number.
        spans: speech spans in seconds, by number.
        audio: audio of the overlay.
        overlay: path of the overlay video; None: it is not written.
        masks: paths of the mask videos, by number.
        height: largest height of the videos in pixels.
    """
    geometry = display_geometry(info, height)
    seconds = -(-recording.frames // FRAMES_PER_READ)
    with Progress(seconds * (len(masks) + (overlay is not None)), "second of video") as progress:
        for number, path in masks.items():
            _write_masks(
                path, Masks(recording, people[number]), recording.frames, geometry.size, progress
            )
        if overlay is not None:
            with Playback(info, geometry) as playback:
                _write_overlay(
                    overlay, playback, geometry.size, recording, people, spans, audio, progress
                )


def _write_masks(
    path: Path, masks: Masks, frames: int, size: tuple[int, int], progress: Progress
) -> None:
    with VideoWriter(path, size[::-1], VIDEO_RATE, QUALITY["mask"], None) as writer:
        for frame in range(frames):
            writer.write(frame, _merge_masks(masks.at(frame, size), size).astype(np.uint8) * 255)
            if frame % FRAMES_PER_READ == 0:
                progress.done()


def _write_overlay(
    path: Path,
    playback: Playback,
    size: tuple[int, int],
    recording: FirstPass,
    people: Mapping[int, Sequence[Sighting]],
    spans: Mapping[int, Sequence[Span]],
    audio: Wave,
    progress: Progress,
) -> None:
    tracks = {number: Masks(recording, sightings) for number, sightings in people.items()}
    speaking = {number: _frames_of(spans[number], recording.frames) for number in people}
    with VideoWriter(path, size[::-1], VIDEO_RATE, QUALITY["overlay"], audio) as writer:
        for start in range(0, recording.frames, FRAMES_PER_READ):
            video = playback.read_frames(start, min(FRAMES_PER_READ, recording.frames - start))
            for frame, image in enumerate(video, start):
                # People outside this frame are skipped: there may be hundreds.
                parts = {number: track.at(frame, size) for number, track in tracks.items()}
                merged = {
                    number: _merge_masks(person_parts, size)
                    for number, person_parts in parts.items()
                    if person_parts
                }
                for number, mask in merged.items():
                    _draw_outline(image, mask, number, bool(speaking[number][frame]))
                for number, mask in merged.items():
                    _draw_label(image, mask, _label(number, size))
                writer.write(frame, image)
            progress.done()


def _frames_of(spans: Sequence[Span], frames: int) -> np.ndarray:
    active = np.zeros(frames, dtype=bool)
    for first, last in spans:
        active[round(first * VIDEO_RATE) : round(last * VIDEO_RATE)] = True
    return active


def color_of(number: int) -> tuple[int, int, int]:
    """Color of the outline of a person; seven colors repeat."""
    return PALETTE[(number - 1) % len(PALETTE)]


def _draw_outline(image: np.ndarray, mask: np.ndarray, number: int, is_speaking: bool) -> None:
    """Draw the outline of a person, thick and with a tint while they speak."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return
    line_width = max(1, round(min(image.shape[:2]) / (120 if is_speaking else 240)))
    part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    inside = mask[part]
    # The edge is the mask without its erosion by the width of the line.
    outside = np.pad(~inside, line_width, constant_values=True)[None]
    edge = inside & dilate(outside, line_width)[0, line_width:-line_width, line_width:-line_width]
    color = np.array(color_of(number), dtype=np.uint8)
    region = image[part]
    if is_speaking:
        tinted = TINTED_VALUES[region] + (color * TINT).astype(np.uint8)
        np.copyto(region, tinted, where=inside[..., None])
    np.copyto(region, color, where=edge[..., None])


@functools.lru_cache(maxsize=64)
def _label(number: int, size: tuple[int, int]) -> np.ndarray:
    """Disc with the number of a person: uint8 [h, w, 4]."""
    side = max(18, round(min(size) / 12))
    image = Image.new("RGBA", (side, side))
    pen = ImageDraw.Draw(image)
    color = color_of(number)
    pen.ellipse((0, 0, side - 1, side - 1), fill=(*color, 255), outline=(0, 0, 0, 255))
    dark = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] < 110
    font = ImageFont.load_default(size=side * 0.62)
    ink = (255, 255, 255, 255) if dark else (0, 0, 0, 255)
    pen.text((side / 2, side / 2), str(number), fill=ink, font=font, anchor="mm")
    return np.asarray(image)


def _draw_label(image: np.ndarray, mask: np.ndarray, label: np.ndarray) -> None:
    """Draw a label at the top of a mask."""
    # Narrow rows are skipped: a speck above a head is not its top.
    width = mask.sum(1)
    rows = np.flatnonzero(width > 0.2 * width.max())
    if not width.any():
        return
    columns = np.flatnonzero(mask[rows[0] : rows[0] + max(1, len(rows) // 10)].any(0))
    side = label.shape[0]
    top = min(max(0, int(rows[0]) - side // 2), image.shape[0] - side)
    left = min(max(0, int(columns.mean()) - side // 2), image.shape[1] - side)
    if top < 0 or left < 0:
        return  # the frame is smaller than the label
    region = image[top : top + side, left : left + side]
    opaque = label[..., 3:] > 127
    region[:] = np.where(opaque, label[..., :3], region)
