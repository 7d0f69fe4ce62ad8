"""Time stamps of a recording's packets, put on one clock.

Containers repeat stamps, leave them out, let a single one run away, or begin to count anew where
recordings were joined. The functions here are pure: arrays of stamps in, times out.
"""

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BACKWARD = 0.1  # s: a clock that steps back by more has begun anew
FORWARD = 10.0  # s: nor does a clock run ahead by more, in formats whose clocks may begin anew
LAG = 300  # packets within which both streams of a file reach the place where they were joined
LONGEST_GAP = 300.0  # s without any packet, after which a recording is over


class Restart(NamedTuple):
    """A place where a recording's clock begins anew.

    Attributes:
        video: number of the first video packet after it; None: the pictures' clock runs on.
        audio: number of the first audio packet after it; None: the sound's clock runs on.
    """

    video: int | None
    audio: int | None


class Clock(NamedTuple):
    """One stream's packets in file order.

    Attributes:
        times: float64 [packets], seconds that never fall within one recording: decoding times,
            or presentation times where frames are not reordered; NaN: none is given.
        places: int64 [packets], number of each packet among those of both streams.
    """

    times: np.ndarray
    places: np.ndarray


def without_spikes(times: np.ndarray) -> np.ndarray:
    """A copy in which single wrong times are NaN.

    Such a time is far from both neighbours, which agree; or it is the first or the last one, and
    the clock steps back beside it: no recording has one packet.
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
    """Numbers of packets whose time is not that of a clock that runs on."""
    known = np.flatnonzero(np.isfinite(times))
    steps = np.diff(times[known])
    return [int(i) for i in known[1:][(steps < -BACKWARD) | (steps > forward)]]


def find_restarts(video: Clock, audio: Clock, joinable: bool) -> list[Restart]:
    """Places where the clock of a file begins anew.

    Where both streams jump at one place of the file, recordings were joined there. A stream that
    steps back by itself begins anew by itself: its packets' order says that time goes on.

    Args:
        video, audio: times without spikes.
        joinable: the format is one whose clocks may run ahead where recordings were joined
            (MPEG transport and programme streams): jumps ahead of both streams count, too.
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
    """Whether one stream alone jumps ahead: nothing begins anew, there is a gap."""
    clock, packet = (video, restart.video) if restart.video is not None else (audio, restart.audio)
    assert packet is not None
    before = clock.times[:packet][np.isfinite(clock.times[:packet])]
    return bool(clock.times[packet] > before[-1])


class Extent(NamedTuple):
    """Presentation times of a stream between two restarts, in seconds: (start, end)."""

    start: float
    end: float


def offsets(
    restarts: Sequence[Restart], video: Sequence[Extent], audio: Sequence[Extent]
) -> tuple[list[float], list[float]]:
    """Seconds to add to each stretch's times so that one follows the other, in step.

    Args:
        restarts: where stretches begin, but for the first.
        video: extents of the pictures' stretches: one more than restarts that have a video packet.
        audio: the same of the sound.

    Returns:
        for each of the video stretches, and for each of the audio stretches.
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
            # Pictures follow each other at once; coders' run-ups of sound overlap a little, whole
            # seconds of sound do not.
            move = move_video if move_audio - move_video <= BACKWARD else move_audio
            move_video = move_audio = move
        if move_video is not None:
            of_video.append(move_video)
        if move_audio is not None:
            of_audio.append(move_audio)
    return of_video, of_audio


def increasing(stamps: np.ndarray, step: float) -> np.ndarray:
    """Strictly increasing times of frames in the order they are shown.

    The longest increasing run of stamps is believed, of equal ones the first. The others, and
    frames without one, are spread evenly between their neighbours.

    Args:
        stamps: float64 [frames] in seconds; NaN: none.
        step: usual time between frames, where there is no neighbour.
    """
    believed = _longest_increasing(stamps)
    count = np.arange(len(stamps))
    if len(believed) == 0:
        return count * step
    times: np.ndarray = np.interp(count, believed, stamps[believed])
    first, last = believed[0], believed[-1]
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
    """A part of a recording: times of its first and last packet, and its packets' numbers."""

    start: float
    end: float
    video: int
    audio: int


def islands(video: np.ndarray, audio: np.ndarray) -> list[Island]:
    """Parts of a recording between gaps of over 300 s without frames and sound.

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
