"""Muon: what it moves, by how much, and that a run with it goes on to the bit."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from cavmae.datasets.format.manifest import Manifest
from cavmae.pretrain.engine.muon import MOMENTUM, is_matrix, orthogonalized
from cavmae.pretrain.engine.nonfinite import skip_step_if
from cavmae.pretrain.engine.optim import build_optimizer
from cavmae.pretrain.engine.settings import OptimizerSettings
from cavmae.pretrain.engine.task import Task
from cavmae.pretrain.train import main
from tests.pretrain.engine.running import trace, words

MUON = OptimizerSettings(name="muon", lr=0.01, weight_decay=0.1)


class Parts(Task):
    """Weights of each kind, which nothing is done with but moving them."""

    training_step = validation_step = aggregate = preprocessing = flops_per_sample = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(12, 20)
        self.kernel = nn.Conv2d(10, 16, 3)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16)
        self.narrow = nn.Linear(12, 4)
        self.table = nn.Embedding(30, 12)
        self.token = nn.Parameter(torch.randn(1, 1, 12))


def momenta(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [state["momentum"] for state in optimizer.state.values() if "momentum" in state]


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_singular_values_become_alike(shape: tuple[int, int]) -> None:
    """By the singular value decomposition; from values that differ by a factor of 20."""
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = left @ torch.diag(torch.logspace(-1.3, 0, len(right))) @ right
    balanced = left.T @ orthogonalized(matrix) @ right.T
    values = balanced.diagonal()
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3
    assert float((balanced - torch.diag(values)).abs().max()) < 0.1
    assert torch.equal(orthogonalized(torch.zeros(shape)), torch.zeros(shape))


def test_only_matrices_and_kernels_are_moved_by_it() -> None:
    task = Parts()
    names = {id(p): name for name, p in task.named_parameters()}
    optimizer = build_optimizer(task, MUON)
    moved = {True: set(), False: set()}  # type: ignore[var-annotated]
    for group in optimizer.param_groups:
        moved[group["orthogonal"]] |= {names[id(p)] for p in group["params"]}
    assert moved[True] == {"linear.weight", "kernel.weight"}
    assert moved[True] | moved[False] == set(names.values())
    assert not is_matrix(task.depthwise.weight)


def test_steps_are_those_of_a_plain_loop() -> None:
    """Matrices by the formula; all else as AdamW moves it. Both are decayed alike."""
    task, other = Parts(), Parts()
    optimizer = build_optimizer(task, MUON)
    adamw = build_optimizer(other, dataclasses.replace(MUON, name="adamw"))
    momentum = torch.zeros(20, 12)
    for step in range(3):
        torch.manual_seed(step)
        for mine, its in zip(task.parameters(), other.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            its.grad = mine.grad.clone()
        gradient = task.linear.weight.grad
        assert gradient is not None
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        update = orthogonalized((1 - MOMENTUM) * gradient + MOMENTUM * momentum)
        wanted = task.linear.weight * (1 - 0.01 * 0.1) - 0.01 * 0.2 * 20**0.5 * update
        optimizer.step()
        adamw.step()
        torch.testing.assert_close(task.linear.weight, wanted)
        # An update has the root mean square that AdamW's have, 0.2 of the rate.
        assert float(update.square().mean().sqrt()) * 20**0.5 == pytest.approx(1, rel=0.2)
    for name, value in other.named_parameters():
        if name not in ("linear.weight", "kernel.weight"):
            torch.testing.assert_close(dict(task.named_parameters())[name], value, msg=name)


def test_a_step_without_a_finite_gradient_changes_nothing() -> None:
    task = Parts()
    optimizer = build_optimizer(task, MUON)
    for gradient in (1.0, torch.nan):
        for parameter in task.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        before = [p.clone() for p in (*task.parameters(), *momenta(optimizer))]
        skip_step_if(optimizer, torch.tensor(gradient != 1))
        optimizer.step()
        after = [*task.parameters(), *momenta(optimizer)]
        same = [torch.equal(a, b) for a, b in zip(before, after, strict=False)]
        assert all(same) if gradient != 1 else not any(same)


def test_a_run_goes_on_to_the_bit(tmp_path: Path, data_set: Manifest) -> None:
    changes: dict[str, Any] = {"optimizer": {"name": "muon"}, "loop": {"steps": 4}}
    whole, other = tmp_path / "whole", tmp_path / "other"
    assert main(words(tmp_path, whole, data_set.folder, **changes)) == 0
    shutil.copytree(whole, other)
    shutil.rmtree(other / "checkpoints" / "000000004")
    AcceleratorState._reset_state(reset_partial_state=True)
    again = words(tmp_path, other, data_set.folder, **changes)
    assert main([*again, "--resume", "auto"]) == 0
    assert trace(other)[-2:] == trace(whole)[-2:]
    files = ("model.safetensors", "trainer.safetensors")
    for file in files:
        path = Path("checkpoints", "000000004", file)
        assert (other / path).read_bytes() == (whole / path).read_bytes(), file
