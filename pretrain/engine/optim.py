"""Optimizers, and learning rate schedules as functions of the step."""

import math
from typing import Any

import torch
from torch import nn

from cavmae.pretrain.engine.muon import Muon, is_matrix
from cavmae.pretrain.engine.settings import OptimizerSettings
from cavmae.pretrain.engine.task import Task

FLOOR = 0.01  # of the cosine, as a fraction of the largest rate


def build_optimizer(task: Task, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Fused AdamW without weight decay of vectors and tokens, the Adam of CAV-MAE, or Muon.

    Args:
        task: its parameters with ``requires_grad`` are trained; each group has the ``lr_scale`` of
            :meth:`Task.lr_scale` and the ``lr_start`` of :meth:`Task.lr_start`.
    """
    betas = settings.beta1, settings.beta2
    tables = {id(module.weight) for module in task.modules() if isinstance(module, nn.Embedding)}
    groups: dict[tuple[float, float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in task.named_parameters():
        if not parameter.requires_grad:
            continue
        # Tokens of shape [1, 1, width] are vectors, whatever their number of axes.
        token = parameter.dim() == 3 and parameter.shape[0] == 1
        vector = parameter.dim() <= 1 or name.endswith(".bias") or token
        plain = settings.name == "adam" or not vector
        decay = settings.weight_decay if plain else 0.0
        muon = settings.name == "muon" and not vector
        orthogonal = muon and is_matrix(parameter) and id(parameter) not in tables
        key = decay, task.lr_scale(name), task.lr_start(name), orthogonal
        groups.setdefault(key, []).append(parameter)
    param_groups: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale, "lr_start": start}
        for (decay, scale, start, _), parameters in groups.items()
    ]
    if settings.name == "muon":
        for group, (*_, orthogonal) in zip(param_groups, groups, strict=True):
            group["orthogonal"] = orthogonal
        return Muon(param_groups, settings.lr, betas)
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind(param_groups, settings.lr, betas, weight_decay=settings.weight_decay, fused=True)


def learning_rate(settings: OptimizerSettings, step: float, steps: int) -> float:
    """Learning rate of step ``step`` (from 0) of ``steps``; in a run of epochs, a fraction."""
    warmup = settings.warmup * steps
    if step < warmup:
        return settings.lr * (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "halving":
        past = step - settings.halve_from * steps
        if past < -1e-6:  # rounded: thirds of all steps are not exact
            return settings.lr
        # Rounded, since 0.2 * 25 is 5.000000000000001: halvings would come a step late.
        halvings = math.floor(round(past / (settings.halve_every * steps), 9)) + 1
        return float(settings.lr * 0.5**halvings)
    done = (step - warmup) / max(1.0, steps - warmup)
    falling = (1 + math.cos(math.pi * min(1.0, done))) / 2
    return settings.lr * (FLOOR + (1 - FLOOR) * falling)
