"""What the speaker model is taught: losses, their gradients, and truth that stands in."""

from typing import Any

import pytest
import torch

from cavmae.finetune.speaker.losses import (
    presence_targets,
    seen_slots,
    speaker_losses,
    targets_of,
    teacher_force_masks,
)
from tests.finetune.speaker.scenes import SAMPLES, batch, task


def _changed(kind: str) -> dict[str, Any]:
    told = batch()
    if kind == "silent":
        told["speaking"][:] = False
        told["rest"] += told["voices"].sum(1)
        told["voices"][:] = 0
    elif kind == "single":
        told["present"][:, 1] = told["speaking"][:, 1] = told["masked"][:, 1] = False
        told["masks"][:, 1] = False
        told["rest"] += told["voices"][:, 1]
        told["voices"][:, 1] = 0
    elif kind == "absent":
        for name in ("present", "speaking", "masked", "masks", "voices"):
            told[name] = torch.zeros_like(told[name])
    elif kind == "identical":
        told["voices"][:, 1] = told["voices"][:, 0]
        told["mixture"] = told["voices"].sum(1) + told["rest"]
        told["masks"][:, 1] = told["masks"][:, 0]
    elif kind == "no masks":
        told["masked"][:] = False
        told["masks"][:] = False
    return told


@pytest.mark.parametrize("kind", ["silent", "single", "absent", "identical", "no masks"])
@pytest.mark.parametrize("progress", [0.0, 0.9])
def test_losses_and_gradients_are_finite(kind: str, progress: float) -> None:
    torch.manual_seed(0)
    one = task()
    outcome = one.training_step(_changed(kind), progress, [], 0)
    outcome.loss.backward()
    for name, value in outcome.logs.items():
        assert torch.isfinite(value), name
    for name, parameter in one.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name  # DDP waits for those that get none
            assert torch.isfinite(parameter.grad).all(), name


def test_nothing_of_an_unseen_persons_truth_counts() -> None:
    """Voices of people without a mask are learned; their (empty) masks are not."""
    one = task()
    told = _changed("no masks")
    torch.manual_seed(1)
    outcome = one.training_step(told, 0.9, [], 0)
    assert float(outcome.logs["dice"]) == 0
    assert float(outcome.logs["mixer"]) == 0
    assert float(outcome.logs["spectrum"]) > 0


def test_when_people_are_heard_is_learned() -> None:
    one = task()
    told = batch()
    told["voices"][0, 0, : SAMPLES // 2] = 0  # says something in the second half only
    inputs, target = one.inputs_of(told, 0.0)
    truth = targets_of(told, target, torch.ones(2, 1))
    looked, voices = one.model(inputs)
    _, pixels = seen_slots(looked, truth, one.loss)

    def cost(when: torch.Tensor) -> float:
        changed = voices._replace(activity_logits=when)
        return float(speaker_losses(looked, changed, truth, pixels, one.loss).parts["when"])

    slots = speaker_losses(looked, voices, truth, pixels, one.loss).slots
    right = torch.full_like(voices.activity_logits, 20.0)  # the residual's noise is always there
    right[0, slots[0, 0], : right.shape[-1] // 2] = -20.0
    assert cost(right) < 1e-3
    always = torch.full_like(right, 20.0)
    assert cost(always) == pytest.approx(20 * 0.5 / 6, rel=1e-3)  # half a voice of six


def test_the_truth_about_who_is_there_stands_in_where_it_is_known() -> None:
    told = batch(3)
    truth = targets_of(told, torch.full((3,), -1), torch.ones(3, 1))
    truth.people.masked[1, 0] = False
    slots = torch.tensor([[2, 0], [1, 0], [3, 1]])
    replaced = torch.tensor([[True, False], [False, True], [False, False]])
    found = presence_targets(torch.full((3, 4), 0.3), truth, slots, replaced)
    assert found[0].tolist() == [1, 0, 1, 0]
    assert found[1].tolist() == found[2].tolist() == pytest.approx([0.3] * 4)


def test_true_masks_stand_in_for_wrong_ones_only() -> None:
    one = task()
    told = batch()
    inputs, target = one.inputs_of(told, 0.0)
    looked = one.model.predict_masks(inputs)
    truth = targets_of(told, target, torch.ones(2, 1))
    slots, pixels = seen_slots(looked, truth, one.loss)
    assert pixels.shape == (2, 2, 64)
    true = torch.nn.functional.avg_pool2d(told["masks"].float().flatten(0, 1), 4)
    true = true.unflatten(0, told["masks"].shape[:2])
    own = looked.masks[-1].sigmoid() * 0.4  # nobody is seen, which is wrong
    own[0, slots[0, 1]] = true[0, 1] * 0.9  # this one is nearly right
    truth.people.masked[1, 0] = False  # and this one nobody knows
    found, replaced = teacher_force_masks(own, truth, slots, 0.6)
    assert replaced.tolist() == [[True, False], [False, True]]
    for row, person in ((0, 0), (1, 1)):
        torch.testing.assert_close(found[row, slots[row, person]], true[row, person])
        own[row, slots[row, person]] = true[row, person]
    torch.testing.assert_close(found, own)  # all others are as they were
    assert not teacher_force_masks(own * 0, truth, slots, 0.0)[1].any()
