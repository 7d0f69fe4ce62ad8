"""Metrics of tracks: known figures of tracks by hand, and naive loops over everything."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cavmae.finetune.tracking.metrics import (
    MIN_IOU,
    TrackCounts,
    assign_tracks,
    count_tracks,
    match_frames,
)
from cavmae.finetune.tracking.overlaps import MaskOverlaps, mask_overlaps

FRAMES = 100
SIZE = (20, 30)


def scene(people: int = 2) -> np.ndarray:
    """People side by side who stay: uint8 [T, height, width]."""
    owner = np.zeros((FRAMES, *SIZE), dtype=np.uint8)
    for number in range(people):
        owner[:, 5:, 10 * number + 1 : 10 * number + 9] = number + 1
    return owner


def track(owner: np.ndarray, *parts: tuple[int, int, int]) -> np.ndarray:
    """Masks of a track of (person, first frame, end): bool [T, height, width]."""
    masks = np.zeros(owner.shape, dtype=bool)
    for person, first, last in parts:
        masks[first:last] = owner[first:last] == person
    return masks


def counts(owner: np.ndarray, *tracks: np.ndarray) -> TrackCounts:
    return count_tracks(mask_overlaps(owner, int(owner.max()), tracks))


def test_perfect_tracks() -> None:
    owner = scene()
    result = counts(owner, track(owner, (2, 0, 100)), track(owner, (1, 0, 100)))
    assert result.idf1 == 1
    assert result.iou == 1
    assert (result.switches, result.fragments) == (0, 0)
    assert (result.missed_frames, result.false_frames) == (0, 0)
    assert (result.people, result.tracks) == (2, 2)


def test_a_swap_in_the_middle() -> None:
    owner = scene()
    first, second = [(1, 0, 60), (2, 60, 100)], [(2, 0, 60), (1, 60, 100)]
    result = counts(owner, track(owner, *first), track(owner, *second))
    assert result.idf1 == pytest.approx(0.6)  # each track has its person for 60 of 100 frames
    assert result.switches == 2
    assert result.fragments == 0
    assert (result.missed_frames, result.false_frames) == (0, 0)


def test_a_split_track() -> None:
    owner = scene(1)
    result = counts(owner, track(owner, (1, 0, 50)), track(owner, (1, 55, 100)))
    assert result.idf1 == pytest.approx(2 * 50 / (100 + 95))
    assert (result.switches, result.fragments) == (1, 1)
    assert (result.missed_frames, result.false_frames) == (5, 0)
    assert (result.people, result.tracks) == (1, 2)


def test_a_missing_person_and_a_false_one() -> None:
    owner = scene(2)
    missing = counts(owner, track(owner, (1, 0, 100)))
    assert missing.idf1 == pytest.approx(2 * 100 / (200 + 100))
    assert (missing.missed_frames, missing.false_frames) == (100, 0)
    empty = np.zeros_like(owner)
    empty[:, 5:, 1:9] = 1
    false = counts(empty, track(owner, (1, 0, 100)), track(owner, (2, 0, 30)))
    assert false.idf1 == pytest.approx(2 * 100 / (100 + 130))
    assert (false.missed_frames, false.false_frames) == (0, 30)
    assert counts(owner).idf1 == 0
    assert count_tracks(mask_overlaps(np.zeros_like(owner), 0, [])).idf1 is None


def test_an_absence_is_neither_a_miss_nor_a_fragmentation() -> None:
    owner = scene(1)
    owner[30:70] = 0
    result = counts(owner, track(owner, (1, 0, 100)))
    assert (result.idf1, result.switches, result.fragments) == (1, 0, 0)
    renamed = counts(owner, track(owner, (1, 0, 50)), track(owner, (1, 50, 100)))
    assert renamed.idf1 == pytest.approx(0.5)
    assert (renamed.switches, renamed.fragments, renamed.missed_frames) == (1, 0, 0)


def test_a_match_lasts_while_another_track_overlaps_more() -> None:
    owner = scene(1)
    worse = track(owner, (1, 0, 100))
    worse[50:, 5:8] = False  # four fifths of the person
    better = track(owner, (1, 50, 100))
    result = counts(owner, worse, better)
    assert (result.switches, result.false_frames) == (0, 50)
    assert result.iou == pytest.approx(0.9)


def test_counts_of_recordings_add_up() -> None:
    owner = scene()
    perfect = counts(owner, track(owner, (1, 0, 100)), track(owner, (2, 0, 100)))
    half = counts(owner, track(owner, (1, 0, 100)))
    total = perfect + half
    assert total.recordings == 2
    assert total.idf1 == pytest.approx(2 * 300 / (400 + 300))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25)
def test_overlaps_are_those_of_a_naive_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    people, tracks = rng.integers(0, 4), rng.integers(0, 4)
    owner = rng.integers(0, people + 1, size=(4, 24, 25)).astype(np.uint8)
    owner[rng.random(4) < 0.3] = 0
    masks = rng.random((tracks, 4, 24, 25)) < rng.choice([0.0, 0.001, 0.5], size=(tracks, 4, 1, 1))
    overlaps = mask_overlaps(owner, people, list(masks))
    iou = overlaps.iou
    for frame in range(4):
        for person in range(people):
            true = owner[frame] == person + 1
            assert overlaps.people[frame, person] == (true.sum() if true.mean() >= 0.002 else 0)
            for number in range(tracks):
                mask = masks[number, frame]
                visible = true.mean() >= 0.002 and mask.mean() >= 0.002
                wanted = (true & mask).sum() / (true | mask).sum() if visible else 0
                assert iou[frame, person, number] == pytest.approx(wanted)


def overlaps_of(iou: np.ndarray) -> MaskOverlaps:
    """Overlaps with an IoU [T, P, K] of masks of the same area."""
    area = 1000
    shared = np.rint(2 * area * iou / (1 + iou)).astype(np.int64)
    length, people, tracks = iou.shape
    return MaskOverlaps(np.full((length, people), area), np.full((length, tracks), area), shared)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40)
def test_assignments_are_the_best_of_all(seed: int) -> None:
    """IDF1 and the matches of frames, against all permutations."""
    rng = np.random.default_rng(seed)
    length, people, tracks = 6, rng.integers(1, 4), rng.integers(1, 4)
    overlaps = overlaps_of(rng.random((length, people, tracks)))
    matches = overlaps.iou >= MIN_IOU
    # Every way to give each person at most one track, one to one; -1: none.
    ways = [
        way
        for way in itertools.product(range(-1, tracks), repeat=people)
        if len({k for k in way if k >= 0}) == sum(k >= 0 for k in way)
    ]
    best = max(sum(matches[:, p, k].sum() for p, k in enumerate(way) if k >= 0) for way in ways)
    assigned = assign_tracks(overlaps)
    assert len(set(assigned.values())) == len(assigned)
    assert sum(matches[:, p, k].sum() for p, k in assigned.items()) == best
    assert count_tracks(overlaps).identity_frames == best
    matched = match_frames(overlaps)
    previous = np.full(people, -1)
    for frame in range(length):
        allowed = [
            way for way in ways if all(k < 0 or matches[frame, p, k] for p, k in enumerate(way))
        ]

        ranks = {
            way: (
                sum(k >= 0 and k == previous[p] for p, k in enumerate(way)),
                sum(overlaps.iou[frame, p, k] for p, k in enumerate(way) if k >= 0),
            )
            for way in allowed
        }
        held, total = max(ranks.values())
        assert ranks[tuple(matched[frame])] == (held, pytest.approx(total))
        previous = matched[frame]
