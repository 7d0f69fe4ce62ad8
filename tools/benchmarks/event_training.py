"""`cavmae bench finetune --task events`: training steps of `small-set`, and passes over frames."""

import itertools
import os
import shlex
import time
from collections.abc import Iterator
from typing import Any

import torch

from cavmae.common.allocator import keep_memory
from cavmae.common.cli import parse_settings, parser
from cavmae.common.device import device_of, to_device
from cavmae.datasets.stream.collate import Batch
from cavmae.finetune.events.run import build
from cavmae.finetune.events.settings import EventSettings
from cavmae.finetune.events.train import CONFIGS
from cavmae.pretrain.engine.distributed import DistEnv
from cavmae.pretrain.engine.optim import build_optimizer
from cavmae.pretrain.engine.run import RunContext, TrainingParts
from cavmae.pretrain.temporal.settings import TEMPORAL
from cavmae.tools.benchmarks.settings import FinetuneBench
from cavmae.tools.benchmarks.steps import StepTimes, precision_of, seconds_per_step, synchronize
from cavmae.tools.benchmarks.table import in_turns, row_of, save, table

PLAIN = "per-frame"  # temporal attention of models of one frame
STEP = "training step, 1 frame"
LOADING = "loading, one core"
STEPS_WITH_WORKERS = 20  # steps whose wait for data is measured, after the first few


def run(bench: FinetuneBench) -> None:
    """Measures both tables and prints them.

    Raises:
        CavmaeError: the shards have no labels, or cannot be used.
    """
    gpu = device_of(bench.device).type == "cuda"
    one_pass = {f"training step, {bench.frames} frames, {name}": name for name in TEMPORAL}
    steps: dict[str, Any] = {STEP: (training_steps, (bench, PLAIN, 1))}
    steps |= {
        text: (training_steps, (bench, name, bench.frames)) for text, name in one_pass.items()
    }
    steps |= {f"{STEP}, {v}": (training_steps, (bench, PLAIN, 1, v)) for v in bench.variants}
    averaged = f"{bench.frames} passes, averaged"
    passes: dict[str, Any] = {averaged: (seconds_per_clip, (bench, PLAIN, 1))}
    passes |= {
        f"one pass, {name}": (seconds_per_clip, (bench, name, bench.frames)) for name in TEMPORAL
    }
    measured = in_turns(steps, bench.rounds, pinned=False, gpu=gpu)
    measured |= in_turns({LOADING: (loading, (bench,))}, bench.rounds)
    step_rows = [row_of(name, *numbers) for name, numbers in measured.items()]
    measured = in_turns(passes, bench.rounds, pinned=False, gpu=gpu)
    pass_rows = [row_of(name, *numbers) for name, numbers in measured.items()]
    place = torch.cuda.get_device_name() if gpu else "all cores"
    caption = (
        f"cavmae bench finetune: events, small-set, encoder {bench.encoder_size}, "
        f"batch {bench.batch_size}, {precision_of(bench)}, {place}"
    )
    print(table(caption, "clip", STEP, step_rows))
    seconds, waiting = with_workers(bench)
    print(
        f"\nWith {bench.workers} workers: {1 / seconds:.1f} clips/s in training, "
        f"{waiting:.0%} of the time waiting for data.\n"
    )
    print(table(f"Evaluation of {bench.frames} frames a clip", "clip", averaged, pass_rows))
    save(step_rows + pass_rows, bench.out)


def parts_of(
    bench: FinetuneBench, attention: str, frames: int, workers: int = 0, variant: str = ""
) -> TrainingParts:
    """Task and loader of a run of `small-set`.

    Args:
        attention: entry of the registry of temporal attentions.
        frames: of a clip that the model takes at once.
        workers: that load.
        variant: further options of `cavmae finetune events`.
    """
    arguments = parser("finetune events", "Configuration of the package.")
    values = {
        "data.train": bench.data_set, "data.batch-size": bench.batch_size, "data.workers": workers,
        "data.verify": "size", "model.encoder.size": bench.encoder_size,
        "model.encoder.temporal": attention, "model.encoder.frames": frames,
    }  # fmt: skip
    words = ["--config", str(CONFIGS / "small-set.yaml")]
    words += [f"--{name}={value}" for name, value in values.items()]
    settings, _ = parse_settings(arguments, EventSettings, [*words, *shlex.split(variant)])
    return build(settings, RunContext(DistEnv(), os.devnull, False))


def training_steps(bench: FinetuneBench, attention: str, frames: int, variant: str = "") -> float:
    """Seconds per clip of training steps on one batch that is loaded beforehand."""
    keep_memory()
    parts = parts_of(bench, attention, frames, variant=variant)
    return _seconds_per_step(bench, parts, itertools.repeat(next(iter(parts.loader))), bench.steps)


def loading(bench: FinetuneBench) -> float:
    """Seconds per clip of loading, as many batches as training steps."""
    batches = iter(parts_of(bench, PLAIN, 1).loader)
    next(batches)
    started = time.perf_counter()
    for _ in range(bench.steps):
        next(batches)
    return (time.perf_counter() - started) / bench.steps / bench.batch_size


def with_workers(bench: FinetuneBench) -> tuple[float, float]:
    """Seconds per clip of training with workers, and the fraction that waits for data."""
    keep_memory()
    parts = parts_of(bench, PLAIN, 1, bench.workers)
    waits: list[float] = []
    batches = _timed(iter(parts.loader), waits)
    seconds = _seconds_per_step(bench, parts, batches, STEPS_WITH_WORKERS, 2 + bench.workers)
    waited = sum(waits[-STEPS_WITH_WORKERS:])
    return seconds, waited / (seconds * bench.batch_size * STEPS_WITH_WORKERS)


def seconds_per_clip(bench: FinetuneBench, attention: str, frames: int) -> float:
    """Seconds per clip of class probabilities from audio and ``bench.frames`` frames.

    Args:
        attention: entry of the registry of temporal attentions.
        frames: of a clip that the model takes at once: all of them, or 1 in passes of their own.
    """
    device, precision = device_of(bench.device), precision_of(bench)
    clips = next(iter(parts_of(bench, PLAIN, bench.frames).loader))
    batch = to_device(clips, device)
    task: Any = parts_of(bench, attention, frames).task.to(device).eval()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    started = 0.0
    for number in range(1 + bench.steps):
        if number == 1:
            synchronize(device)
            started = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            task.probs(batch, task.mode)
    synchronize(device)
    return (time.perf_counter() - started) / bench.steps / bench.batch_size


def _seconds_per_step(
    bench: FinetuneBench,
    parts: TrainingParts,
    batches: Iterator[Batch],
    steps: int,
    warm_up: int = 1,
) -> float:
    """Seconds per clip of training steps."""
    device = device_of(bench.device)
    task = parts.task.to(device).train()
    optimizer = build_optimizer(task, EventSettings().optimizer)
    times = StepTimes(warm_up, steps, precision_of(bench))
    return seconds_per_step(task, optimizer, batches, device, times) / bench.batch_size


def _timed(batches: Iterator[Batch], waits: list[float]) -> Iterator[Batch]:
    """Batches; appends the seconds that each was waited for."""
    while True:
        since = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - since)
        yield batch
