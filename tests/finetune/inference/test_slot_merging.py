"""Merging of slots into people, and removal of specks from masks."""

import numpy as np
import pytest
import torch

from cavmae.finetune.inference.settings import Thresholds
from cavmae.finetune.inference.slot_merging import (
    join_slots,
    merge_slots,
    without_copies,
    without_specks,
)
from cavmae.finetune.speaker.model_tensors import NONE, STATES, SlotPredictions

SIZE = (4, 20, 40)  # key frames, height, width
THRESHOLDS = Thresholds()


def block(rows: slice, columns: slice, keys: slice = slice(None)) -> torch.Tensor:
    mask = torch.zeros(SIZE)
    mask[keys, rows, columns] = 0.9
    return mask


def voting(*middles: tuple[torch.Tensor, float, float]) -> torch.Tensor:
    """Votes: each mask's pixels for a middle, all others for a corner."""
    votes = torch.zeros(2, *SIZE)
    for mask, x, y in middles:
        votes[0][mask > 0.5], votes[1][mask > 0.5] = x, y
    return votes


def groups(
    masks: list[torch.Tensor], votes: torch.Tensor, *presence_prob: float
) -> list[list[int]]:
    return merge_slots(torch.stack(masks), votes, torch.tensor(presence_prob), False, THRESHOLDS)


FACE, HAIR = block(slice(5, 12), slice(10, 16)), block(slice(0, 5), slice(8, 18))
OTHER = block(slice(4, 20), slice(26, 38))


def test_parts_that_vote_for_one_middle_are_one_person() -> None:
    masks = torch.stack([OTHER, HAIR, FACE, torch.zeros(SIZE)])
    votes = voting((OTHER, 0.8, 0.6), (HAIR, 0.33, 0.4), (FACE, 0.32, 0.43))
    presence_prob = torch.tensor([0.82, 0.85, 0.95, 0.9])
    assert merge_slots(masks, votes, presence_prob, False, THRESHOLDS) == [[2, 1], [0]]
    # The cued slot comes first, whatever its presence probability.
    assert merge_slots(masks, votes, presence_prob, True, THRESHOLDS) == [[0], [2, 1]]
    # Touching masks with distant votes are two people.
    votes = voting((OTHER, 0.8, 0.6), (HAIR, 0.33, 0.2), (FACE, 0.32, 0.43))
    assert merge_slots(masks, votes, presence_prob, False, THRESHOLDS) == [[2], [1], [0]]


def test_people_before_and_after_a_cut_are_two() -> None:
    """Same place and same center in different key frames."""
    rows, columns = slice(4, 20), slice(14, 26)
    first, then = block(rows, columns, slice(0, 2)), block(rows, columns, slice(2, 4))
    votes = voting((first, 0.5, 0.6), (then, 0.5, 0.6))
    assert groups([first, then], votes, 0.9, 0.8) == [[0], [1]]


def test_people_who_change_places_are_two() -> None:
    """Their mean centers are equal, and their masks touch while they pass."""
    places = (2, 13, 19, 32)
    first, second = torch.zeros(SIZE), torch.zeros(SIZE)
    for key, (left, mirrored) in enumerate(zip(places, places[::-1], strict=True)):
        first[key, 4:20, left : left + 6] = 0.9
        second[key, 4:20, mirrored : mirrored + 6] = 0.9
    votes = voting((first, 0.5, 0.6), (second, 0.5, 0.6))
    assert groups([first, second], votes, 0.9, 0.8) == [[0], [1]]


def test_the_same_pixels_are_one_person_whatever_they_vote_for() -> None:
    above = block(slice(4, 9), slice(26, 38))
    again = OTHER - above
    votes = voting((again, 0.8, 0.9), (above, 0.8, 0.0))
    apart = votes[1][OTHER > 0.5].mean() - votes[1][again > 0.5].mean()
    assert abs(float(apart)) > 0.2
    assert groups([OTHER, again], votes, 0.9, 0.8) == [[0, 1]]


def test_slots_of_low_presence_or_tiny_masks_are_dropped() -> None:
    dot = block(slice(3, 4), slice(3, 4))
    assert float((dot > 0.5).float().mean()) < THRESHOLDS.min_area_fraction
    assert groups([dot, FACE], voting((FACE, 0.3, 0.4)), 0.9, 0.4) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, [[0, 1]]),
        ({"min_presence_prob": 0.85}, [[0]]),
        ({"min_area_fraction": 0.055}, [[1]]),
        ({"max_vote_distance": 0.02}, [[0, 1]]),
        ({"max_vote_distance": 0.02, "max_part_distance": 0.02}, [[0], [1]]),
        ({"max_vote_distance": 0.02, "max_part_distance": 0, "min_slot_iou": 0.0}, [[0, 1]]),
    ],
)
def test_each_threshold_of_slots_has_an_effect(
    change: dict[str, float], expected: list[list[int]]
) -> None:
    """A face, and hair that is larger and less probable."""
    votes = voting((HAIR, 0.33, 0.4), (FACE, 0.32, 0.43))
    presence_prob = torch.tensor([0.95, 0.82])
    masks = torch.stack([FACE, HAIR])
    assert merge_slots(masks, votes, presence_prob, False, Thresholds(**change)) == expected


@pytest.mark.parametrize(
    ("x", "y", "rows", "expected"),
    [
        (0.32, 0.47, 14, [[0, 1]]),  # a head and the trunk below it
        (0.34, 0.47, 14, [[0], [1]]),  # another column
        (0.31, 0.52, 14, [[0], [1]]),  # too far below, as of somebody behind another
        (0.31, 0.47, 4, [[0], [1]]),  # two small people, one above the other
    ],
)
def test_parts_in_a_column_vote_less_exactly_for_its_height(
    x: float, y: float, rows: int, expected: list[list[int]]
) -> None:
    """Of a person of 18 of 20 rows and 14 of 40 columns, 0.108 and 0.035 of the frame."""
    head, trunk = block(slice(1, 5), slice(10, 20)), block(slice(5, 5 + rows), slice(8, 22))
    votes = voting((trunk, x, y), (head, 0.3, 0.38))
    assert groups([head, trunk], votes, 0.95, 0.9) == expected


def test_joined_slots_are_one_and_the_others_nobody() -> None:
    """Slots 2 and 0 are one person, 1 another, 3 nobody."""
    logits = torch.randn(1, 4, *SIZE, generator=torch.Generator().manual_seed(0))
    states = torch.randn(1, 5, len(STATES))
    empty = torch.zeros(0)
    before = SlotPredictions(
        empty, empty, [states + 1, states], [logits + 1, logits], empty, empty, empty, empty
    )
    presence_prob = torch.tensor([0.9, 0.8, 0.85, 0.1])
    joined = join_slots(before, [[2, 0], [1]], presence_prob)
    assert joined.masks[-1][:, 2].equal(logits[:, [0, 2]].amax(1))
    assert (joined.masks[-1][:, 0].sigmoid() < 1e-6).all()
    assert (joined.states[-1][:, 0].softmax(-1)[:, NONE] > 0.999).all()
    assert joined.masks[-1][:, [1, 3]].equal(logits[:, [1, 3]])
    assert joined.states[-1][:, 2].equal(states[:, 0])  # the most present of both
    assert joined.states[-1][:, [1, 3, 4]].equal(states[:, [1, 3, 4]])
    assert joined.masks[0].equal(logits + 1) and joined.states[0].equal(states + 1)
    assert join_slots(before, [[2], [1]], presence_prob) is before


def test_parts_touch_in_enough_key_frames() -> None:
    apart = FACE.clone()
    apart[:2] = block(slice(8, 15), slice(10, 16))[:2]
    votes = voting((HAIR, 0.33, 0.4), (apart, 0.32, 0.43))
    masks, presence_prob = torch.stack([apart, HAIR]), torch.tensor([0.95, 0.8])
    for min_fraction, expected in ((0.5, [[0, 1]]), (0.75, [[0], [1]])):
        thresholds = Thresholds(min_touching_fraction=min_fraction)
        assert merge_slots(masks, votes, presence_prob, False, thresholds) == expected


@pytest.mark.parametrize("small", [1, 3, 6, 12])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_specks_go_and_pieces_stay(small: int, elsewhere: bool) -> None:
    """A piece that votes for its person's center stays, as a head does that an arm cuts off."""
    mask = torch.full(SIZE, 0.2)
    mask[0, 8:18, 10:20] = 0.8  # 100 pixels
    mask[0, 0, :small] = 0.7
    mask[1, 0, :small] = 0.7
    mask[2, range(12), range(12)] = 0.7  # an arm: corners touch
    votes = torch.full((2, *SIZE), 0.5)
    if elsewhere:
        votes[:, :, 0] = 0.9
    cleaned = without_specks(mask, votes, THRESHOLDS)
    expected = mask.clone()
    tiny = small < THRESHOLDS.min_area_fraction * 800
    if small < THRESHOLDS.max_speck_fraction * 100 and (elsewhere or tiny):
        expected[0, 0, :small] = 0.0
    np.testing.assert_array_equal(cleaned.numpy(), expected.numpy())
    assert torch.equal(without_specks(cleaned, votes, THRESHOLDS), cleaned)


@pytest.mark.parametrize("order", [1, -1])
def test_slot_of_who_leaves_is_not_kept_on_who_remains(order: int) -> None:
    """Left in the first two key frames, then a faint copy on the other's body."""
    remains = block(slice(4, 20), slice(26, 38))
    leaves = block(slice(4, 20), slice(4, 16), slice(0, 2))
    copy = block(slice(6, 15), slice(27, 37), slice(2, 4))
    votes = voting((leaves, 0.25, 0.6), (remains, 0.8, 0.6), (copy, 0.8, 0.6))
    people = [remains, leaves + copy][::order]
    cleaned = without_copies(torch.stack(people), votes, THRESHOLDS)
    assert torch.equal(cleaned, torch.stack([remains, leaves][::order]))


def test_part_of_a_body_that_stays_where_it_was_is_kept() -> None:
    """Inside another mask all the time, in front of another person, or with no other frames."""
    front = block(slice(4, 20), slice(14, 26))
    inside = block(slice(6, 10), slice(16, 22))
    passing = block(slice(6, 12), slice(0, 10), slice(0, 2)) + block(
        slice(6, 12), slice(15, 24), slice(2, 4)
    )
    late = block(slice(6, 12), slice(15, 24), slice(3, 4))
    for person in (inside, passing, late):
        votes = voting((front, 0.5, 0.6), (person, 0.52, 0.4))
        people = torch.stack([front, person])
        assert torch.equal(without_copies(people, votes, THRESHOLDS), people)
