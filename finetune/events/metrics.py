"""Metrics of event classification: AP, AUC and d' of classes, accuracy, confusion.

AP and AUC are of each class against all others; their means are over the classes that have clips.
d' is sqrt(2) times the normal quantile of the mean AUC (Gemmeke et al., AudioSet, ICASSP 2017).
"""

import dataclasses
import math

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    multiclass_confusion_matrix,
)


@dataclasses.dataclass(frozen=True)
class EventMetrics:
    """Metrics of a data set of K classes.

    Attributes:
        ap: average precision of each class; NaN: no clip has it.
        auc: area under the ROC curve of each class; NaN: no clip or every clip has it.
        positives: clips of each class.
        accuracy: share of clips whose most probable class is (one of) theirs.
        confusion: clips of each pair of true class (row) and most probable class (column), int64
            [K, K]; of clips with one class only.
    """

    ap: tuple[float, ...]
    auc: tuple[float, ...]
    positives: tuple[int, ...]
    accuracy: float
    confusion: Tensor

    @property
    def mean_ap(self) -> float:
        """Mean of AP over the classes that have clips."""
        return _mean(self.ap)

    @property
    def mean_auc(self) -> float:
        """Mean of AUC over the classes that some clips have and some do not."""
        return _mean(self.auc)

    @property
    def d_prime(self) -> float:
        """Separation of clips with and without a class, in standard deviations."""
        quantile = torch.special.ndtri(torch.tensor(self.mean_auc, dtype=torch.float64))
        return math.sqrt(2) * float(quantile)

    def summary(self) -> dict[str, float]:
        """Metrics that are a single number; those that are not finite are left out."""
        values = {
            "mean_ap": self.mean_ap,
            "auc": self.mean_auc,
            "d_prime": self.d_prime,
            "accuracy": self.accuracy,
        }
        return {name: value for name, value in values.items() if math.isfinite(value)}


def event_metrics(probs: Tensor, labels: Tensor) -> EventMetrics:
    """Metrics of predictions.

    Args:
        probs: float [clips, K], on the CPU.
        labels: float [clips, K], 1 where the clip has the class.
    """
    present = labels > 0
    count = present.shape[1]
    positives = present.sum(0).tolist()
    ap, auc = [], []
    for k, number in enumerate(positives):
        target = present[:, k].long()
        ap.append(float(binary_average_precision(probs[:, k], target)) if number else math.nan)
        both = 0 < number < len(target)
        auc.append(float(binary_auroc(probs[:, k], target)) if both else math.nan)
    top = probs.argmax(1)
    hits = present.gather(1, top[:, None])
    single = present.sum(1) == 1
    confusion = torch.zeros(count, count, dtype=torch.int64)
    if single.any() and count > 1:
        truth = present[single].long().argmax(1)
        confusion = multiclass_confusion_matrix(top[single], truth, count)
    elif single.any():
        confusion += single.sum()
    accuracy = float(hits.float().mean())
    return EventMetrics(tuple(ap), tuple(auc), tuple(positives), accuracy, confusion)


def _mean(values: tuple[float, ...]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
