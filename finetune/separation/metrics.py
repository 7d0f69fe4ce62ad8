"""Metrics of separated voices of fixed lists of mixtures.

Shapes: N mixtures, K voices, S samples.
"""

import statistics
from collections.abc import Sequence

from torch import Tensor
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

Improvements = tuple[str, list[float], list[float]]  # list, of each voice; SI-SDR of each voice


def improvements(name: str, waves: Tensor, voices: Tensor, mixture: Tensor) -> Improvements:
    """SI-SDR improvement and SI-SDR of each voice in dB.

    Args:
        name: of the list.
        waves: [N, K, S], separated.
        voices: [N, K, S], true and audible.
        mixture: [N, S].
    """
    waves, voices = waves.float(), voices.float()
    after = scale_invariant_signal_distortion_ratio(waves, voices)
    before = scale_invariant_signal_distortion_ratio(mixture[:, None].expand_as(voices), voices)
    return name, (after - before).flatten().tolist(), after.flatten().tolist()


def list_metrics(records: Sequence[Improvements]) -> dict[str, float]:
    """Mean and median of each list, by names in the order of their appearance."""
    metrics: dict[str, float] = {}
    for name in dict.fromkeys(name for name, _, _ in records):
        gains = [gain for other, own, _ in records if other == name for gain in own]
        ratios = [ratio for other, _, own in records if other == name for ratio in own]
        metrics[f"{name}_si_sdri"] = statistics.fmean(gains)
        metrics[f"{name}_si_sdri_median"] = statistics.median(gains)
        metrics[f"{name}_si_sdr"] = statistics.fmean(ratios)
    return metrics
