"""Training of a task for some CPU time of one core, resumable. Runs in a worker process.

The budget is CPU time of the process, so that other processes of the machine change the wall clock
only. Loading of batches and evaluations do not count. The learning rate is a function of the
fraction of the budget.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import write_atomically
from cavmae.datasets.stream.loader import Loader
from cavmae.pretrain.engine.optim import build_optimizer, learning_rate
from cavmae.pretrain.engine.settings import OptimizerSettings
from cavmae.pretrain.engine.task import Task
from cavmae.pretrain.engine.trainer_state import get_trainer_state, set_trainer_state
from cavmae.tools.benchmarks.table import peak_mb

SCHEDULE_STEPS = 1000  # of the learning rate, over the budget
CHECKPOINT = "checkpoint.safetensors"
RNG = "rng"  # state of the random numbers, among the tensors of a checkpoint


@dataclasses.dataclass(frozen=True)
class TimeBudget:
    """Length and conduct of a training.

    Attributes:
        label: of the task, in messages.
        minutes: CPU time of training steps.
        optimizer: and its learning rate, whose shares of steps are those of the minutes. Weights
            are not averaged.
        bf16: whether steps run in bfloat16, else in float32.
        evaluations: in equal parts of the minutes, each followed by a checkpoint.
        folder: of the checkpoint.
    """

    label: str
    minutes: float
    optimizer: OptimizerSettings
    bf16: bool
    evaluations: int
    folder: Path


def recipe_optimizer(lr: float) -> OptimizerSettings:
    """Optimizer of the recipes `tiny`, with a learning rate."""
    return OptimizerSettings(lr=lr, beta2=0.99, weight_decay=0.01)


@dataclasses.dataclass
class TrainingState:
    """Progress of a training.

    Attributes:
        seconds: CPU time used.
        steps: of the optimizer, those left out included.
        bad_steps: left out, since their gradient was not finite.
        training_mb: peak memory of training steps, without that of the data, in 10^6 bytes.
        curve: CPU minutes and metrics of each evaluation.
    """

    seconds: float = 0.0
    steps: int = 0
    bad_steps: int = 0
    training_mb: float = 0.0
    curve: list[dict[str, float]] = dataclasses.field(default_factory=list)


def train_for(
    budget: TimeBudget,
    task: Task,
    loader: Loader,
    evaluate: Callable[[], Mapping[str, float]],
    data_mb: float,
    report: Callable[[Any], None],
) -> TrainingState:
    """Trains for the CPU time that is left, with a checkpoint after each evaluation.

    Args:
        budget: length and conduct.
        task: to train.
        loader: endless batches, in this process.
        evaluate: metrics of the task, which is in evaluation mode.
        data_mb: memory of this process before training, in 10^6 bytes.
        report: is called with the state after each evaluation.

    Raises:
        UsageError: the minutes are too short for a step.
        CavmaeError: the checkpoint cannot be used.
    """
    total = budget.minutes * 60
    settings = budget.optimizer
    optimizer = build_optimizer(task, settings)
    path = budget.folder / CHECKPOINT
    state = TrainingState()
    if path.exists():
        state = load_checkpoint(path, task, optimizer, loader)
    batches = iter(loader)
    task.train()
    while state.seconds < total:
        batch = next(batches)
        started = time.process_time()
        fraction = state.seconds / total
        rate = learning_rate(settings, int(SCHEDULE_STEPS * fraction), SCHEDULE_STEPS)
        with torch.autocast("cpu", torch.bfloat16, enabled=budget.bf16):
            loss = task("training_step", batch, fraction).loss
        loss.backward()
        largest = settings.max_grad_norm or math.inf
        if nn.utils.clip_grad_norm_(task.parameters(), largest).isfinite():
            for group in optimizer.param_groups:
                learns = fraction >= group["lr_start"]
                group["lr"] = rate * group["lr_scale"] if learns else 0.0
            optimizer.step()
        else:
            state.bad_steps += 1
        optimizer.zero_grad(set_to_none=True)
        used = time.process_time() - started
        if state.steps == 0 and used >= total:
            raise UsageError(
                f"--minutes {budget.minutes:g} is too short for {budget.label}: its first training "
                f"step takes {used:.2g} s of a core."
            )
        state.seconds, state.steps = state.seconds + used, state.steps + 1
        if state.seconds >= total * (len(state.curve) + 1) / budget.evaluations:
            if not state.curve:  # evaluations would count in later peaks
                state.training_mb = peak_mb() - data_mb
            task.eval()
            state.curve.append({"minutes": state.seconds / 60, **evaluate()})
            task.train()
            save_checkpoint(path, task, optimizer, loader, state)
            report(state)
    task.eval()
    return state


def save_checkpoint(
    path: Path, task: Task, optimizer: torch.optim.Optimizer, loader: Loader, state: TrainingState
) -> None:
    """Writes weights, optimizer, position in the data and state as one file."""
    weights, tensors, groups = get_trainer_state(task, optimizer)
    named = {f"model.{name}": value for name, value in weights.items()} | tensors
    named[RNG] = torch.get_rng_state()
    records = {
        "state": dataclasses.asdict(state), "groups": groups, "loader": loader.state_dict()
    }  # fmt: skip
    metadata = {name: json.dumps(record) for name, record in records.items()}
    with write_atomically(path) as file:
        file.write(save({n: v.contiguous() for n, v in named.items()}, metadata))


def load_checkpoint(
    path: Path, task: Task, optimizer: torch.optim.Optimizer, loader: Loader
) -> TrainingState:
    """Restores :func:`save_checkpoint`.

    Raises:
        CavmaeError: the file is damaged, or of another model.
    """
    weights: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(str(path), "pt") as file:
            metadata: Mapping[str, str] = file.metadata()
            state = TrainingState(**json.loads(metadata["state"]))
            groups = json.loads(metadata["groups"])
            position = json.loads(metadata["loader"])
            for name in file.keys():  # noqa: SIM118
                kind = weights if name.startswith("model.") else tensors
                kind[name.removeprefix("model.")] = file.get_tensor(name)
        torch.set_rng_state(tensors.pop(RNG))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CavmaeError(f"{path} is damaged ({error}): remove it to train anew.") from error
    set_trainer_state(task, optimizer, weights, tensors, groups)
    loader.load_state_dict(position)
    return state
