"""Optimizers, and learning rates as functions of the step."""

import math
from typing import Any

import torch
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]
from torch import nn

from cavmae.pretrain.settings import OptimizerSettings


def build_optimizer(module: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """AdamW without decay of vectors and tokens, or the reference's Adam.

    Args:
        module: whose parameters with ``requires_grad`` are trained.
    """
    betas = settings.beta1, settings.beta2
    if settings.name == "adam":
        trained: Any = [p for p in module.parameters() if p.requires_grad]
        return torch.optim.Adam(
            trained, settings.lr, betas, weight_decay=settings.weight_decay, fused=True
        )
    # Tokens of shape [1, 1, width] are vectors, whatever their number of axes.
    tokens = [name for name, p in module.named_parameters() if p.dim() == 3 and p.shape[0] == 1]
    groups = param_groups_weight_decay(module, settings.weight_decay, no_weight_decay_list=tokens)
    return torch.optim.AdamW(groups, settings.lr, betas, fused=True)


def learning_rate(settings: OptimizerSettings, step: int, steps: int) -> float:
    """The rate of step ``step`` (from 0) of ``steps``."""
    warmup = settings.warmup * steps
    if step < warmup:
        return settings.lr * (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "halving":
        past = step - settings.halve_from * steps
        if past < 0:
            return settings.lr
        # Rounded, since 0.2 * 25 is 5.000000000000001: halvings would come a step late.
        halvings = math.floor(round(past / (settings.halve_every * steps), 9)) + 1
        return float(settings.lr * 0.5**halvings)
    done = (step - warmup) / max(1.0, steps - warmup)
    falling = (1 + math.cos(math.pi * min(1.0, done))) / 2
    return settings.lr * (settings.floor + (1 - settings.floor) * falling)
