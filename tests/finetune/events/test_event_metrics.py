"""Metrics of event classification equal naive loops."""

import math

import pytest
import torch

from cavmae.finetune.events.metrics import event_metrics


def naive_ap(scores: list[float], positive: list[bool]) -> float:
    """Mean over positives of the precision at their rank (no two scores are equal)."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    hits, total = 0, 0.0
    for rank, i in enumerate(order, 1):
        if positive[i]:
            hits += 1
            total += hits / rank
    return total / hits


def naive_auc(scores: list[float], positive: list[bool]) -> float:
    with_class = [s for s, p in zip(scores, positive, strict=True) if p]
    without = [s for s, p in zip(scores, positive, strict=True) if not p]
    wins = sum(a > b for a in with_class for b in without)
    return wins / (len(with_class) * len(without))


def test_metrics_equal_loops() -> None:
    g = torch.Generator().manual_seed(0)
    probs = torch.rand(40, 4, generator=g)
    labels = (torch.rand(40, 4, generator=g) < 0.3).float()
    labels[:, 2] = 0  # a class that no clip has
    labels[:, 3] = 0
    labels[7, 3] = 1  # a class that occurs once
    metrics = event_metrics(probs, labels)
    present = labels > 0
    for k in (0, 1, 3):
        column = probs[:, k].tolist(), present[:, k].tolist()
        assert metrics.ap[k] == pytest.approx(naive_ap(*column))
        assert metrics.auc[k] == pytest.approx(naive_auc(*column))
    assert math.isnan(metrics.ap[2]) and math.isnan(metrics.auc[2])
    assert metrics.positives == tuple(labels.sum(0).int().tolist())
    summary = metrics.summary()
    assert summary["mean_ap"] == pytest.approx(sum(metrics.ap[k] for k in (0, 1, 3)) / 3)
    auc = sum(metrics.auc[k] for k in (0, 1, 3)) / 3
    # Half of the squared error function's argument at the AUC.
    assert 0.5 * (1 + math.erf(summary["d_prime"] / 2)) == pytest.approx(auc)
    top = probs.argmax(1).tolist()
    assert summary["accuracy"] == pytest.approx(sum(present[n, k] for n, k in enumerate(top)) / 40)
    confusion = torch.zeros(4, 4, dtype=torch.int64)
    for n, k in enumerate(top):
        if present[n].sum() == 1:
            confusion[int(labels[n].argmax()), k] += 1
    assert torch.equal(metrics.confusion, confusion)


def test_what_is_not_defined_is_left_out() -> None:
    """Every clip has the only class: there is no AUC."""
    metrics = event_metrics(torch.rand(3, 1), torch.ones(3, 1))
    assert metrics.summary() == {"mean_ap": 1.0, "accuracy": 1.0}
    assert metrics.confusion.tolist() == [[3]]
