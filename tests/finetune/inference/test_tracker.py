"""Numbers of people across windows."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cavmae.common.boxes import WHOLE
from cavmae.finetune.inference.detections import DetectedPerson
from cavmae.finetune.inference.settings import Thresholds
from cavmae.finetune.inference.shots import interpolate_masks, visible_keys
from cavmae.finetune.inference.tracker import Tracker, masks_at

LENGTH, KEYS = 16, np.array([2, 6, 10, 14])
THRESHOLDS = Thresholds()


def person(place: float, color: int, tone: float = 0.0, masks: int = 24) -> DetectedPerson:
    """A still person, a fifth of the frame wide, centered at ``place``."""
    return moving(lambda _: place, color, tone, 0, masks)


def moving(where, color: int, tone: float, start: int, size: int = 24) -> DetectedPerson:  # type: ignore[no-untyped-def]
    values = np.zeros((len(KEYS), size, size), dtype=np.uint8)
    for number, key in enumerate(KEYS):
        middle = where(start + key)
        left, right = round((middle - 0.1) * size), round((middle + 0.1) * size)
        values[number, 4:, max(0, left) : max(0, right)] = 255
    time = (start * 40 + np.arange(LENGTH * 40)) / 1000
    colors = np.zeros((len(KEYS), 1, 1, 64), dtype=np.float32)
    colors[..., color] = 1
    voice = np.sin(2 * np.pi * tone * time).astype(np.float32)
    still = np.zeros(LENGTH, np.float32)
    return DetectedPerson(0, 0.9, np.ones(LENGTH, np.float32), WHOLE, values, voice, colors, still)


def make_tracker(starts: list[int], thresholds: Thresholds = THRESHOLDS) -> Tracker:
    return Tracker(starts, KEYS, LENGTH, 40, 25, thresholds)


def test_numbers_do_not_depend_on_the_order_of_people() -> None:
    tracker = make_tracker([0, 8, 16])
    a, b = person(0.25, 1), person(0.75, 1)
    assert tracker.assign_numbers([a, b]) == [1, 2]
    assert tracker.assign_numbers([b, a]) == [2, 1]
    # A newcomer between them.
    assert tracker.assign_numbers([person(0.5, 9), b, a]) == [3, 2, 1]


def test_numbers_survive_a_crossing() -> None:
    """Two people of one color change places; every window lists them from left to right."""
    starts = list(range(0, 120, 8))
    tracker = make_tracker(starts)
    expected = {}
    for start in starts:
        left = moving(lambda t: 0.2 + 0.6 * t / 120, 1, 5.0, start)
        right = moving(lambda t: 0.8 - 0.6 * t / 120, 1, 8.0, start)
        people = [left, right]
        if start > 56:
            people.reverse()
        numbers = tracker.assign_numbers(people)
        numbered = dict(zip(("a", "b") if start <= 56 else ("b", "a"), numbers, strict=True))
        expected.setdefault("a", numbered["a"])
        expected.setdefault("b", numbered["b"])
        assert numbered == expected
    assert len(tracker.tracks) == 2


def test_colors_identify_returning_people_but_no_strangers() -> None:
    starts = list(range(0, 200, 8))
    tracker = make_tracker(starts)
    assert tracker.assign_numbers([person(0.3, 1), person(0.7, 2)]) == [1, 2]
    for _ in range(5):
        assert tracker.assign_numbers([person(0.3, 1)]) == [1]
    assert tracker.assign_numbers([person(0.3, 1), person(0.6, 2)]) == [1, 2]
    for _ in range(3):
        assert tracker.assign_numbers([]) == []
    assert tracker.assign_numbers([person(0.7, 5)]) == [3]
    assert tracker.assign_numbers([person(0.1, 1), person(0.7, 5)]) == [1, 3]


def test_tracks_end_after_a_long_absence() -> None:
    starts = list(range(0, 400, 8))
    tracker = make_tracker(starts)
    tracker.assign_numbers([person(0.3, 1)])
    for _ in range(40):
        tracker.assign_numbers([])
    assert tracker.assign_numbers([person(0.3, 1)]) == [2]


@pytest.mark.parametrize(
    ("change", "numbers"),
    [
        ({}, [1, 1, 1]),
        ({"min_track_score": 0.8, "min_color_similarity": 1.0}, [1, 2, 1]),
        ({"min_track_score": 0.8, "min_color_similarity": 1.0, "voice_weight": 2.0}, [1, 1, 2]),
        ({"min_color_similarity": 0.99}, [1, 1, 2]),
        ({"max_absence": 0.1}, [1, 1, 2]),
    ],
)
def test_each_threshold_of_tracks_has_an_effect(
    change: dict[str, float], numbers: list[int]
) -> None:
    """A person moves by a part of their width, changes color a little, and leaves for a second."""
    tracker = make_tracker(list(range(0, 80, 8)), Thresholds(**change))
    first = moving(lambda _: 0.5, 1, 5.0, 0)
    second = moving(lambda _: 0.6, 1, 5.0, 8)
    second.colors[..., 2] = 1 / 19  # a similarity of 0.97
    assigned = [*tracker.assign_numbers([first]), *tracker.assign_numbers([second])]
    for _ in range(4):
        tracker.assign_numbers([])
    assert [*assigned, *tracker.assign_numbers([moving(lambda _: 0.1, 1, 9.0, 48)])] == numbers


def part(whole: DetectedPerson, *keys: int) -> DetectedPerson:
    """A person who is visible in some key frames only."""
    masks = np.zeros_like(whole.masks)
    masks[list(keys)] = whole.masks[list(keys)]
    return whole._replace(masks=masks)


def test_a_person_before_and_after_a_cut_is_one() -> None:
    """Two people change places at a cut in the second window; each has a slot on either side."""
    tracker = make_tracker([0, 8, 16, 24])
    assert tracker.assign_numbers([person(0.3, 1), person(0.7, 2)]) == [1, 2]
    before = part(person(0.3, 1), 0, 1), part(person(0.7, 2), 0, 1)
    after = part(person(0.2, 2), 2, 3), part(person(0.8, 1), 2, 3)
    assert tracker.assign_numbers([*after, *before]) == [2, 1, 1, 2]
    # In the third window, too, the first frames are those after the cut.
    assert tracker.assign_numbers([person(0.8, 1), person(0.2, 2)]) == [1, 2]
    assert tracker.assign_numbers([person(0.2, 2), person(0.8, 1)]) == [2, 1]


def test_both_sides_of_a_cut_in_a_first_window() -> None:
    tracker = make_tracker([0, 8])
    sides = [part(person(0.8, 1), 2, 3), part(person(0.2, 1), 0, 1), part(person(0.5, 4), 2, 3)]
    assert tracker.assign_numbers(sides) == [1, 1, 2]
    # Windows overlap: both sides are in the next one as well.
    again = [part(person(0.2, 1), 0), part(person(0.8, 1), 1, 2, 3), part(person(0.5, 4), 1, 2, 3)]
    assert tracker.assign_numbers(again) == [1, 1, 2]


def test_people_of_one_key_frame_never_share_a_number() -> None:
    """Look-alikes: the one after the cut is either, but not both."""
    tracker = make_tracker([0, 8, 16])
    twins = [person(0.2, 1), person(0.8, 1)]
    assert tracker.assign_numbers(twins) == [1, 2]
    cut = [part(twins[0], 0, 1), part(twins[1], 0, 1, 2), part(person(0.5, 1), 2, 3)]
    assert tracker.assign_numbers(cut) == [1, 2, 1]
    other = part(person(0.5, 1), 1, 2, 3)
    assert sorted(tracker.assign_numbers([*twins, other])) == [1, 2, 3]


@given(seed=st.integers(0, 500))
@settings(max_examples=30, deadline=None)
def test_numbers_of_a_window_are_apart_in_time(seed: int) -> None:
    """Two detections with one number share no key frame, for random detections."""
    rng = np.random.default_rng(seed)
    tracker = make_tracker(list(range(0, 8 * 6, 8)))
    for _ in range(6):
        people = []
        for _ in range(rng.integers(0, 6)):
            whole = person(rng.uniform(0.1, 0.9), int(rng.integers(3)))
            people.append(part(whole, *np.flatnonzero(rng.random(4) < 0.6)))
        numbers = tracker.assign_numbers(people)
        assert all(numbers)
        for (a, first), (b, second) in itertools.combinations(zip(numbers, people, strict=True), 2):
            assert a != b or not (visible_keys(first) & visible_keys(second)).any()


def test_memory_of_ended_tracks_is_freed() -> None:
    """An hour of cuts has hundreds of people; memory stays bounded."""
    tracker = make_tracker(list(range(0, 8 * 3000, 8)))
    for number in range(3000):
        assert tracker.assign_numbers([person(0.3, number % 64)] if number % 3 == 0 else []) != [0]
        assert sum(bool(track.detections) for track in tracker.tracks) <= 2
        assert len(tracker.tracks) <= 32  # those of the last ten seconds


def test_masks_lie_in_their_region_of_the_frame() -> None:
    whole = person(0.5, 0, masks=48)
    part = whole._replace(masks=whole.masks[:, :, 12:36], box=(0.25, 0.0, 0.75, 1.0))
    frames = np.array([2, 4, 9])
    np.testing.assert_allclose(masks_at(part, frames, KEYS), masks_at(whole, frames, KEYS))
    middle = interpolate_masks(whole.masks, np.array([2, 4, 6]), KEYS)
    np.testing.assert_allclose(middle[1], (middle[0] + middle[2]) / 2, atol=1e-6)
