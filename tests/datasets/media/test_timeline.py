"""Time stamps that repeat, are missing, are outliers or restart."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cavmae.datasets.media.timeline import (
    Clock,
    Extent,
    Restart,
    find_restarts,
    increasing,
    islands,
    offsets,
    without_spikes,
)

nan = np.nan


def clock(times: list[float], places: list[int] | None = None) -> Clock:
    return Clock(np.array(times), np.array(places or range(len(times))))


def longest_run(values: list[float]) -> int:
    """Length of the longest strictly increasing subsequence, by comparing all pairs."""
    best = [1] * len(values)
    for i, value in enumerate(values):
        for j in range(i):
            if values[j] < value:
                best[i] = max(best[i], best[j] + 1)
    return max(best, default=0)


@given(st.lists(st.integers(0, 30) | st.just(nan), max_size=30))
def test_times_rise_and_keep_as_many_stamps_as_can_be(stamps: list[float]) -> None:
    times = increasing(np.array(stamps, dtype=float), 0.04)
    assert len(times) == len(stamps)
    assert (np.diff(times) > 0).all()
    known = [s for s in stamps if s == s]
    kept = sum(time == stamp for time, stamp in zip(times, stamps, strict=True))
    assert kept >= longest_run(known)


@pytest.mark.parametrize(
    ("stamps", "times"),
    [
        ([0, 1, 2, 2, 4], [0, 1, 2, 3, 4]),  # the first of equal ones is right
        ([0, 1, 1, 1, 4], [0, 1, 2, 3, 4]),
        ([0, 1, nan, nan, 4], [0, 1, 2, 3, 4]),
        ([0, 1, 900, 3, 4], [0, 1, 2, 3, 4]),
        ([0, 5, 2, 3, 4], [0, 1, 2, 3, 4]),
        ([nan, 1, 2, nan], [0, 1, 2, 3]),
        ([nan, nan], [0, 1]),
        ([], []),
    ],
)
def test_frames_without_a_place_of_their_own(stamps: list[float], times: list[float]) -> None:
    np.testing.assert_allclose(increasing(np.array(stamps, dtype=float), 1.0), times)


def test_a_single_outlier_is_dropped() -> None:
    times = without_spikes(np.array([0.0, 1, 1e6, 3, nan, 4]))
    np.testing.assert_array_equal(times, [0, 1, nan, 3, nan, 4])
    ahead = np.array([0.0, 1, 1e6, 1e6 + 1, 1e6 + 2])
    np.testing.assert_array_equal(without_spikes(ahead), ahead)


def test_a_clock_restarts_where_both_streams_step_back() -> None:
    video = clock([0.0, 1, 2, 0, 1, 2], [0, 2, 4, 6, 8, 10])
    audio = clock([0.0, 1, 2, 0.1, 1, 2], [1, 3, 5, 7, 9, 11])
    assert find_restarts(video, audio, False) == [Restart(3, 3)]
    steady = clock([0.0, 1, 2, 3, 4, 5], [1, 3, 5, 7, 9, 11])
    assert find_restarts(video, steady, False) == [Restart(3, None)]
    assert find_restarts(steady, clock([0.0, 1, 2, 1.95, 3]), False) == []  # a container's rounding


def test_jumps_ahead_count_only_where_recordings_may_have_been_joined() -> None:
    video = clock([0.0, 1, 2, 3600, 3601], [0, 2, 4, 6, 8])
    audio = clock([0.0, 1, 2, 3600, 3601], [1, 3, 5, 7, 9])
    assert find_restarts(video, audio, True) == [Restart(3, 3)]
    assert find_restarts(video, audio, False) == []
    assert find_restarts(video, clock([0.0, 1, 2, 3, 4]), True) == []  # there is a gap in one


def test_stretches_follow_each_other_in_step() -> None:
    video = [Extent(1.4, 4.4), Extent(1.4, 4.4)]
    moves = offsets([Restart(3, 3)], video, [Extent(1.38, 4.44), Extent(1.38, 4.44)])
    assert moves == (pytest.approx([0, 3.0]), pytest.approx([0, 3.0]))
    # Audio that outlasts the frames by seconds is not overwritten by the next recording's.
    moves = offsets([Restart(3, 3)], video, [Extent(1.4, 9.4), Extent(1.4, 4.4)])
    assert moves == (pytest.approx([0, 8.0]), pytest.approx([0, 8.0]))
    # Audio that alone steps back continues at its old time.
    alone = offsets([Restart(None, 3)], video[:1], [Extent(0, 3), Extent(2.5, 5)])
    assert alone == ([0.0], pytest.approx([0, 0.5]))


@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=20), st.lists(st.floats(0, 1e5)))
def test_islands_hold_every_packet_once(video: list[float], audio: list[float]) -> None:
    parts = islands(np.array(video), np.array(audio))
    assert sum(part.video for part in parts) == len(video)
    assert sum(part.audio for part in parts) == len(audio)
    for before, after in itertools.pairwise(parts):
        assert after.start - before.end > 300
