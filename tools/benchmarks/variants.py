"""`cavmae bench variants`: options of a task against its default after the same CPU time.

Every run learns from the same data in the same order for a seed, with one thread, and has the same
learning rate at each fraction of the time. Each has a process of its own. Finished runs are kept,
and an interrupted one goes on at its last evaluation.
"""

import contextlib
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from cavmae.common import worker_pool
from cavmae.common.cli import output, stop_on_signals
from cavmae.common.errors import CavmaeError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import json_bytes, read_json
from cavmae.common.locks import locked
from cavmae.common.registry import to_json_value
from cavmae.common.tables import markdown_table
from cavmae.tools.benchmarks.kept_results import check_settings
from cavmae.tools.benchmarks.settings import VariantsBench
from cavmae.tools.benchmarks.table import machine
from cavmae.tools.benchmarks.variant_training import RECIPES, VariantJob, run_variant

log = logging.getLogger("cavmae")
Records = Sequence[Mapping[str, Any]]  # of results of runs


class Column(NamedTuple):
    """Metric of the table, with its decimals."""

    name: str
    title: str
    digits: int


TRUE_MASKS = (Column("true_masks_si_sdri", "SI-SDR improvement under true masks, dB", 2),)
VOICES = Column("si_sdri", "SI-SDR improvement, dB", 2), Column("confusion", "confusion", 3)
MASKS = Column("iou", "IoU", 3), Column("state_acc", "accuracy of states", 3)
EVENTS = Column("mean_ap", "mAP", 3), Column("auc", "AUC", 3), Column("accuracy", "accuracy", 3)
MARKERS = "oxs^"  # of the first ten variants, of the next ten


def run(bench: VariantsBench) -> None:
    """Trains and measures the missing runs, and prints the table.

    Raises:
        UsageError: an option is out of range, or the folder has runs of other settings.
        CavmaeError: data cannot be used, another process uses the folder, or a run ended.
    """
    jobs = [
        VariantJob(bench, variant, bench.seed + number)
        for number in range(bench.seeds)  # all variants of a seed before the next seed
        for variant in ("", *bench.variants)
    ]
    default = jobs[0].settings()
    for job in jobs:
        job.check(default)
    out = Path(bench.out)
    message = f"Another process measures in {out}: wait for it, or choose another --out."
    with locked(out / ".lock", message), stop_on_signals():
        settings = to_json_value(bench)
        for name in ("recipe", "options", "variants", "seed", "seeds", "jobs", "out"):
            del settings[name]
        settings["default"] = to_json_value(default)  # a recipe's file may change
        del settings["default"]["loop"]["seed"]
        check_settings(out, settings)
        columns = columns_of(jobs[0])
        records = _results(jobs, columns[0])
        text = table(records, bench, columns)
        output(text)
        with write_atomically(out / "variants.json") as file:
            file.write(json_bytes({"machine": machine(), "runs": records}, indent=1))
        with write_atomically(out / "variants.md") as file:
            file.write(f"{text}\n".encode())
        plot(records, bench, columns[0], out / "variants.png")


def columns_of(job: VariantJob) -> Sequence[Column]:
    """Metrics of what learns in a benchmark with this run as its default; the first is plotted."""
    if job.bench.task == "events":
        return EVENTS
    frozen = job.settings().model.freeze
    if frozen == "masks":  # those in training are the true ones
        return Column("correlation", "correlation of cues", 3), *TRUE_MASKS
    return MASKS if frozen == "voices" else (*TRUE_MASKS, *VOICES, *MASKS)


def _results(jobs: Sequence[VariantJob], logged: Column) -> list[Mapping[str, Any]]:
    """Results of runs, the missing ones trained in a process of their own each.

    Raises:
        CavmaeError: a process ended.
    """
    missing = [job for job in jobs if not job.path.exists()]
    at_once = jobs[0].bench.jobs
    for first in range(0, len(missing), at_once):
        _train(missing[first : first + at_once], logged)
    return [read_json(job.path) for job in jobs]


def _train(jobs: Sequence[VariantJob], logged: Column) -> None:
    """Trains runs at the same time, each in a process of its own.

    Raises:
        CavmaeError: a process ended.
    """
    # Without limits: how long a run takes is the user's choice.
    events = worker_pool.run(iter(enumerate(jobs)), run_variant, len(jobs), math.inf, math.inf)
    with contextlib.closing(events):
        for event in events:
            job = jobs[event.task]
            if isinstance(event, worker_pool.Lost):
                raise CavmaeError(
                    f"{job.label}: {event.detail}; run the same command again to resume."
                )
            if isinstance(event, worker_pool.Restarted):
                log.info("%s begins again: %s.", job.label, event.detail)
                continue
            if isinstance(event, worker_pool.Finished):
                continue  # its last evaluation was logged
            point = event.message.curve[-1]
            name, title, digits = logged
            log.info(
                "%s: %.3g of %g min, %s %.*f.", job.label, point["minutes"], job.bench.minutes,
                title, digits, point.get(name, math.nan),
            )  # fmt: skip


def table(records: Records, bench: VariantsBench, columns: Sequence[Column]) -> str:
    """Markdown: cost of each variant, and metrics as mean and range over seeds."""
    head = [
        "options", "parameters, M", "GFLOPs / sample", "samples / core s", "steps",
        *(title for _, title, _ in columns),
    ]  # fmt: skip
    rows = []
    for variant in ("", *bench.variants):
        own = [record for record in records if record["variant"] == variant]
        rows.append([
            f"`{variant}`" if variant else "default",
            f"{own[0]['parameters'] / 1e6:.2f}",
            f"{own[0]['flops'] / 1e9:.2f}",
            f"{statistics.mean(r['samples_per_core_sec'] for r in own):.2f}",
            f"{statistics.mean(r['steps'] for r in own):.0f}",
            *(
                _spread([r["curve"][-1].get(name, math.nan) for r in own], digits)
                for name, _, digits in columns
            ),
        ])  # fmt: skip
    caption = (
        f"cavmae bench variants: {bench.task}, {bench.recipe or RECIPES[bench.task]}, "
        f"{bench.minutes:g} CPU minutes of a core each, {bench.seeds} seeds ({machine()})"
    )
    return f"{caption}\n\n{markdown_table(head, rows)}"


def _spread(values: Sequence[float], digits: int) -> str:
    """Mean of values, and their range if there are several; ``-``: one is undefined."""
    if not all(map(math.isfinite, values)):
        return "-"
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def plot(records: Records, bench: VariantsBench, column: Column, path: Path) -> None:
    """Plots a metric over CPU minutes, a line for each run.

    Args:
        path: PNG file.
    """
    figure = Figure(figsize=(9, 5 + 0.2 * len(bench.variants)), layout="constrained")
    chart = figure.subplots()
    name, title, _ = column
    for number, variant in enumerate(("", *bench.variants)):
        for run_number, record in enumerate(r for r in records if r["variant"] == variant):
            chart.plot(
                [point["minutes"] for point in record["curve"]],
                [point.get(name, math.nan) for point in record["curve"]],
                color=f"C{number % 10}", marker=MARKERS[number // 10 % len(MARKERS)],
                linewidth=2 if not variant else 1,
                label=(variant or "default") if not run_number else None,
            )  # fmt: skip
    chart.set_xlabel("CPU minutes of training")
    chart.set_ylabel(title)
    chart.grid(alpha=0.3)
    figure.legend(loc="outside lower center")
    with write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=120)
