"""Learning to read lips alone (`--model.freeze masks`), and models that start from it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from cavmae.common.errors import UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.stream.transforms import Statistics
from cavmae.finetune.motion.settings import ConvMotionOptions
from cavmae.finetune.speaker.articulation_loss import articulation_loss, known_cues
from cavmae.finetune.speaker.factory import load_speaker
from cavmae.finetune.speaker.lips_task import LipsTask
from cavmae.finetune.speaker.settings import LossSettings
from cavmae.finetune.train import main
from tests.finetune.speaker.runs import listed, words
from tests.finetune.speaker.scenes import batch, model
from tests.pretrain.engine.running import trace

HEADS = {"head_size": 16, "head_motion": {"name": "conv", "width": 4, "depth": 1}}
LIPS = ("motion_reader.", "articulation_head.")


def lips_task(**changes: Any) -> LipsTask:
    options = {"head_size": 16, "head_motion": ConvMotionOptions(width=8, depth=1)}
    return LipsTask(model(**options | changes), LossSettings(), Statistics())


@pytest.mark.parametrize("head_size", [0, 16])
def test_only_what_reads_lips_learns(head_size: int) -> None:
    task = lips_task(head_size=head_size)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in task.parameters() if p.requires_grad], 3e-3)
    scenes, losses = batch(people=3), []
    for _ in range(60):
        torch.manual_seed(0)  # one place of the crops
        output = task.training_step(scenes, 0.5, [], 0)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    learning = LIPS if head_size else (*LIPS, "motion.")
    for name, value in task.model.state_dict().items():
        if not name.startswith(learning):
            assert torch.equal(value, before[name]), name
    for name, parameter in task.model.named_parameters():
        assert parameter.requires_grad == name.startswith(learning), name


def test_unknown_cues_do_not_count() -> None:
    """People without a mask, without a known cue, or absent leave the loss as it is."""
    scenes = batch(people=3)
    scenes["masked"][0, 1] = scenes["articulated"][0, 2] = scenes["present"][1, 0] = False
    changed = scenes | {
        name: value.clone() for name, value in scenes.items() if isinstance(value, torch.Tensor)
    }
    for row, person in ((0, 1), (0, 2), (1, 0)):
        changed["articulation"][row, person] = 7.0
        changed["masks"][row, person] = torch.rand(changed["masks"][row, person].shape) > 0.5
    task = lips_task().eval()
    losses = [task.training_step(part, 0.5, [], 0).loss for part in (scenes, changed)]
    torch.testing.assert_close(losses[0], losses[1])
    known = known_cues(scenes)
    assert int(known.sum()) == 3


def test_a_batch_without_known_cues_has_gradients_of_zero() -> None:
    scenes = batch(people=2)
    scenes["articulated"][:] = False
    task = lips_task()
    output = task.training_step(scenes, 0.5, [], 0)
    assert float(output.loss.detach()) == 0
    output.loss.backward()
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name


def test_a_channel_that_is_mostly_zero_counts() -> None:
    """Of two constant predictions with one L1 difference, following the channel is better."""
    true = torch.zeros(1, 64, 4)
    true[0, ::8] = 0.2
    still, moving = torch.zeros_like(true), torch.zeros_like(true)
    moving[0, ::8] = 0.2
    moving[0, 1::8] = 0.2  # as far from the truth as the median
    assert float((still - true).abs().mean()) == pytest.approx(float((moving - true).abs().mean()))
    assert articulation_loss(moving, true) < articulation_loss(still, true) - 0.02


def test_a_model_takes_over_a_reader_of_lips(
    clips: Manifest,
    encoder: Path,
    tmp_path: Path,
) -> None:
    """`--model.freeze masks` without an encoder, then `--model.lips-from` in two ways."""
    first = tmp_path / "first"
    heads = {**HEADS, "motion_height": 32, "motion_width": 48, "motion_pool": 2}
    changes: dict[str, Any] = {**heads, "freeze": "masks", "encoder_from": None}
    changes["encoder.size"] = "tiny"
    held_out = listed(tmp_path, clips)
    run = words(first, clips, None, model=changes, data=held_out, loop={"evaluate_every": 4})
    main(run)
    AcceleratorState._reset_state(reset_partial_state=True)
    measured = next(line for line in trace(first) if "correlation" in line)
    assert -1 <= measured["correlation"] <= 1
    assert measured["l1"] >= 0
    lips = str(first / "checkpoints" / "000000004")
    own = load_speaker(lips)[0].state_dict()
    plain = tmp_path / "plain"
    main(words(plain, clips, encoder, loop={"steps": 1}))  # reads whole frames
    AcceleratorState._reset_state(reset_partial_state=True)
    start = str(plain / "checkpoints" / "000000001")
    further = {"init_from": start, "encoder_from": None}
    for name, changes in (("new", {}), ("further", further)):
        changes = {**changes, "lips_from": lips}
        folder = tmp_path / name
        main(
            words(folder, clips, encoder, model=changes, loop={"steps": 1}, optimizer={"lr": 1e-12})
        )
        AcceleratorState._reset_state(reset_partial_state=True)
        model_, _ = load_speaker(str(folder / "checkpoints" / "000000001"))
        assert model_.config.head_size == 16
        assert model_.config.motion_size == (32, 48)
        before = load_speaker(start)[0].state_dict()
        for key, value in model_.state_dict().items():
            if key.startswith(LIPS):
                torch.testing.assert_close(value, own[key])
            elif name == "further":
                torch.testing.assert_close(value, before[key])
        assert "sdr" in trace(folder)[0]
    wide = {**further, "lips_from": start}
    with pytest.raises(UsageError, match="reads lips from whole frames"):
        main(words(tmp_path / "no", clips, encoder, model=wide))
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(UsageError, match="has the width 16, the model 32"):
        main(words(tmp_path / "no", clips, encoder, model={"lips_from": lips, "width": 32}))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"motion_pool": 3}, "motion_height 16 is not a multiple of 12"),
        ({"head_size": 30}, "head_size 30: 0, or a multiple of 4 from 16 on"),
        ({"head_size": 12}, "head_size 12: 0, or a multiple of 4 from 16 on"),
        ({"head_size": -4}, "head_size"),
        ({"freeze": "masks", "lateral": "a-f-s"}, "set model.head_size, or model.lateral to none"),
        ({**HEADS, "lateral": {"name": "a-f-s", "audio_in_cue": True}}, "set head_size to 0"),
    ],
)
def test_refused_settings(
    changes: dict[str, Any],
    message: str,
    clips: Manifest,
    encoder: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError, match=message):
        main(words(tmp_path / "no", clips, encoder, model=changes))
