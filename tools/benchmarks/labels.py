"""`cavmae bench labels`: label efficiency of pretraining.

The same fine-tuning starts from a pretrained encoder and from scratch, on several numbers of
labelled clips and with several seeds. Every run is one of `cavmae finetune speakers`, measured by
`cavmae evaluate`. Finished runs are kept, so that an interrupted benchmark resumes.
"""

import itertools
import logging
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from matplotlib.figure import Figure

from cavmae.common.errors import CavmaeError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import json_bytes, read_json
from cavmae.common.progress import Progress
from cavmae.common.registry import to_json_value
from cavmae.common.tables import markdown_table
from cavmae.common.threads import cores
from cavmae.finetune.speaker.metric_table import METRICS
from cavmae.pretrain.engine.checkpoints import complete_checkpoints
from cavmae.tools.benchmarks.kept_results import check_settings
from cavmae.tools.benchmarks.settings import LabelsBench

log = logging.getLogger("cavmae")
COLOURS = {"pretrained": "#0072b2", "from scratch": "#d55e00"}  # colour-blind safe
PLOTTED = ("si_sdri", "iou", "binding")

# Metrics of all runs, by start and number of clips.
Results = dict[tuple[str, int], list[Mapping[str, float]]]


def run(bench: LabelsBench) -> None:
    """Train and evaluate the missing runs, and print the table.

    Raises:
        UsageError: the folder has runs of other settings.
        CavmaeError: a run failed.
    """
    Path(bench.out).mkdir(parents=True, exist_ok=True)
    settings = to_json_value(bench)
    for name in ("clips", "seeds", "jobs", "out"):  # these may change from one call to the next
        del settings[name]
    check_settings(Path(bench.out), settings)
    cases = list(itertools.product(COLOURS, bench.clips, range(bench.seeds)))
    with Progress(len(cases), "run") as progress, ThreadPoolExecutor(bench.jobs) as threads:

        def measure(case: tuple[str, int, int]) -> Mapping[str, float]:
            metrics = _metrics_of_run(bench, *case)
            progress.done()
            return metrics

        results: Results = {}
        for (start, clips, _), metrics in zip(cases, threads.map(measure, cases), strict=True):
            results.setdefault((start, clips), []).append(metrics)
    text = table(results, bench)
    print(text)
    out = Path(bench.out)
    record = [
        {"start": start, "clips": clips, "runs": runs} for (start, clips), runs in results.items()
    ]
    with write_atomically(out / "labels.json") as file:
        file.write(json_bytes(record, indent=1))
    with write_atomically(out / "labels.md") as file:
        file.write(f"{text}\n".encode())
    plot(results, out / "labels.png")


def _metrics_of_run(bench: LabelsBench, start: str, clips: int, seed: int) -> Mapping[str, float]:
    """Metrics of one run, which is trained and evaluated if it is missing."""
    name = f"{start.replace(' ', '-')}-{clips}-{seed}"
    folder = Path(bench.out) / name
    file = folder / "measures" / "measures.json"
    if not file.exists():
        encoder = bench.encoder if start == "pretrained" else "null"
        train = [
            "finetune", "speakers", "--config", bench.recipe, "--out", str(folder / "run"),
            "--resume", "auto", "--data.train", bench.train, "--data.clips", str(clips),
            "--data.verify", "size", "--model.train_encoder", "all",
            "--model.encoder-from", encoder, "--model.encoder.size", bench.encoder_size,
            "--loop.steps", str(bench.steps), "--loop.seed", str(seed), *shlex.split(bench.more),
        ]  # fmt: skip
        _run_command(train, folder / "train.log", bench.jobs)
        last = complete_checkpoints(folder / "run")[-1]
        measure = [
            "evaluate", bench.shards, "--list", bench.list, "--model", str(last),
            "--references", "false", "--out", str(file.parent),
        ]  # fmt: skip
        _run_command(measure, folder / "measure.log", bench.jobs)
    metrics: Mapping[str, float] = read_json(file)["summary"]["model"]
    return metrics


def _run_command(words: Sequence[str], path: Path, jobs: int) -> None:
    """Run a command of the program in its own process, with a file for its output.

    Raises:
        CavmaeError: the command failed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, cores() // jobs))
    with path.open("w") as log_file:
        code = subprocess.run(
            [sys.executable, "-m", "cavmae.tools.cli", *words],
            stdout=log_file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": threads},
            check=False,
        ).returncode
    if code:
        last_line = path.read_text().splitlines()[-1:]
        raise CavmaeError(f"{path} ended with code {code}: {''.join(last_line)}")


def table(results: Results, bench: LabelsBench) -> str:
    """Markdown table of means and standard deviations over seeds, a column for each case."""
    columns = list(results)
    caption = (
        f"cavmae bench labels: {bench.recipe}, {bench.steps} steps, {bench.seeds} seeds "
        "(mean ± standard deviation)"
    )
    rows = []
    for name, metric in METRICS.items():
        if all(name in run for case in columns for run in results[case]):
            cells = [
                _spread([run[name] for run in results[case]], metric.digits) for case in columns
            ]
            rows.append([metric.label, *cells])
    head = ["", *(f"{clips} clips, {start}" for start, clips in columns)]
    return f"{caption}\n\n{markdown_table(head, rows)}"


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def plot(results: Results, path: Path) -> None:
    """Plot metrics over numbers of labelled clips: a dot for each run, lines through means."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(PLOTTED)), PLOTTED, strict=True):
        for start, colour in COLOURS.items():
            cases = [(clips, runs) for (s, clips), runs in results.items() if s == start]
            dots = [(clips, r[name]) for clips, runs in cases for r in runs if name in r]
            if dots:
                axis.scatter(*zip(*dots, strict=True), s=12, color=colour)
            means = [
                (clips, statistics.mean(r[name] for r in runs))
                for clips, runs in cases
                if all(name in r for r in runs)
            ]
            if means:
                axis.plot(*zip(*means, strict=True), color=colour, label=start)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted({clips for _, clips in results}), minor=False)
        axis.set_xticklabels([str(c) for c in sorted({clips for _, clips in results})])
        axis.set_xlabel("labelled clips")
        axis.set_ylabel(METRICS[name].label)
        if axis.lines:
            axis.legend()
    with write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=120)
