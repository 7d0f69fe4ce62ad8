"""Trainer state: whole tensors of model and optimizer, whatever wraps the model."""

import base64
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from cavmae.common.errors import CavmaeError

MODEL = "model."  # of a task's parameters, those of the model
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)

Tensors = dict[str, Tensor]


def rng_state() -> dict[str, Any]:
    """States of all random generators of this process, as JSON values."""
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - saved, not used
    version, numbers, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": _text(torch.get_rng_state()),
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
        "python": [version, list(numbers), gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = _text(torch.cuda.get_rng_state())
    return state


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restores a state of :func:`rng_state`.

    Raises:
        CavmaeError: the state is damaged.
    """
    try:
        torch.set_rng_state(_bytes(state["torch"]))
        kind, keys, *rest = state["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(_bytes(state["cuda"]))
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise CavmaeError(
            f"The checkpoint's random state is damaged ({error!r}): go on from the one before it, "
            "or start a new run from its weights."
        ) from error


def _text(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _bytes(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype=np.uint8).copy())


def get_trainer_state(
    module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Tensors, Tensors, list[dict[str, Any]]]:
    """State of a task and its optimizer, on the CPU; a collective call.

    Args:
        module: the task, or DDP or FSDP around it.
        optimizer: of the task.

    Returns:
        weights of the task's model; the trainer's tensors (``optimizer.NAME.KIND`` and
        ``task.NAME``); the optimizer's groups. With FSDP empty except in the first process.
    """
    state: dict[str, Any] = dict(get_model_state_dict(module, options=_WHOLE))
    moved: dict[str, Any] = dict(get_optimizer_state_dict(module, optimizer, options=_WHOLE))
    weights = {k.removeprefix(MODEL): v for k, v in state.items() if k.startswith(MODEL)}
    tensors = {f"task.{k}": v for k, v in state.items() if not k.startswith(MODEL)}
    for name, values in moved.get("state", {}).items():
        for kind, value in values.items():
            tensors[f"optimizer.{name}.{kind}"] = torch.as_tensor(value)
    return weights, tensors, list(moved.get("param_groups", []))


def set_trainer_state(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    groups: list[dict[str, Any]],
) -> None:
    """Restores :func:`get_trainer_state`; a collective call, with the same values everywhere.

    Raises:
        CavmaeError: the checkpoint is of another model or optimizer; nothing was changed.
    """
    state: dict[str, Any] = {MODEL + k: v for k, v in weights.items()}
    state |= {k[len("task.") :]: v for k, v in tensors.items() if k.startswith("task.")}
    _check(module, state)
    moved: dict[str, Any] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            name, _, kind = key.removeprefix("optimizer.").rpartition(".")
            moved.setdefault(name, {})[kind] = value
    names = [sorted(group["params"]) for group in groups]
    # Of every process: whole states, out of which they could be read too, are the first one's only.
    fresh: dict[str, Any] = dict(get_optimizer_state_dict(module, optimizer))
    if [sorted(group["params"]) for group in fresh["param_groups"]] != names:
        raise CavmaeError(
            "The checkpoint's optimizer moved other parameters than this run's: keep the "
            "objective and the optimizer, or start a new run from its weights."
        )
    set_model_state_dict(module, dict(state), options=_WHOLE)
    # A decay that was changed on purpose counts: groups are this run's.
    whole = {"state": moved, "param_groups": fresh["param_groups"]}
    set_optimizer_state_dict(module, optimizer, whole, options=_WHOLE)


def _check(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    own: dict[str, Any] = dict(get_model_state_dict(module))
    for name, value in own.items():
        if name not in state:
            raise CavmaeError(f"The checkpoint lacks {name}: it is of another model.")
        if state[name].shape != value.shape:
            raise CavmaeError(
                f"The checkpoint is of another model: {name} is {tuple(state[name].shape)} there, "
                f"{tuple(value.shape)} here."
            )
    for name in state:
        if name not in own:
            raise CavmaeError(f"The checkpoint has {name}, which this run's model has not.")
