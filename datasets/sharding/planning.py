"""Planning: clips of a video, and frames of a clip."""

import numpy as np

from cavmae.datasets.media import MediaError, Probe
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
