"""Evaluation during training gives the same metrics for every split of the held-out set."""

from pathlib import Path

import pytest

from cavmae.datasets.format.manifest import Manifest
from cavmae.pretrain import evaluation
from cavmae.pretrain.run import build
from cavmae.pretrain.settings import PretrainSettings
from tests.pretrain.engine.held_out import held_out_metrics
from tests.pretrain.engine.running import words


@pytest.mark.parametrize("mask_mode", ["unstructured", "tf"])
def test_metrics_do_not_depend_on_processes_and_batches(
    mask_mode: str, data_set: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "CONTRAST_GROUP", 5)
    results = []
    for processes, batch, workers, accumulated in (
        (1, 64, 0, 1), (1, 16, 0, 2), (2, 24, 0, 1), (3, 8, 0, 3), (5, 40, 0, 1), (2, 32, 2, 1),
    ):  # fmt: skip
        changes = {
            "data": {"batch_size": batch, "workers": workers, "held_out": data_set.folder},
            "objective": {"mask_mode": mask_mode},
            "loop": {"grad_accum_steps": accumulated},
        }
        command = words(tmp_path, tmp_path / "run", data_set.folder, **changes)[:2]
        results.append(held_out_metrics(build, PretrainSettings, command, processes, tmp_path))
    batches = {count for count, _ in results}
    assert len(batches) > 3
    first = results[0][1]
    assert first["contrastive_chance"] == 5 / 24  # five groups of 24 clips
    assert {"audio", "video", "time_bin_acc", "contrastive_acc"} <= set(first)
    for _, metrics in results[1:]:
        assert metrics == pytest.approx(first, rel=1e-5)
