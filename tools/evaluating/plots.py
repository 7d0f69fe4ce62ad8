"""Plots of metrics: SI-SDR improvement by mixture and overlap, IoU by size."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cavmae.common.files import write_atomically
from cavmae.finetune.speaker.metrics import ALONE_DB, PersonMetrics, SceneMetrics

COLOR = "#0072b2"  # distinct from grey for colour-blind readers
Value = Callable[[PersonMetrics], float]


def _improvement(person: PersonMetrics) -> float:
    """SI-SDR improvement in dB; NaN for a voice without interference."""
    alone = person.si_sdr_mixture >= ALONE_DB
    return math.nan if alone else person.si_sdr - person.si_sdr_mixture


def draw(scenes: Sequence[SceneMetrics], path: Path) -> None:
    """Plot metrics of people as dots, with the mean of each bin, and write a PNG.

    The first two plots leave out voices without interference.
    """
    people = [p for s in scenes for p in s.people]
    figure = Figure(figsize=(13, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    plots: tuple[tuple[str, Value, str, Value], ...] = (
        ("SI-SDR of the mixture, dB", lambda p: p.si_sdr_mixture,
         "SI-SDR improvement, dB", _improvement),
        ("fraction of the time with overlapping speech", lambda p: p.overlap,
         "SI-SDR improvement, dB", _improvement),
        ("fraction of the frame that a person covers", lambda p: p.size, "IoU", lambda p: p.iou),
    )  # fmt: skip
    for axis, (x_name, x, y_name, y) in zip(axes, plots, strict=True):
        pairs = [(x(p), y(p)) for p in people]
        _dots(axis, [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)])
        axis.set_xlabel(x_name)
        axis.set_ylabel(y_name)
    with write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _dots(axis: Axes, pairs: Sequence[tuple[float, float]]) -> None:
    axis.scatter([a for a, _ in pairs], [b for _, b in pairs], s=8, color="0.6")
    axis.axhline(0, color="0.8", linewidth=0.8)
    if len(pairs) < 2:
        return
    low, high = min(a for a, _ in pairs), max(a for a, _ in pairs)
    width = max(high - low, 1e-6) / 6
    centers, means = [], []
    for number in range(6):
        first = low + number * width
        last = number == 5
        inside = [b for a, b in pairs if first <= a < first + width or (last and a >= first)]
        if inside:
            centers.append(first + width / 2)
            means.append(sum(inside) / len(inside))
    axis.plot(centers, means, "o-", color=COLOR)
