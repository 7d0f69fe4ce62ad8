"""Table and plot of the path of an expansion: scores over costs, axis by axis."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from cavmae.common.files import write_atomically
from cavmae.common.json_files import json_bytes
from cavmae.common.registry import to_json_value
from cavmae.common.tables import markdown_table
from cavmae.tools.benchmarks.table import machine
from cavmae.tools.expanding.axes import network_of
from cavmae.tools.expanding.search import Step, Trial
from cavmae.tools.expanding.settings import ExpandSettings

MARKERS = "osD^vP*X<>"


def path_table(settings: ExpandSettings, path: Sequence[Step]) -> str:
    """Markdown: every trial by step, the kept one in bold, and the options of start and end."""
    unit = cost_unit(settings)
    head = ["step", "axis", "change", unit, "score"]
    rows = []
    for number, step in enumerate(path):
        before = path[number - 1].kept if number else step.kept
        for trial in _trials_of(step):
            rows.append(_row(number, before, trial, trial is step.kept))
    budget = settings.budget_ms or settings.budget_gmacs
    caption = (
        f"cavmae expand: budget {budget:g} {unit}; score: correlation with the articulation cue on "
        f"{settings.data.held_out_scenes} held-out scenes after {settings.minutes:g} CPU minutes, "
        f"{settings.precision} ({machine()})"
    )
    start, end = (network_of(settings, step.kept.point) for step in (path[0], path[-1]))
    options = "\n".join(
        f"{name}: `{network.speaker_options()}`\n"
        for name, network in (("Start", start), ("End", end))
    )
    return f"{caption}\n\n{markdown_table(head, rows, (0, 1, 2))}\n\n{options}"


def _trials_of(step: Step) -> list[Trial]:
    """All trials of a step, the contracted one last."""
    return [*step.tried, *([step.kept] if step.kept.contracted else [])]


def cost_unit(settings: ExpandSettings) -> str:
    """Unit of the costs."""
    return "ms / s of video" if settings.budget_ms else "G multiply-adds / s of video"


def _row(number: int, before: Trial, trial: Trial, kept: bool) -> list[str]:
    axis, change = "start", ""
    if trial.axis is not None:
        axis = trial.axis
        change = f"{before.point[axis]:g} to {trial.point[axis]:g}"
        change += " (contracted)" if trial.contracted else ""
    cells = [str(number), axis, change, f"{trial.cost:.4g}", f"{trial.score:.3f}"]
    return [f"**{cell}**" if kept and cell else cell for cell in cells]


def write_results(settings: ExpandSettings, path: Sequence[Step]) -> None:
    """Writes ``expand.json``, ``expand.md`` and ``expand.png``."""
    out = Path(settings.out)

    def record_of(trial: Trial) -> dict[str, Any]:
        network = to_json_value(network_of(settings, trial.point))
        values = {"axis": trial.axis, "cost": trial.cost, "score": trial.score}
        return {**values, "contracted": trial.contracted, "network": network}

    steps = [
        {"kept": record_of(step.kept), "tried": [record_of(trial) for trial in step.tried]}
        for step in path
    ]
    record = {"machine": machine(), "unit": cost_unit(settings), "path": steps}
    with write_atomically(out / "expand.json") as file:
        file.write(json_bytes(record, indent=1))
    with write_atomically(out / "expand.md") as file:
        file.write(f"{path_table(settings, path)}".encode())
    plot(settings, path, out / "expand.png")


def plot(settings: ExpandSettings, path: Sequence[Step], file_path: Path) -> None:
    """Plots the score of every trial over its cost, and the path as a line.

    Args:
        file_path: PNG file.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    chart = figure.subplots()
    kept = [step.kept for step in path]
    chart.plot([t.cost for t in kept], [t.score for t in kept], color="0.5", zorder=1)
    trials = [
        trial for step in path for trial in {id(t): t for t in (*step.tried, step.kept)}.values()
    ]
    for number, axis in enumerate(dict.fromkeys(trial.axis for trial in trials)):
        own = [trial for trial in trials if trial.axis == axis]
        chart.scatter(
            [t.cost for t in own], [t.score for t in own], label=axis or "start",
            marker=MARKERS[number % len(MARKERS)], color=f"C{number % 10}", zorder=2,
            s=[90 if any(t is k for k in kept) else 30 for t in own],
        )  # fmt: skip
    chart.axvline(settings.budget_ms or settings.budget_gmacs, color="0.3", linestyle=":")
    chart.set_xscale("log")
    chart.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    chart.xaxis.set_major_formatter("{x:g}")
    chart.xaxis.set_minor_locator(NullLocator())
    chart.set_xlabel(cost_unit(settings))
    chart.set_ylabel("correlation with the articulation cue")
    chart.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    with write_atomically(file_path) as file:
        figure.savefig(file, format="png", dpi=120)
