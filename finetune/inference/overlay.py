"""Second pass over a recording: mask videos, and the overlay video with outlined people."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cavmae.common.boxes import pixel_box
from cavmae.datasets.media import Probe
from cavmae.datasets.media.geometry import Geometry, cut_from
from cavmae.datasets.media.playback import Playback
from cavmae.datasets.media.writing import VideoWriter, Wave
from cavmae.datasets.mixtures.compositing import dilate
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.finetune.inference.audio import Span
from cavmae.finetune.inference.first_pass import FirstPass, Sighting
from cavmae.finetune.inference.mask_tracks import MaskTrack
from cavmae.finetune.inference.progress import ProgressCallback, part_of

# Palette of Okabe and Ito, safe for colour-blind viewers.
PALETTE = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167),
)  # fmt: skip
TINT = 0.3  # opacity of the color over a person who speaks
TINTED_VALUES = (np.arange(256) * (1 - TINT)).astype(np.uint8)  # of each byte under a tint
QUALITY = {"overlay": 23.0, "mask": 20.0}  # x264's CRF
FRAMES_PER_READ = 25  # frames that are read together


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
    progress: ProgressCallback,
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
        progress: called as frames are written.
    """
    geometry = display_geometry(info, height)
    videos = len(masks) + (overlay is not None)
    for index, (number, path) in enumerate(masks.items()):
        track = MaskTrack(recording, people[number])
        part = part_of(progress, index / videos, (index + 1) / videos)
        _write_masks(path, track, recording.frames, geometry.size, part)
    if overlay is not None:
        part = part_of(progress, len(masks) / videos, 1.0)
        with Playback(info, geometry) as playback:
            _write_overlay(overlay, playback, geometry.size, recording, people, spans, audio, part)


def _write_masks(
    path: Path, track: MaskTrack, frames: int, size: tuple[int, int], progress: ProgressCallback
) -> None:
    with VideoWriter(path, size[::-1], VIDEO_RATE, QUALITY["mask"], None) as writer:
        for frame in range(frames):
            mask = track.at(frame, size)
            image = np.zeros(size, np.uint8) if mask is None else mask.astype(np.uint8) * 255
            writer.write(frame, image)
            progress((frame + 1) / frames)


def _write_overlay(
    path: Path,
    playback: Playback,
    size: tuple[int, int],
    recording: FirstPass,
    people: Mapping[int, Sequence[Sighting]],
    spans: Mapping[int, Sequence[Span]],
    audio: Wave,
    progress: ProgressCallback,
) -> None:
    tracks = {number: MaskTrack(recording, sightings) for number, sightings in people.items()}
    speaking = {number: _frames_of(spans[number], recording.frames) for number in people}
    with VideoWriter(path, size[::-1], VIDEO_RATE, QUALITY["overlay"], audio) as writer:
        for start in range(0, recording.frames, FRAMES_PER_READ):
            video = playback.read_frames(start, min(FRAMES_PER_READ, recording.frames - start))
            for frame, image in enumerate(video, start):
                # People outside this frame are skipped: there may be hundreds.
                masks = {number: track.at(frame, size) for number, track in tracks.items()}
                present = {number: mask for number, mask in masks.items() if mask is not None}
                for number, mask in present.items():
                    _draw_outline(image, mask, number, bool(speaking[number][frame]))
                for number, mask in present.items():
                    _draw_label(image, mask, _label(number, size))
                writer.write(frame, image)
            progress(min(1.0, (start + FRAMES_PER_READ) / recording.frames))


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
    box = pixel_box(mask)
    if box is None:
        return
    left, top, right, bottom = box
    line_width = max(1, round(min(image.shape[:2]) / (120 if is_speaking else 240)))
    part = (slice(top, bottom), slice(left, right))
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
