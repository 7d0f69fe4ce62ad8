"""The articulation task: learning, held-out scenes read clip by clip, and its metrics."""

from typing import Any

import pytest
import torch

from cavmae.finetune.motion.settings import X3DOptions
from cavmae.finetune.speaker.articulation import (
    ArticulationConfig,
    ArticulationModel,
    ArticulationTask,
)


def task_of(frames: int = 16) -> ArticulationTask:
    torch.manual_seed(0)
    config = ArticulationConfig(X3DOptions(width=8, depth=1), 16, frames, 16)
    return ArticulationTask(ArticulationModel(config)).eval()


def scenes(frames: int = 16) -> dict[str, Any]:
    """Two scenes of two people side by side; the brightness of each is their cue."""
    rng = torch.Generator().manual_seed(1)
    cue = torch.rand(2, 2, frames, 1, generator=rng)
    motion = (255 * cue[..., 0].transpose(1, 2)).repeat_interleave(8, -1)[:, :, None]
    masks = torch.zeros(2, 2, frames // 8, 16, 16, dtype=torch.bool)
    masks[:, 0, :, :, :8] = True
    masks[:, 1, :, :, 8:] = True
    return {
        "motion": motion.expand(-1, -1, 16, -1).byte(),
        "masks": masks,
        "articulation": cue.expand(-1, -1, -1, 4),
        **{
            name: torch.ones(2, 2, dtype=torch.bool)
            for name in ("present", "articulated", "masked")
        },
    }


def test_the_cue_is_learned() -> None:
    task, batch = task_of(), scenes()
    optimizer = torch.optim.AdamW(task.parameters(), 3e-3)

    def metrics() -> Any:
        return task.aggregate([task("validation_step", batch)])

    before = metrics()
    task.train()
    for _ in range(60):
        optimizer.zero_grad()
        task("training_step", batch).loss.backward()
        optimizer.step()
    task.eval()
    after = metrics()
    assert after["correlation"] > 0.8 > before["correlation"] + 0.3
    assert after["l1"] < 0.5 * before["l1"]


def test_people_without_a_cue_or_mask_do_not_count() -> None:
    task, batch = task_of(), scenes()
    batch["articulated"][0, 0] = batch["masked"][0, 1] = batch["present"][1, 0] = False
    batch["masks"][1, 1] = False
    assert task("training_step", batch).loss == 0
    assert task.aggregate([task("validation_step", batch)]) == {"correlation": 0.0, "l1": 0.0}
    batch["articulated"][0, 0] = True
    record = task("validation_step", batch)
    assert torch.equal(record["articulation"], batch["articulation"][:1, 0])


def test_scenes_are_read_clip_by_clip() -> None:
    task, batch = task_of(frames=8), scenes(frames=16)
    whole = task("validation_step", batch)["predicted"]  # [people, 16, 4]
    for first in (0, 8):
        frames, key = slice(first, first + 8), slice(first // 8, first // 8 + 1)
        part = {
            **batch,
            "motion": batch["motion"][:, frames],
            "masks": batch["masks"][:, :, key],
            "articulation": batch["articulation"][:, :, frames],
        }
        torch.testing.assert_close(task("validation_step", part)["predicted"], whole[:, frames])


def test_correlation_is_that_of_all_frames_and_a_constant_has_none() -> None:
    rng = torch.Generator().manual_seed(2)
    true, noise = torch.rand(2, 3, 8, 4, generator=rng)
    predicted = 2 * true + noise
    predicted[..., 3] = 0.5
    records = [
        {"predicted": predicted[n : n + 1], "articulation": true[n : n + 1]} for n in range(3)
    ]
    metrics = task_of().aggregate(records)
    rows, columns = true.flatten(0, 1).T, predicted.flatten(0, 1).T
    expected = [float(torch.corrcoef(torch.stack([rows[n], columns[n]]))[0, 1]) for n in range(3)]
    assert metrics["correlation"] == pytest.approx(sum(expected) / 4, abs=1e-5)
    assert metrics["l1"] == pytest.approx(float((predicted - true).abs().mean()))


@pytest.mark.parametrize(("field", "value"), [("frames", 12), ("size", 18), ("width", 3)])
def test_numbers_that_make_no_model(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{field} {value} is not"):
        ArticulationConfig(**{field: value})


def test_a_model_is_saved_and_loaded(tmp_path: Any) -> None:
    model = task_of().model.eval()
    model.save_pretrained(tmp_path)
    loaded = ArticulationModel.from_pretrained(tmp_path)
    batch = scenes()
    assert torch.equal(
        loaded(batch["motion"], batch["masks"]), model(batch["motion"], batch["masks"])
    )
