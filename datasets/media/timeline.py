"""Repair of packet time stamps: one clock for a recording.

Containers repeat stamps, leave them out, hold single outliers, or restart their clock where
recordings were joined. The functions here are pure: they map arrays of stamps to times.
"""

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BACKWARD = 0.1  # s: a clock that steps back by more has restarted
FORWARD = 10.0  # s: the same of a step ahead, in formats whose clocks may restart
LAG = 300  # packets within which both streams of a file restart where recordings were joined
LONGEST_GAP = 300.0  # s without any packet, after which a recording is over


class Restart(NamedTuple):
    """Restart of a recording's clock.

    Attributes:
        video: number of the first video packet after it; None: the video's clock continues.
        audio: number of the first audio packet after it; None: the audio's clock continues.
    """

    video: int | None
    audio: int | None


class Clock(NamedTuple):
    """Times of one stream's packets in file order.

    Attributes:
        times: float64 [packets], seconds that never fall within one recording: decoding times,
            or presentation times where frames are not reordered; NaN: none.
        places: int64 [packets], number of each packet among those of both streams.
    """

    times: np.ndarray
    places: np.ndarray


def without_spikes(times: np.ndarray) -> np.ndarray:
    """Replaces single outliers among times by NaN, in a copy.

    An outlier is far from both neighbours, which agree; or it is the first or the last time, and
    the clock steps back next to it, since no recording has a single packet.
    """
    times = times.copy()
    known = np.flatnonzero(np.isfinite(times))
    values = times[known]
    if len(values) < 3:
        return times
    steps = np.diff(values)
    before, after = steps[:-1], steps[1:]
    apart = np.minimum(np.abs(before), np.abs(after))
    away = np.zeros(len(values), dtype=bool)
    away[1:-1] = (apart > BACKWARD) & (before * after < 0) & (np.abs(before + after) < apart / 2)
    away[[0, -1]] = steps[[0, -1]] < -BACKWARD
    times[known[away]] = np.nan
    return times


def _jumps(times: np.ndarray, forward: float) -> list[int]:
    """Numbers of packets at which the clock steps back, or ahead by more than ``forward``."""
    known = np.flatnonzero(np.isfinite(times))
    steps = np.diff(times[known])
    return [int(i) for i in known[1:][(steps < -BACKWARD) | (steps > forward)]]


def find_restarts(video: Clock, audio: Clock, joinable: bool) -> list[Restart]:
    """Finds the restarts of a file's clock.

    Where both streams jump at one place of the file, recordings were joined. Where a single stream
    steps back, only its own clock restarts: the order of its packets implies that time goes on.

    Args:
        video, audio: times without spikes.
        joinable: whether clocks of the format may jump ahead where recordings were joined (MPEG
            transport and programme streams): jumps ahead of both streams count, too.
    """
    ahead = FORWARD if joinable else math.inf
    video_jumps, audio_jumps = _jumps(video.times, ahead), _jumps(audio.times, ahead)
    restarts = []
    while video_jumps or audio_jumps:
        v = int(video.places[video_jumps[0]]) if video_jumps else None
        a = int(audio.places[audio_jumps[0]]) if audio_jumps else None
        together = v is not None and a is not None and abs(v - a) <= LAG
        first = v is not None and (a is None or v < a)
        restart = Restart(
            video_jumps.pop(0) if together or first else None,
            audio_jumps.pop(0) if together or not first else None,
        )
        if together or not _only_ahead(video, audio, restart):
            restarts.append(restart)
    return restarts


def _only_ahead(video: Clock, audio: Clock, restart: Restart) -> bool:
    """Whether a single stream jumps ahead, which is a gap and no restart."""
    clock, packet = (video, restart.video) if restart.video is not None else (audio, restart.audio)
    assert packet is not None
    before = clock.times[:packet][np.isfinite(clock.times[:packet])]
    return bool(clock.times[packet] > before[-1])


class Extent(NamedTuple):
    """(start, end) of a stream's presentation times between two restarts, in seconds."""

    start: float
    end: float


def offsets(
    restarts: Sequence[Restart], video: Sequence[Extent], audio: Sequence[Extent]
) -> tuple[list[float], list[float]]:
    """Offsets in seconds that join the stretches between restarts, with audio and video in step.

    Args:
        restarts: between the stretches.
        video: extents of the video's stretches: one more than restarts that have a video packet.
        audio: the same of the audio.

    Returns:
        offsets of the video's stretches, and of the audio's stretches.
    """
    of_video, of_audio = [0.0], [0.0]
    for restart in restarts:
        move_video = move_audio = None
        if restart.video is not None:
            number = len(of_video)
            move_video = video[number - 1].end + of_video[-1] - video[number].start
        if restart.audio is not None:
            number = len(of_audio)
            move_audio = audio[number - 1].end + of_audio[-1] - audio[number].start
        if move_video is not None and move_audio is not None:
            # Video stretches follow each other directly. Audio stretches may overlap by an
            # encoder's run-up, but not by more.
            move = move_video if move_audio - move_video <= BACKWARD else move_audio
            move_video = move_audio = move
        if move_video is not None:
            of_video.append(move_video)
        if move_audio is not None:
            of_audio.append(move_audio)
    return of_video, of_audio


def increasing(stamps: np.ndarray, step: float) -> np.ndarray:
    """Strictly increasing times of frames in presentation order.

    The longest increasing subsequence of stamps is kept, of equal ones the first. Other frames
    are spread evenly between their neighbours.

    Args:
        stamps: float64 [frames] in seconds; NaN: none.
        step: median interval between frames, for frames without a neighbour.
    """
    valid = _longest_increasing(stamps)
    count = np.arange(len(stamps))
    if len(valid) == 0:
        return count * step
    times: np.ndarray = np.interp(count, valid, stamps[valid])
    first, last = valid[0], valid[-1]
    times[:first] = stamps[first] - step * (first - count[:first])
    times[last + 1 :] = stamps[last] + step * (count[last + 1 :] - last)
    return times


def _longest_increasing(stamps: np.ndarray) -> np.ndarray:
    """Indices of the longest strictly increasing subsequence of those that are not NaN."""
    known = np.flatnonzero(np.isfinite(stamps))
    values = stamps[known]
    if np.all(np.diff(values) > 0):
        return known
    ends: list[float] = []  # smallest last value of a run of each length
    at: list[int] = []  # index of that value
    before = np.full(len(values), -1)
    for i, value in enumerate(values.tolist()):
        length = bisect.bisect_left(ends, value)
        before[i] = at[length - 1] if length else -1
        if length == len(ends):
            ends.append(value)
            at.append(i)
        elif value < ends[length]:
            ends[length], at[length] = value, i
    chain = []
    place = at[-1] if at else -1
    while place >= 0:
        chain.append(place)
        place = int(before[place])
    return known[np.array(chain[::-1], dtype=np.int64)]


class Island(NamedTuple):
    """Part of a file between long gaps.

    Attributes:
        start, end: times of its first and last packet, in seconds.
        video, audio: numbers of packets of both streams.
    """

    start: float
    end: float
    video: int
    audio: int


def islands(video: np.ndarray, audio: np.ndarray) -> list[Island]:
    """Splits a file at gaps of over 300 s without frames and audio.

    Args:
        video, audio: float64 [packets], times in seconds, in any order.
    """
    times = np.concatenate([video, audio])
    is_video = np.arange(len(times)) < len(video)
    order = np.argsort(times, kind="stable")
    times, is_video = times[order], is_video[order]
    cuts = np.flatnonzero(np.diff(times) > LONGEST_GAP) + 1
    return [
        Island(float(part[0]), float(part[-1]), int(kind.sum()), int((~kind).sum()))
        for part, kind in zip(np.split(times, cuts), np.split(is_video, cuts), strict=True)
    ]
