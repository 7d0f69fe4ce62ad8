"""Slots of a window that are one person, and pieces of masks that are not."""

import numpy as np
import pytest
import torch

from cavmae.finetune.separating.gathering import LEAST, SPECK, people_of, without_specks

SIZE = (2, 20, 40)  # key frames, height, width


def block(rows: slice, columns: slice) -> torch.Tensor:
    mask = torch.zeros(SIZE)
    mask[:, rows, columns] = 0.9
    return mask


def voting(*middles: tuple[torch.Tensor, float, float]) -> torch.Tensor:
    """Votes: each mask's pixels for a middle, all others for a corner."""
    votes = torch.zeros(2, *SIZE)
    for mask, x, y in middles:
        votes[0][mask > 0.5], votes[1][mask > 0.5] = x, y
    return votes


FACE, HAIR = block(slice(6, 12), slice(10, 16)), block(slice(0, 5), slice(8, 18))
OTHER = block(slice(4, 20), slice(26, 38))


def test_parts_that_vote_for_one_middle_are_one_person() -> None:
    masks = torch.stack([OTHER, HAIR, FACE, torch.zeros(SIZE)])
    votes = voting((OTHER, 0.8, 0.6), (HAIR, 0.33, 0.4), (FACE, 0.32, 0.43))
    there = torch.tensor([0.7, 0.8, 0.95, 0.9])
    assert people_of(masks, votes, there, cued=False) == [[2, 1], [0]]
    # Whom a cue means comes first, however sure others are.
    assert people_of(masks, votes, there, cued=True) == [[0], [2, 1]]
    # Somebody above somebody else is another person.
    votes = voting((OTHER, 0.8, 0.6), (HAIR, 0.33, 0.2), (FACE, 0.32, 0.43))
    assert people_of(masks, votes, there, cued=False) == [[2], [1], [0]]


def test_the_same_pixels_are_one_person_whatever_they_vote_for() -> None:
    again = OTHER.clone()
    again[:, :6] = 0
    votes = voting((OTHER, 0.8, 0.2))
    votes[1, :, 12:] = 0.9
    there = torch.tensor([0.9, 0.8])
    assert people_of(torch.stack([OTHER, again]), votes, there, cued=False) == [[0, 1]]


def test_who_is_not_there_or_hardly_seen_is_nobody() -> None:
    dot = block(slice(3, 4), slice(3, 4))
    assert float((dot > 0.5).float().mean()) < LEAST
    votes = voting((FACE, 0.3, 0.4))
    there = torch.tensor([0.9, 0.4])
    assert people_of(torch.stack([dot, FACE]), votes, there, cued=False) == []


@pytest.mark.parametrize("small", [1, 3, 4, 9])
def test_specks_go_and_pieces_stay(small: int) -> None:
    """A body that a hand cuts in two stays whole; a speck above a head goes, in its frame only."""
    mask = torch.full(SIZE, 0.2)
    mask[0, 10:16, 10:16] = 0.8  # 36 pixels
    mask[0, 0, :small] = 0.7
    mask[1, 0, :small] = 0.7
    found = without_specks(mask)
    expected = mask.clone()
    if small < SPECK * 36:
        expected[0, 0, :small] = 0.0
    np.testing.assert_array_equal(found.numpy(), expected.numpy())
    assert torch.equal(without_specks(found), found)
