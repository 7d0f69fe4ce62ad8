"""Loss and agreement of articulation cues.

Shapes: M cues, T frames, C channels (opening, spread, teeth, tongue).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cavmae.datasets.stream.collate import Batch
from cavmae.pretrain.engine.task import Record

CORRELATION_WEIGHT = 0.1  # of what correlations lack to 1, beside the L1 difference
STILL = 1e-3  # variance in time that makes a channel count as moving
LEAST_SPREAD = 1e-6  # standard deviation below which a cue counts as constant


def articulation_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """Difference of articulation cues [M, T, C]; 0 for none.

    It is the mean L1 difference, and a tenth of what correlations over time lack to 1, in the mean
    over cues and channels. By L1 alone, a channel that is small or mostly 0 stays constant for long
    (docs/experiments/lips.md).
    """
    predicted = predicted.float()
    if not len(predicted):
        return predicted.sum()  # 0, with gradients, for which DDP waits
    a, b = (cues - cues.mean(1, keepdim=True) for cues in (predicted, true))
    variance = b.square().mean(1)
    power = (a.square().mean(1) + STILL) * (variance + STILL)
    lack = 1 - (a * b).mean(1) / power.sqrt()
    lack = lack * variance / (variance + STILL)  # a channel that is still has nothing to follow
    return (predicted - true).abs().mean() + CORRELATION_WEIGHT * lack.mean()


def known_cues(batch: Batch) -> Tensor:
    """People of scenes whose cue and mask are known: bool [N, P]."""
    known: Tensor = batch["present"] & batch["articulated"] & batch["masked"]
    return known & batch["masks"].flatten(2).any(2)


def cue_agreement(records: Sequence[Record]) -> Mapping[str, float]:
    """Agreement of ``predicted`` and true ``articulation`` cues [M, T, C] of records.

    Returns:
        ``correlation``: Pearson's over all frames of all people, mean of the channels, 0 for a
        constant one; ``l1``: mean absolute difference.
    """
    predicted = torch.cat([r["predicted"].flatten(0, 1) for r in records]).double()
    true = torch.cat([r["articulation"].flatten(0, 1) for r in records]).double()
    if not len(true):
        return {"correlation": 0.0, "l1": 0.0}
    a, b = predicted - predicted.mean(0), true - true.mean(0)
    spreads = a.square().mean(0).sqrt(), b.square().mean(0).sqrt()
    varying = (spreads[0] > LEAST_SPREAD) & (spreads[1] > LEAST_SPREAD)
    correlation = (a * b).mean(0) / (spreads[0] * spreads[1]).clamp(min=LEAST_SPREAD**2)
    return {
        "correlation": float((correlation * varying).mean()),
        "l1": float((predicted - true).abs().mean()),
    }
