"""`cavmae bench finetune`: fine-tuning steps, composing of scenes, and waiting for data."""

import itertools
import random
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cavmae.common.allocator import keep_memory
from cavmae.common.cli import parse_settings, parser
from cavmae.common.device import device_of
from cavmae.common.errors import UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.mixtures.scene_spec import ComposeSettings
from cavmae.datasets.mixtures.scene_stream import ComposedStream
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.stream.shard_reader import Access
from cavmae.datasets.stream.transforms import Statistics
from cavmae.finetune.speaker.factory import build_speaker
from cavmae.finetune.speaker.run import build_task
from cavmae.finetune.speaker.settings import SpeakerSettings
from cavmae.finetune.speaker.train import CONFIGS
from cavmae.pretrain.engine.optim import build_optimizer
from cavmae.pretrain.engine.settings import OptimizerSettings
from cavmae.tools.benchmarks import event_training
from cavmae.tools.benchmarks.settings import FinetuneBench
from cavmae.tools.benchmarks.steps import StepTimes, precision_of, seconds_per_step
from cavmae.tools.benchmarks.table import in_turns, row_of, save, table

BASELINE = "training step"
GPU_STEP = 0.1  # seconds of a step on a GPU, simulated to measure the wait for data


def settings_of(name: str, more: Sequence[str] = ()) -> SpeakerSettings:
    """Settings of a configuration of `cavmae finetune speakers`.

    Args:
        name: of the configuration.
        more: further options of the command.
    """
    arguments = parser("finetune speakers", "Configuration of the package.")
    words = ["--config", str(CONFIGS / f"{name}.yaml"), *more]
    return parse_settings(arguments, SpeakerSettings, words)[0]


def _settings(bench: FinetuneBench, variant: str = "") -> SpeakerSettings:
    more = ["--model.train-encoder", "all", "--model.encoder.size", bench.encoder_size]
    return settings_of(bench.size, [*more, *shlex.split(variant)])


def _stream(bench: FinetuneBench, variant: str = "") -> ComposedStream:
    settings = _settings(bench, variant).model
    motion = settings.motion_height, settings.motion_width
    return ComposedStream(
        Manifest.load(bench.data_set), ComposeSettings(), motion, settings.key_frames,
        bench.batch_size, access=Access(verify="size"),
    )  # fmt: skip


def training_steps(bench: FinetuneBench, variant: str = "") -> float:
    """Seconds per scene of training steps on one batch that is composed beforehand.

    Args:
        variant: options of `cavmae finetune speakers`.
    """
    keep_memory()
    device = device_of(bench.device)
    compose = ComposeSettings()
    settings = _settings(bench, variant)
    model = build_speaker(settings.model, (compose.height, compose.width), 256, 0)
    task = build_task(model, settings, Statistics()).to(device)
    optimizer = build_optimizer(task, OptimizerSettings())
    batches = itertools.repeat(next(iter(Loader(_stream(bench, variant)))))
    times = StepTimes(1, bench.steps, precision_of(bench))
    return seconds_per_step(task, optimizer, batches, device, times) / bench.batch_size


def composing(bench: FinetuneBench) -> float:
    """Seconds per scene composed on one core, as many as the training steps take."""
    stream = _stream(bench)
    scenes = bench.steps * bench.batch_size
    for number in range(2 * scenes):
        if number == scenes:  # those before are the warm-up
            started = time.perf_counter()
        stream.composer.compose(stream.sampler.sample(random.Random(number)))
    return (time.perf_counter() - started) / scenes


def waiting_fraction(bench: FinetuneBench) -> float:
    """Fraction of the time that steps of ``GPU_STEP`` seconds wait for workers."""
    batches = iter(Loader(_stream(bench), bench.workers))
    for _ in range(2 * bench.workers):
        next(batches)
        time.sleep(GPU_STEP)
    waited = 0.0
    started = time.perf_counter()
    for _ in range(10):
        since = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - since
        time.sleep(GPU_STEP)
    return waited / (time.perf_counter() - started)


def run(bench: FinetuneBench) -> None:
    """Measure and print the table.

    Raises:
        UsageError: the folder of shards is missing.
    """
    if not bench.data_set or not Path(bench.data_set).is_dir():
        raise UsageError("Name a folder of shards: --data-set FOLDER.")
    if bench.task == "events":
        event_training.run(bench)
        return
    gpu = device_of(bench.device).type == "cuda"
    ways: dict[str, Any] = {BASELINE: (training_steps, (bench,))}
    ways |= {f"{BASELINE}, {v}": (training_steps, (bench, v)) for v in bench.variants}
    results = in_turns(ways, bench.rounds, pinned=False, gpu=gpu)
    results |= in_turns({"composing, one core": (composing, (bench,))}, bench.rounds)
    rows = [row_of(name, seconds, peak) for name, (seconds, peak) in results.items()]
    name = torch.cuda.get_device_name() if gpu else "all cores"
    caption = (
        f"cavmae bench finetune: {bench.size}, encoder {bench.encoder_size}, trained, "
        f"batch {bench.batch_size}, {name}"
    )
    print(table(caption, "scene", BASELINE, rows))
    print(
        f"With {bench.workers} workers, steps of {GPU_STEP} s for {bench.batch_size} scenes wait "
        f"{waiting_fraction(bench):.0%} of the time for data."
    )
    save(rows, bench.out)
