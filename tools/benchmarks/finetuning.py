"""`cavmae bench finetune`: steps of fine-tuning, and whether composing keeps up with them."""

import dataclasses
import random
import time
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cavmae.common.cli import parse, parser
from cavmae.common.errors import UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.mixtures.scene_spec import ComposeSettings
from cavmae.datasets.mixtures.scene_stream import ComposedStream
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.stream.shard_reader import Access
from cavmae.datasets.stream.transforms import Statistics
from cavmae.finetune.speaker.factory import build_speaker
from cavmae.finetune.speaker.run import CONFIGS, SpeakerSettings
from cavmae.finetune.speaker.settings import LossSettings, SpeakerModelSettings
from cavmae.finetune.speaker.task import SpeakerTask
from cavmae.pretrain.engine.optim import build_optimizer
from cavmae.pretrain.engine.run_setup import keep_memory
from cavmae.pretrain.settings import OptimizerSettings
from cavmae.tools.benchmarks.table import in_turns, row_of, save, table

BASELINE = "training step"


@dataclasses.dataclass(frozen=True)
class FinetuneBench:
    """What is measured.

    Args:
        data_set: folder of shards to compose from.
        size: ``tiny``, ``small`` or ``base``, as the configurations of that name.
        encoder: a pretrained one; None: untrained, of ``encoder_size``; it learns, then.
        encoder_size: see there.
        batch: scenes of a step.
        steps: measured in a round, after one that is not.
        scenes: composed in a round, after as many that are not.
        rounds: measured in turns; medians count.
        workers: that compose for a step of ``gpu_step`` seconds.
        gpu_step: seconds; what a GPU would take.
        device: ``auto``: a GPU if there is one.
        precision: ``auto``: bf16 on a GPU, fp32 on the CPU.
        out: JSON file for the rows.
    """

    data_set: str = ""
    size: Literal["tiny", "small", "base"] = "tiny"
    encoder: str | None = None
    encoder_size: Literal["tiny", "small", "base"] = "tiny"
    batch: int = 8
    steps: int = 3
    scenes: int = 40
    rounds: int = 3
    workers: int = 2
    gpu_step: float = 0.3
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    out: str | None = None


def configured(name: str) -> SpeakerModelSettings:
    """The model of one of our configurations."""
    made = parser("finetune speakers", "One of our configurations.")
    made.add_class_arguments(SpeakerSettings)
    filled = made.instantiate(parse(made, ["--config", str(CONFIGS / f"{name}.yaml")]))
    settings: SpeakerModelSettings = filled.model
    return settings


def _model_settings(bench: FinetuneBench) -> SpeakerModelSettings:
    changes: dict[str, Any] = {"encoder": bench.encoder, "encoder_size": bench.encoder_size}
    if not bench.encoder:
        changes["train_encoder"] = "all"
    return dataclasses.replace(configured(bench.size), **changes)


def _stream(bench: FinetuneBench) -> ComposedStream:
    how = _model_settings(bench)
    motion = how.motion_height, how.motion_width
    return ComposedStream(
        Manifest.load(bench.data_set), ComposeSettings(), motion, how.key_frames, bench.batch,
        access=Access(verify="size"),
    )  # fmt: skip


def _device(bench: FinetuneBench) -> str:
    gpu = torch.cuda.is_available() if bench.device == "auto" else bench.device == "cuda"
    return "cuda" if gpu else "cpu"


def step(bench: FinetuneBench) -> float:
    """Seconds for a scene, of training steps on scenes that are composed before."""
    keep_memory()
    where = _device(bench)
    how = _model_settings(bench)
    compose = ComposeSettings()
    model = build_speaker(how, (compose.height, compose.width), 256, 0)
    frozen = how.train_encoder == "frozen"
    task = SpeakerTask(model, LossSettings(), Statistics(), frozen).to(where)
    optimizer: Any = build_optimizer(task, OptimizerSettings())
    loaded = next(iter(Loader(_stream(bench))))
    half = bench.precision == "bf16" or (bench.precision == "auto" and where == "cuda")
    for number in range(1 + bench.steps):
        if number == 1:
            _wait(where)
            started = time.perf_counter()
        batch = {k: v.to(where) if isinstance(v, Tensor) else v for k, v in loaded.items()}
        with torch.autocast(where, torch.bfloat16, enabled=half):
            outcome = task("training_step", batch)
        outcome.loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    _wait(where)
    return (time.perf_counter() - started) / (bench.steps * bench.batch)


def _wait(where: str) -> None:
    if where == "cuda":
        torch.cuda.synchronize()


def composing(bench: FinetuneBench) -> float:
    """Seconds for a scene, composed on one core."""
    stream = _stream(bench)
    for number in range(2 * bench.scenes):
        if number == bench.scenes:
            started = time.perf_counter()
        stream.composer.compose(stream.sampler.sample(random.Random(number)))
    return (time.perf_counter() - started) / bench.scenes


def waiting(bench: FinetuneBench) -> float:
    """Share of time that steps of ``gpu_step`` seconds would wait for workers."""
    batches = iter(Loader(_stream(bench), bench.workers))
    for _ in range(2 * bench.workers):
        next(batches)
        time.sleep(bench.gpu_step)
    waited = 0.0
    started = time.perf_counter()
    for _ in range(10):
        since = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - since
        time.sleep(bench.gpu_step)
    return waited / (time.perf_counter() - started)


def run(bench: FinetuneBench) -> None:
    """Measures and prints."""
    if not bench.data_set or not Path(bench.data_set).is_dir():
        raise UsageError("Name a folder of shards to compose from: --data_set FOLDER.")
    if min(bench.batch, bench.steps, bench.scenes, bench.rounds, bench.workers) < 1:
        raise UsageError("--batch, --steps, --scenes, --rounds and --workers are at least 1.")
    gpu = _device(bench) == "cuda"
    ways: dict[str, Any] = {BASELINE: (step, (bench,))}
    found = in_turns(ways, bench.rounds, pinned=False, gpu=gpu)
    found |= in_turns({"composing, one core": (composing, (bench,))}, bench.rounds)
    rows = [row_of(name, seconds, peak) for name, (seconds, peak) in found.items()]
    name = torch.cuda.get_device_name() if gpu else "all cores"
    encoder = "frozen, pretrained" if bench.encoder else f"{bench.encoder_size}, which learns"
    caption = f"cavmae bench finetune: {bench.size}, encoder {encoder}, batch {bench.batch}, {name}"
    print(table(caption, "scene", BASELINE, rows))
    share = waiting(bench)
    print(
        f"With {bench.workers} workers, steps of {bench.gpu_step} s for {bench.batch} scenes wait "
        f"{share:.0%} of the time for data."
    )
    save(rows, bench.out)
