"""Planning: clips of a video, and frames of a clip."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cavmae.datasets.media import MediaError, Probe, probe
from cavmae.datasets.media.geometry import Geometry, geometry
from cavmae.datasets.sharding.inputs import Input
from cavmae.datasets.sharding.messages import Skip
from cavmae.datasets.sharding.settings import ShardSettings
from cavmae.datasets.stream.rates import VIDEO_RATE

TAIL_IGNORED = 0.2  # s: a shorter remainder never shares a clip
NEAR = 0.05  # s: a frame that appears later than this after a time is not that time's frame
LATE = 0.1  # s: a clip whose first frame appears later begins with the frame before


def plan_clips(
    span: tuple[float, float], start: float | None, end: float | None, settings: ShardSettings
) -> list[tuple[float, float]]:
    """Plan consecutive clips (start, end) of a video, in seconds.

    Args:
        span: (start, end) of the video.
        start, end: of the stretch to cut; None: the video's own.

    Raises:
        MediaError: ``too_short``.
    """
    assert settings.clip_seconds is not None and settings.min_seconds is not None
    first = max(span[0], start if start is not None else span[0])
    last = min(span[1], end if end is not None else span[1])
    length, least = settings.clip_seconds, settings.min_seconds
    slack = 1e-3  # rounding of time stamps must not cost a clip
    if last - first < least - slack:
        raise MediaError("too_short", f"{max(0.0, last - first):.3f} s, at least {least:g} needed")
    count = int((last - first + slack) / length)
    clips = [(first + i * length, min(first + (i + 1) * length, last)) for i in range(count)]
    rest = first + count * length
    if last - rest >= least - slack:
        clips.append((rest, last))
    elif clips and settings.tail == "share" and last - rest >= TAIL_IGNORED:
        begin = clips.pop()[0]
        half = (last - begin) / 2
        half = round(half * VIDEO_RATE) / VIDEO_RATE  # on the 25 Hz grid of the speakers profile
        if min(half, last - begin - half) >= least - slack:
            clips += [(begin, begin + half), (begin + half, last)]
        else:
            clips.append((begin, begin + length))
    return clips


def choose_frames(info: Probe, start: float, end: float, settings: ShardSettings) -> np.ndarray:
    """Choose the frames of a clip by presentation time; returns int64 indices, each once.

    Each time of the grid takes the frame on screen, or the next one if that is nearer.
    """
    times = info.frame_times
    step = 1 / info.frame_rate
    if settings.frame_rate is not None:
        inside = np.flatnonzero((times >= start - step / 2) & (times < end - step / 2))
        if info.frame_rate <= settings.frame_rate * 1.02 and inside.size:
            if times[inside[0]] > start + min(step, LATE) and inside[0] > 0:
                # A screen recording: the frame before is still on screen when the clip begins.
                inside = np.concatenate([[inside[0] - 1], inside])
            return inside
        grid = start + np.arange(round((end - start) * settings.frame_rate)) / settings.frame_rate
        spacing = 1 / settings.frame_rate
    else:
        assert settings.frames is not None
        grid = start + (end - start) * np.arange(settings.frames) / settings.frames
        spacing = (end - start) / settings.frames
    tolerance = min(step / 2, spacing / 2, NEAR)
    indices = np.searchsorted(times, grid + tolerance, side="right") - 1
    return np.unique(np.clip(indices, 0, len(times) - 1))


class ClipPlan(NamedTuple):
    """Clips to extract of a video file.

    Attributes:
        info: probe of the file.
        shape: of the frames.
        numbers: of the clips in their input, rising.
        clips: (start, end) of each, in seconds.
        unused: lines about unused parts of the file.
    """

    info: Probe
    shape: Geometry
    numbers: list[int]
    clips: list[tuple[float, float]]
    unused: list[Skip]


def plan_video(
    item: Input, path: str, settings: ShardSettings, heartbeat: Callable[[], None]
) -> ClipPlan:
    """Probe a video file and plan its clips.

    Args:
        path: of the file.
        heartbeat: called from time to time while the file is probed.

    Raises:
        MediaError: the file gives no clip.
    """
    info = probe(path, settings.video_stream, settings.audio_stream, heartbeat)
    return plan_probed(item, info, settings)


def plan_probed(item: Input, info: Probe, settings: ShardSettings) -> ClipPlan:
    """Plan the clips of a video file that is probed already.

    Raises:
        MediaError: the file gives no clip.
    """
    unused = [part for part in info.unused if item.end is None or part.start < item.end]
    try:
        clips = plan_clips(info.span, item.start, item.end, settings)
    except MediaError as error:
        for part in unused:  # the cause of the missing clips
            raise MediaError(part.reason, f"{part.detail} ({error.detail})") from error
        raise
    numbers = [i for i, clip in enumerate(clips) if item.wants(i, clip[0])]
    shape = geometry(info, settings.shorter_side, str(settings.crop))
    skips = [Skip(None, None, part.reason, part.detail) for part in unused]
    return ClipPlan(info, shape, numbers, [clips[i] for i in numbers], skips)
