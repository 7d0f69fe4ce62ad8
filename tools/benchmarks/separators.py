"""`cavmae bench separators`: separators of the registry after the same CPU time of training.

Every separator learns from the same mixtures and cues in the same order, with one thread, the same
seed and the same learning rate at each fraction of the time. Each has a process of its own.
Finished separators are kept, and an interrupted one goes on at its last evaluation.
"""

import contextlib
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from cavmae.common import worker_pool
from cavmae.common.cli import stop_on_signals
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import json_bytes, read_json, value_as
from cavmae.common.registry import Options, to_json_value
from cavmae.common.tables import markdown_table
from cavmae.datasets.mixtures.sound_mixer import SoundMixer
from cavmae.finetune.separation.evaluation import ORACLE
from cavmae.finetune.separation.run import (
    check_mixtures,
    check_speakers,
    held_out_mixers,
    load_banks,
)
from cavmae.finetune.separators.settings import SEPARATORS, SeparatorOptions
from cavmae.tools.benchmarks.kept_results import check_settings
from cavmae.tools.benchmarks.separator_training import RESULT, EntryJob, measure_entry
from cavmae.tools.benchmarks.settings import SeparatorsBench
from cavmae.tools.benchmarks.table import machine
from cavmae.tools.evaluate_separator import list_table

log = logging.getLogger("cavmae")
Records = Sequence[Mapping[str, Any]]  # of results of separators
MARKERS = "osD^vP*X<>"
COST = [
    "separator", "parameters, M", "G multiply-adds / s of sound", "real-time factor",
    "training memory, MB", "mixtures / s", "steps",
]  # fmt: skip


def run(bench: SeparatorsBench) -> None:
    """Trains and measures the missing separators, and prints tables.

    Raises:
        UsageError: an option is out of range, there is no separator of a name, or the folder has
            results of other settings.
        CavmaeError: recordings cannot be used, or the process of a separator ended.
    """
    jobs = [EntryJob(bench, label, options) for label, options in chosen_entries(bench).items()]
    lists = _check_data(jobs)
    Path(bench.out).mkdir(parents=True, exist_ok=True)
    settings = to_json_value(bench)
    for name in ("entries", "out"):
        del settings[name]
    for name in ("cache", "workers"):
        del settings["data"][name]
    check_settings(Path(bench.out), settings)
    with stop_on_signals():
        records = [_result(job, lists) for job in jobs]
    text = table(records, bench, lists)
    print(text)
    out = Path(bench.out)
    with write_atomically(out / "separators.json") as file:
        file.write(json_bytes({"machine": machine(), "separators": records}, indent=1))
    with write_atomically(out / "separators.md") as file:
        file.write(f"{text}\n".encode())
    plot(records, lists[0], out / "separators.png")


def chosen_entries(bench: SeparatorsBench) -> dict[str, SeparatorOptions]:
    """Options of the separators of a benchmark, by labels that are names of folders, too.

    Raises:
        UsageError: there is no such separator or option, or one is named twice.
    """
    chosen: dict[str, SeparatorOptions] = {}
    for entry in bench.entries or tuple(SEPARATORS):
        value = {"name": entry} if isinstance(entry, str) else entry
        try:
            options = value_as(SeparatorOptions, value, "separator")
        except ValueError as error:
            raise UsageError(f"--entries: {str(error).removesuffix('.')}.") from error
        label = "-".join(re.findall("[A-Za-z0-9.]+", _label(options)))
        if label in chosen:
            raise UsageError(f"--entries has {label} twice: name each separator once.")
        chosen[label] = options
    return chosen


def _label(options: Options) -> str:
    """Name of an entry, and its options that are not the defaults."""
    default, own = to_json_value(type(options)()), to_json_value(options)
    words = [str(options.name)]
    for name, value in own.items():
        if value != default[name]:
            inner = getattr(options, name)
            words += [name, _label(inner) if isinstance(inner, Options) else str(value)]
    return " ".join(words)


def _check_data(jobs: Sequence[EntryJob]) -> list[str]:
    """Names of the lists, after all checks that need no training; decodes recordings."""
    data, mix = jobs[0].bench.data, jobs[0].bench.mix
    speech, noise, banks = load_banks(data)
    check_speakers(data.held_out, banks, speech)
    SoundMixer(speech, noise, mix)
    for job in jobs:
        try:
            check_mixtures(job.model(), mix)
        except ValueError as error:
            raise UsageError(f"--entries: {job.label}: {error}") from error
    return list(held_out_mixers(data.held_out, banks, mix))


def _result(job: EntryJob, lists: Sequence[str]) -> Mapping[str, Any]:
    """Result of a separator, which is trained in a process of its own if it is missing."""
    path = job.folder / RESULT
    if path.exists():
        record: Mapping[str, Any] = read_json(path)
        return record
    tasks = iter([(0, job)])
    # Without limits: how long a separator takes is the user's choice.
    events = worker_pool.run(tasks, measure_entry, 1, math.inf, math.inf)
    with contextlib.closing(events):
        for event in events:
            if isinstance(event, worker_pool.Lost):
                raise CavmaeError(
                    f"{job.label}: {event.detail}; run the same command again to resume."
                )
            if isinstance(event, worker_pool.Restarted):
                log.info("%s begins again: %s.", job.label, event.detail)
                continue
            if isinstance(event, worker_pool.Finished):
                result: Mapping[str, Any] = event.result
                return result
            point = event.message.curve[-1]
            log.info(
                "%s: %.1f of %g min, SI-SDR improvement %.2f dB (%s).", job.label,
                point["minutes"], job.bench.minutes, point[f"{lists[0]}_si_sdri"], lists[0],
            )  # fmt: skip
    raise AssertionError("a task is finished or lost")


def table(records: Records, bench: SeparatorsBench, lists: Sequence[str]) -> str:
    """Markdown tables: cost of the separators, and metrics of each list beside oracle masks."""
    costs = [
        [
            record["label"],
            f"{record['parameters'] / 1e6:.2f}",
            f"{record['macs_per_sec'] / 1e9:.2f}",
            f"{record['real_time_factor']:.3f}",
            f"{record['training_mb']:.0f}",
            f"{record['mixtures_per_core_sec']:.2f}",
            str(record["steps"]),
        ]
        for record in records
    ]
    rows = []
    for name in lists:
        rows += [([name, r["label"]], r["metrics"], name) for r in records]
        rows.append(([name, "oracle masks"], records[0]["metrics"], f"{name}_{ORACLE}"))
    caption = (
        f"cavmae bench separators: {bench.minutes:g} CPU minutes of a core each, batches of "
        f"{bench.data.batch_size} of {bench.mix.seconds:g} s, {bench.precision} ({machine()})"
    )
    metrics = list_table(["list", "separator"], rows)
    return f"{caption}\n\n{markdown_table(COST, costs)}\n\n{metrics}"


def plot(records: Records, name: str, path: Path) -> None:
    """Plots SI-SDR improvement over CPU minutes, and at the end over the real-time factor.

    Args:
        records: results.
        name: of the list.
        path: PNG file.
    """
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    curves, ends = figure.subplots(1, 2)
    for number, record in enumerate(records):
        style = {"marker": MARKERS[number % len(MARKERS)], "color": f"C{number % 10}"}
        minutes = [point["minutes"] for point in record["curve"]]
        values = [point[f"{name}_si_sdri"] for point in record["curve"]]
        curves.plot(minutes, values, label=record["label"], markersize=4, **style)
        final = record["metrics"][f"{name}_si_sdri"]
        factor = record["real_time_factor"]
        ends.plot([factor], [final], linestyle="none", **style)
    curves.set_xlabel("CPU minutes of training")
    ends.set_xlabel("real-time factor on one core")
    ends.set_xscale("log")
    ends.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ends.xaxis.set_major_formatter("{x:g}")
    ends.xaxis.set_minor_locator(NullLocator())
    for axis in (curves, ends):
        axis.set_ylabel(f"SI-SDR improvement, dB ({name})")
        axis.grid(alpha=0.3)
        axis.margins(0.1)
    figure.legend(*curves.get_legend_handles_labels(), loc="outside right upper")
    with write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=120)
