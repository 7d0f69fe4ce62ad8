"""Center voting: one slot gathers the pixels that vote for one center."""

import pytest
import torch

from cavmae.finetune.speaker.center_voting import STRENGTH, CenterVoting
from cavmae.finetune.speaker.losses import targets_of, vote_loss
from cavmae.finetune.speaker.matcher import draw_points
from tests.finetune.speaker.scenes import batch


def test_initial_votes_are_pixel_positions_and_centers_lie_side_by_side() -> None:
    voting = CenterVoting(8, 4, 3)
    votes = voting.votes(torch.randn(2, 2, 4, 10, 27)).detach()
    assert votes.shape == (2, 2, 2, 10, 27)
    assert float(votes[0, 0, 1, 3, 6]) == pytest.approx(6.5 / 27)
    assert float(votes[0, 1, 1, 3, 6]) == pytest.approx(3.5 / 10)
    logits = voting(torch.randn(2, 3, 8), votes, None)
    assert logits.shape == (2, 3, 2, 10, 27)
    assert logits[0, :, 0, 5].argmax(-1).tolist() == [4, 13, 22]
    assert logits.max() <= STRENGTH
    assert logits.min() >= -STRENGTH


def test_a_center_moves_to_the_votes_under_its_mask() -> None:
    voting = CenterVoting(8, 4, 2)
    votes = voting.votes(torch.zeros(1, 1, 4, 10, 30))
    previous = torch.full((1, 2, 1, 10, 30), -20.0)
    previous[:, :, :, :, 20:24] = 20
    logits = voting(torch.zeros(1, 2, 8), votes, previous)
    assert logits[0, :, 0, 5].argmax(-1).tolist() in ([21, 21], [22, 22])


def test_people_with_different_votes_are_separated_where_they_touch() -> None:
    """Two people side by side with right votes: each center gathers its own person only."""
    voting = CenterVoting(8, 4, 2)
    votes = torch.empty(1, 2, 1, 10, 40)
    votes[:, 1] = 0.5
    votes[..., :20], votes[..., 20:] = 0.25, 0.75
    votes[:, 1] = 0.5
    logits = voting(torch.zeros(1, 2, 8), votes, None)
    assert (logits[0, 0, 0, :, :20] > 0).all()
    assert (logits[0, 0, 0, :, 20:] < 0).all()
    assert (logits[0, 1, 0, :, 20:] > 0).all()


def test_votes_are_compared_with_the_centers_of_masks() -> None:
    scenes = batch()
    targets = targets_of(scenes, torch.full((2,), -1), torch.ones(2, 1))
    pixels = draw_points(targets.masks.shape, 400, targets.masks.device)
    # People stand at columns 2 to 22 and 26 to 46 of 48, rows 8 to 32 of 32.
    votes = torch.empty(2, 2, 2, 8, 12)
    votes[:, 0, :, :, :6], votes[:, 0, :, :, 6:] = 12 / 48, 36 / 48
    votes[:, 1] = 20 / 32
    assert float(vote_loss(votes, targets, pixels)) == pytest.approx(0, abs=0.04)
    votes[:, 0] += 0.1
    votes[:, 1] -= 0.2
    assert float(vote_loss(votes, targets, pixels)) == pytest.approx(0.3, abs=0.04)


def test_pixels_of_people_without_a_mask_do_not_count() -> None:
    scenes = batch()
    scenes["masked"][:] = False
    targets = targets_of(scenes, torch.full((2,), -1), torch.ones(2, 1))
    pixels = draw_points(targets.masks.shape, 50, targets.masks.device)
    votes = torch.rand(2, 2, 2, 8, 12, requires_grad=True)
    loss = vote_loss(votes, targets, pixels)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not votes.grad.any()
