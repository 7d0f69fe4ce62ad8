"""Second pass over a recording: mask videos, and the overlay video."""

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np

from cavmae.datasets.media import Probe
from cavmae.datasets.media.geometry import Geometry, cut_from
from cavmae.datasets.media.playback import Playback
from cavmae.datasets.media.writing import ThreadedVideoWriter, VideoWriter, Wave
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.finetune.inference.audio import Span
from cavmae.finetune.inference.first_pass import FirstPass, Sighting
from cavmae.finetune.inference.mask_tracks import MaskRegion, MaskTrack
from cavmae.finetune.inference.overlay import draw_people
from cavmae.finetune.inference.progress import ProgressCallback, part_of

# x264's quality and preset. A mask exceeds 127 in the same pixels after coding; medium presets
# would take a third of the time of a separation.
OVERLAY_QUALITY, OVERLAY_PRESET = 24.0, "superfast"
MASK_QUALITY, MASK_PRESET = 20.0, "ultrafast"
OPEN_MASKS = 8  # mask videos that are written at a time
FRAMES_PER_READ = 8  # frames that are read together


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
    """Write the videos.

    Frames are read once, for the overlay and the first mask videos. More people than
    :data:`OPEN_MASKS` take further passes over the masks, so that memory is bounded.

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
    numbers = list(masks)
    groups = [numbers[i : i + OPEN_MASKS] for i in range(0, len(numbers), OPEN_MASKS)] or [[]]
    for index, group in enumerate(groups):
        part = part_of(progress, index / len(groups), (index + 1) / len(groups))
        with contextlib.ExitStack() as stack:
            writers = {
                number: stack.enter_context(_mask_writer(masks[number], geometry.size))
                for number in group
            }
            overlay_video = None
            if overlay is not None and index == 0:
                overlay_video = stack.enter_context(
                    _OverlayVideo(overlay, info, geometry, recording.frames, spans, audio)
                )
            drawn_numbers = people if overlay_video else group
            tracks = {number: MaskTrack(recording, people[number]) for number in drawn_numbers}
            _write_frames(tracks, writers, overlay_video, recording.frames, geometry.size, part)


def _write_frames(
    tracks: Mapping[int, MaskTrack],
    writers: Mapping[int, ThreadedVideoWriter],
    overlay: "_OverlayVideo | None",
    frames: int,
    size: tuple[int, int],
    progress: ProgressCallback,
) -> None:
    for frame in range(frames):
        # People outside this frame are skipped: there may be hundreds.
        regions = {
            number: region
            for number, track in tracks.items()
            if (region := track.at(frame, size)) is not None
        }
        for number, writer in writers.items():
            mask = np.zeros(size, dtype=bool)
            if region := regions.get(number):
                mask[region.place] = region.mask
            writer.write(frame, mask)
        if overlay is not None:
            overlay.write(frame, regions)
        progress((frame + 1) / frames)


def _mask_writer(path: Path, size: tuple[int, int]) -> ThreadedVideoWriter:
    return ThreadedVideoWriter(
        VideoWriter(path, size[::-1], VIDEO_RATE, MASK_QUALITY, None, MASK_PRESET, quality_as="qp")
    )


class _OverlayVideo:
    """Writer of the overlay video, which reads the frames of the recording in another thread."""

    def __init__(
        self, path: Path, info: Probe, geometry: Geometry, frames: int,
        spans: Mapping[int, Sequence[Span]], audio: Wave,
    ):  # fmt: skip
        self._frames = frames
        self._speaking = {number: _frames_of(spans[number], frames) for number in spans}
        self._playback = Playback(info, geometry, packed=True)
        self._writer = ThreadedVideoWriter(
            VideoWriter(
                path,
                geometry.size[::-1],
                VIDEO_RATE,
                OVERLAY_QUALITY,
                audio,
                OVERLAY_PRESET,
                b_frames=False,
            )
        )
        self._pool = ThreadPoolExecutor(1, "overlay-reader")
        self._upcoming = self._pool.submit(self._read, 0)
        self._part: list[np.ndarray] = []
        self._first = 0  # frame of the first of those

    def _read(self, first: int) -> list[np.ndarray]:
        return self._playback.read_frames(first, min(FRAMES_PER_READ, self._frames - first))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        with self._playback:
            self._writer.__exit__(kind, *rest)

    def write(self, frame: int, regions: Mapping[int, MaskRegion]) -> None:
        """Write a frame; frames come in order."""
        if frame >= self._first + len(self._part):
            self._first, self._part = frame, self._upcoming.result()
            following = frame + len(self._part)
            if following < self._frames:
                self._upcoming = self._pool.submit(self._read, following)
        speaking = [number for number in regions if self._speaking[number][frame]]
        self._writer.write(frame, draw_people(self._part[frame - self._first], regions, speaking))


def _frames_of(spans: Sequence[Span], frames: int) -> np.ndarray:
    active = np.zeros(frames, dtype=bool)
    for first, last in spans:
        active[round(first * VIDEO_RATE) : round(last * VIDEO_RATE)] = True
    return active
