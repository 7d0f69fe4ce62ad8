"""`cavmae bench labels`: whether pretraining pays where few clips are labelled.

The same fine-tuning from a pretrained encoder and from scratch, on few clips and on more, several
seeds each. Every run is one of `cavmae finetune speakers`, measured by `cavmae evaluate`; what is
done already is not done again, so a table that was interrupted goes on, with the same settings.
"""

import dataclasses
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
from typing import Literal

from matplotlib.figure import Figure

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import json_bytes, read_json
from cavmae.common.progress import Progress
from cavmae.finetune.speaker.metric_table import METRICS
from cavmae.pretrain.engine.checkpoints import complete_checkpoints

log = logging.getLogger("cavmae")
COLOURS = {"pretrained": "#0072b2", "from scratch": "#d55e00"}  # that colour-blind eyes tell apart
PLOTTED = ("si_sdri", "iou", "binding")

Measures = dict[tuple[str, int], list[Mapping[str, float]]]  # of each start and number of clips


@dataclasses.dataclass(frozen=True)
class LabelsBench:
    """What is compared.

    Args:
        train: shards of labelled clips.
        encoder: a pretrained one, of the size ``encoder_size``.
        encoder_size: of the one from scratch.
        shards: shards of other people to measure on.
        list: scenes of those, made with `cavmae evaluate --make`.
        clips: how many labelled clips there are.
        seeds: so many runs each.
        steps: of every run.
        recipe: configuration of fine-tuning, as `cavmae finetune speakers --config` takes it.
        more: other options of `cavmae finetune speakers`, as on a command line.
        jobs: runs at a time; the processor's cores are shared out among them.
        out: folder of runs, ``labels.json``, ``labels.md`` and ``labels.png``.
    """

    train: str = ""
    encoder: str = ""
    encoder_size: Literal["tiny", "small", "base"] = "tiny"
    shards: str = ""
    list: str = ""
    clips: tuple[int, ...] = (16, 64, 256)
    seeds: int = 3
    steps: int = 150
    recipe: str = "tiny"
    more: str = ""
    jobs: int = 1
    out: str = ""

    def __post_init__(self) -> None:
        for name in ("train", "encoder", "shards", "list", "out"):
            if not getattr(self, name):
                raise UsageError(f"bench labels needs --{name}.")
        if min(*self.clips, self.seeds, self.steps, self.jobs) < 1:
            raise UsageError("--clips, --seeds, --steps and --jobs are at least 1.")


def _same(bench: LabelsBench) -> None:
    """Runs of other settings must not end in one table; more clips or seeds are welcome.

    Raises:
        UsageError: the folder has runs of other settings.
    """
    told = dataclasses.asdict(bench)
    for name in ("clips", "seeds", "jobs", "out"):
        del told[name]
    path = Path(bench.out) / "settings.json"
    if not path.exists():
        with write_atomically(path) as file:
            file.write(json_bytes(told, indent=1))
        return
    before = read_json(path)
    changed = [name for name, value in told.items() if before.get(name) != value]
    if changed:
        raise UsageError(
            f"{bench.out} has runs with another {', '.join(changed)}: choose another --out."
        )


def run(bench: LabelsBench) -> None:
    """Trains and measures what is not measured yet, and prints the table."""
    Path(bench.out).mkdir(parents=True, exist_ok=True)
    _same(bench)
    cases = list(itertools.product(COLOURS, bench.clips, range(bench.seeds)))
    with Progress(len(cases), "run") as progress, ThreadPoolExecutor(bench.jobs) as threads:

        def one(case: tuple[str, int, int]) -> Mapping[str, float]:
            found = _measured(bench, *case)
            progress.done()
            return found

        found: Measures = {}
        for (start, clips, _), measures in zip(cases, threads.map(one, cases), strict=True):
            found.setdefault((start, clips), []).append(measures)
    text = table(found, bench)
    print(text)
    out = Path(bench.out)
    record = [
        {"start": start, "clips": clips, "runs": runs} for (start, clips), runs in found.items()
    ]
    with write_atomically(out / "labels.json") as file:
        file.write(json_bytes(record, indent=1))
    with write_atomically(out / "labels.md") as file:
        file.write(f"{text}\n".encode())
    plot(found, out / "labels.png")


def _measured(bench: LabelsBench, start: str, clips: int, seed: int) -> Mapping[str, float]:
    """Measures of one run, which is made if it is not there."""
    name = f"{start.replace(' ', '-')}-{clips}-{seed}"
    folder = Path(bench.out) / name
    file = folder / "measures" / "measures.json"
    if not file.exists():
        encoder = bench.encoder if start == "pretrained" else "null"
        train = [
            "finetune", "speakers", "--config", bench.recipe, "--out", str(folder / "run"),
            "--resume", "auto", "--data.train", bench.train, "--data.clips", str(clips),
            "--data.verify", "size", "--model.train_encoder", "all",
            "--model.encoder", encoder, "--model.encoder_size", bench.encoder_size,
            "--loop.steps", str(bench.steps), "--loop.seed", str(seed), *shlex.split(bench.more),
        ]  # fmt: skip
        _program(train, folder / "train.log", bench.jobs)
        last = complete_checkpoints(folder / "run")[-1]
        measure = [
            "evaluate", bench.shards, "--list", bench.list, "--model", str(last),
            "--references", "false", "--out", str(file.parent),
        ]  # fmt: skip
        _program(measure, folder / "measure.log", bench.jobs)
    found: Mapping[str, float] = read_json(file)["summary"]["model"]
    return found


def _program(words: Sequence[str], path: Path, jobs: int) -> None:
    """Runs a command of ours in a process of its own, what it says going to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = str(max(1, (cores or 1) // jobs))
    with path.open("w") as said:
        code = subprocess.run(
            [sys.executable, "-m", "cavmae.tools.cli", *words],
            stdout=said,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": threads},
            check=False,
        ).returncode
    if code:
        told = path.read_text().splitlines()[-1:]
        raise CavmaeError(f"{path} ended with code {code}: {''.join(told)}")


def table(found: Measures, bench: LabelsBench) -> str:
    """Means and standard deviations over seeds, a column each number of clips and start."""
    columns = list(found)
    lines = [
        f"cavmae bench labels: {bench.recipe}, {bench.steps} steps, {bench.seeds} seeds "
        "(mean ± standard deviation)",
        "",
        "| | " + " | ".join(f"{clips} clips, {start}" for start, clips in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name, metric in METRICS.items():
        if all(name in runs for case in columns for runs in found[case]):
            cells = [
                _spread([runs[name] for runs in found[case]], metric.digits) for case in columns
            ]
            lines.append(f"| {metric.label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: Sequence[float], digits: int) -> str:
    middle = f"{statistics.mean(values):.{digits}f}"
    return f"{middle} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else middle


def plot(found: Measures, path: Path) -> None:
    """What more labels give, from both starts: a dot each run, lines through means."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(PLOTTED)), PLOTTED, strict=True):
        for start, colour in COLOURS.items():
            here = [(clips, runs) for (s, clips), runs in found.items() if s == start]
            dots = [(clips, r[name]) for clips, runs in here for r in runs if name in r]
            if dots:
                axis.scatter(*zip(*dots, strict=True), s=12, color=colour)
            means = [
                (clips, statistics.mean(r[name] for r in runs))
                for clips, runs in here
                if all(name in r for r in runs)
            ]
            if means:
                axis.plot(*zip(*means, strict=True), color=colour, label=start)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted({clips for _, clips in found}), minor=False)
        axis.set_xticklabels([str(c) for c in sorted({clips for _, clips in found})])
        axis.set_xlabel("labelled clips")
        axis.set_ylabel(METRICS[name].label)
        axis.legend()
    with write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=120)
