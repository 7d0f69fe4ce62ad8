"""Losses of the speaker model, their gradients, and teacher forcing."""

from typing import Any

import pytest
import torch

from cavmae.finetune.speaker.losses import (
    assign_before_voices,
    presence_targets,
    speaker_losses,
    targets_of,
    teacher_force_masks,
)
from tests.finetune.speaker.scenes import SAMPLES, batch, task


def _changed(kind: str) -> dict[str, Any]:
    scenes = batch()
    if kind == "silent":
        scenes["speaking"][:] = False
        scenes["residual"] += scenes["voices"].sum(1)
        scenes["voices"][:] = 0
    elif kind == "single":
        scenes["present"][:, 1] = scenes["speaking"][:, 1] = scenes["masked"][:, 1] = False
        scenes["masks"][:, 1] = False
        scenes["residual"] += scenes["voices"][:, 1]
        scenes["voices"][:, 1] = 0
    elif kind in ("absent", "absent in one"):
        rows = slice(0, 1 if kind == "absent in one" else None)
        for name in ("present", "speaking", "masked", "masks", "voices", "articulated"):
            scenes[name][rows] = 0
        scenes["residual"][rows] = scenes["mixture"][rows]
        scenes["target"][rows] = 0
    elif kind == "identical":
        scenes["voices"][:, 1] = scenes["voices"][:, 0]
        scenes["mixture"] = scenes["voices"].sum(1) + scenes["residual"]
        scenes["masks"][:, 1] = scenes["masks"][:, 0]
    elif kind == "no masks":
        scenes["masked"][:] = False
        scenes["masks"][:] = False
    return scenes


@pytest.mark.parametrize(
    "kind", ["silent", "single", "absent", "absent in one", "identical", "no masks"]
)
@pytest.mark.parametrize("progress", [0.0, 0.9])
@pytest.mark.parametrize("learned", ["all", "masks and cues", "masks"])
def test_losses_and_gradients_are_finite(kind: str, progress: float, learned: str) -> None:
    torch.manual_seed(0)
    losses = {"articulation_weight": 0.0} if learned == "masks" else {}
    speaker_task = task(freeze_voices=learned != "all", **losses)
    scenes = _changed(kind)
    if kind.startswith("absent"):
        assert speaker_task.inputs_of(scenes, 1.0)[1][0] == -1  # no cue for nobody
    output = speaker_task.training_step(scenes, progress, [], 0)
    output.loss.backward()
    for name, value in output.logs.items():
        assert torch.isfinite(value), name
    for name, parameter in speaker_task.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name  # DDP waits for those that get none
            assert torch.isfinite(parameter.grad).all(), name


def test_frozen_voices_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks, states and articulation cues learn by the same losses; the others are not there."""
    speaker_task = task(freeze_voices=True)
    parts = []
    for frozen in (False, True):
        speaker_task.freeze_voices = frozen
        if frozen:
            monkeypatch.setattr(speaker_task.model, "decode_voices", None)
        torch.manual_seed(0)
        scenes = batch(people=1)  # one mask to match: slots are those of the voices, too
        parts.append(speaker_task.training_step(scenes, 0.0, [], 0).logs)
    whole, visual = parts
    missing = {"activity", "sdr", "spectrum", "silence"}
    assert set(whole) - set(visual) == missing
    assert set(visual) < set(whole)
    for name in ("mask_bce", "dice", "center_vote", "mixer", "articulation"):
        torch.testing.assert_close(visual[name], whole[name])
    own = ("sound.", "voice_state_head.", "residual_state_head.", "voice_cue_proj.")
    for name, parameter in speaker_task.model.named_parameters():
        if not name.startswith("encoder."):
            assert parameter.requires_grad != name.startswith(own), name


def test_lips_are_not_read_where_their_loss_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With voices frozen nothing depends on them; masks and states learn by the same losses."""
    parts = []
    for weight in (3.0, 0.0):
        torch.manual_seed(0)
        speaker_task = task(freeze_voices=True, articulation_weight=weight)
        if weight == 0:
            monkeypatch.setattr(speaker_task.model, "read_articulation", None)
        parts.append(speaker_task.training_step(batch(), 0.0, [], 0).logs)
    read, unread = parts
    assert set(read) - set(unread) == {"articulation"}
    for name in ("state", "mask_bce", "dice", "center_vote", "mixer"):
        torch.testing.assert_close(unread[name], read[name], msg=name)
    lips = ("motion_reader.", "articulation_head.")
    for name, parameter in speaker_task.model.named_parameters():
        if name.startswith(lips):
            assert not parameter.requires_grad, name


def test_articulation_counts_where_it_is_known() -> None:
    """The mean L1 difference and what correlations lack to 1, by loops over people."""
    torch.manual_seed(0)
    speaker_task = task()
    scenes = batch(people=3)
    scenes["articulated"][0, 1] = scenes["present"][1, 2] = False
    inputs, target = speaker_task.inputs_of(scenes, 0.0)
    targets = targets_of(scenes, target, torch.ones(2, 1))
    predictions, voices = speaker_task.model(inputs)
    _, pixels = assign_before_voices(predictions, targets, speaker_task.loss)
    losses = speaker_losses(predictions, voices, targets, pixels, speaker_task.loss)
    differences, lacks = [], []
    for row, person in ((0, 0), (0, 2), (1, 0), (1, 1)):
        read = voices.articulation[row, losses.slots[row, person]].detach()
        true = scenes["articulation"][row, person]
        differences.append(read - true)
        for channel in range(4):
            a, b = (x[:, channel] - x[:, channel].mean() for x in (read, true))
            power = ((a**2).mean() + 1e-3) * ((b**2).mean() + 1e-3)
            moving = (b**2).mean() / ((b**2).mean() + 1e-3)
            lacks.append((1 - (a * b).mean() / power.sqrt()) * moving)
    expected = torch.stack(differences).abs().mean() + 0.1 * torch.stack(lacks).mean()
    torch.testing.assert_close(losses.parts["articulation"].detach(), expected)


def test_masks_of_people_without_a_mask_do_not_count() -> None:
    """Voices of people without a mask are learned; their (empty) masks are not."""
    speaker_task = task()
    scenes = _changed("no masks")
    torch.manual_seed(1)
    output = speaker_task.training_step(scenes, 0.9, [], 0)
    assert float(output.logs["dice"]) == 0
    assert float(output.logs["mixer"]) == 0
    assert float(output.logs["spectrum"]) > 0


def test_activity_is_learned() -> None:
    speaker_task = task()
    scenes = batch()
    scenes["voices"][0, 0, : SAMPLES // 2] = 0  # active in the second half only
    inputs, target = speaker_task.inputs_of(scenes, 0.0)
    targets = targets_of(scenes, target, torch.ones(2, 1))
    predictions, voices = speaker_task.model(inputs)
    _, pixels = assign_before_voices(predictions, targets, speaker_task.loss)

    def cost(activity_logits: torch.Tensor) -> float:
        changed = voices._replace(activity_logits=activity_logits)
        return float(
            speaker_losses(predictions, changed, targets, pixels, speaker_task.loss).parts[
                "activity"
            ]
        )

    slots = speaker_losses(predictions, voices, targets, pixels, speaker_task.loss).slots
    correct = torch.full_like(voices.activity_logits, 20.0)  # the residual's noise never stops
    correct[0, slots[0, 0], : correct.shape[-1] // 2] = -20.0
    assert cost(correct) < 1e-3
    always_active = torch.full_like(correct, 20.0)
    assert cost(always_active) == pytest.approx(20 * 0.5 / 6, rel=1e-3)  # half a voice of six


def test_presence_is_teacher_forced_where_all_masks_are_known() -> None:
    scenes = batch(3)
    targets = targets_of(scenes, torch.full((3,), -1), torch.ones(3, 1))
    targets.people.masked[1, 0] = False
    slots = torch.tensor([[2, 0], [1, 0], [3, 1]])
    replaced = torch.tensor([[True, False], [False, True], [False, False]])
    result = presence_targets(torch.full((3, 4), 0.3), targets, slots, replaced)
    assert result[0].tolist() == [1, 0, 1, 0]
    assert result[1].tolist() == result[2].tolist() == pytest.approx([0.3] * 4)


def test_only_wrong_masks_are_teacher_forced() -> None:
    speaker_task = task()
    scenes = batch()
    inputs, target = speaker_task.inputs_of(scenes, 0.0)
    predictions = speaker_task.model.predict_masks(inputs)
    targets = targets_of(scenes, target, torch.ones(2, 1))
    slots, pixels = assign_before_voices(predictions, targets, speaker_task.loss)
    assert pixels.shape == (2, 2, 64)
    true = torch.nn.functional.avg_pool2d(scenes["masks"].float().flatten(0, 1), 4)
    true = true.unflatten(0, scenes["masks"].shape[:2])
    predicted_masks = predictions.masks[-1].sigmoid() * 0.4  # all masks are empty, which is wrong
    predicted_masks[0, slots[0, 1]] = true[0, 1] * 0.9  # nearly right
    targets.people.masked[1, 0] = False  # without a mask
    result, replaced = teacher_force_masks(predicted_masks, targets, slots, 0.6)
    assert replaced.tolist() == [[True, False], [False, True]]
    for row, person in ((0, 0), (1, 1)):
        torch.testing.assert_close(result[row, slots[row, person]], true[row, person])
        predicted_masks[row, slots[row, person]] = true[row, person]
    torch.testing.assert_close(result, predicted_masks)  # all others are as they were
    assert not teacher_force_masks(predicted_masks * 0, targets, slots, 0.0)[1].any()
