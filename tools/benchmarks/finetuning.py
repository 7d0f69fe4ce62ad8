"""`cavmae bench finetune`: fine-tuning steps, composing of scenes, and waiting for data."""

import dataclasses
import random
import time
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cavmae.common.cli import parse_settings, parser
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
from cavmae.pretrain.config import EncoderConfig
from cavmae.pretrain.engine.optim import build_optimizer
from cavmae.pretrain.engine.run_setup import keep_memory
from cavmae.pretrain.engine.settings import OptimizerSettings
from cavmae.tools.benchmarks.table import in_turns, row_of, save, table

BASELINE = "training step"


@dataclasses.dataclass(frozen=True)
class FinetuneBench:
    """Options of `cavmae bench finetune`.

    Args:
        data_set: folder of shards to compose from.
        size: configuration: ``tiny``, ``small`` or ``base``.
        encoder: pretrained encoder; None: an untrained one of ``encoder_size``, which is trained.
        encoder_size: size of an untrained encoder.
        batch: scenes of a step.
        steps: measured steps of a round, after one warm-up step.
        scenes: composed scenes of a round, after as many warm-up scenes.
        rounds: of all measurements; medians count.
        workers: composing processes for steps of ``gpu_step`` seconds.
        gpu_step: seconds of a simulated step on a GPU.
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


def model_settings_of(name: str) -> SpeakerModelSettings:
    """Load the model settings of a configuration of `cavmae finetune speakers`."""
    arguments = parser("finetune speakers", "Configuration of the package.")
    words = ["--config", str(CONFIGS / f"{name}.yaml")]
    return parse_settings(arguments, SpeakerSettings, words)[0].model


def _model_settings(bench: FinetuneBench) -> SpeakerModelSettings:
    settings = dataclasses.replace(model_settings_of(bench.size), encoder_from=bench.encoder)
    if bench.encoder:
        return settings
    encoder = EncoderConfig(size=bench.encoder_size)
    return dataclasses.replace(settings, encoder=encoder, train_encoder="all")


def _stream(bench: FinetuneBench) -> ComposedStream:
    settings = _model_settings(bench)
    motion = settings.motion_height, settings.motion_width
    return ComposedStream(
        Manifest.load(bench.data_set), ComposeSettings(), motion, settings.key_frames, bench.batch,
        access=Access(verify="size"),
    )  # fmt: skip


def _device(bench: FinetuneBench) -> str:
    gpu = torch.cuda.is_available() if bench.device == "auto" else bench.device == "cuda"
    return "cuda" if gpu else "cpu"


def training_steps(bench: FinetuneBench) -> float:
    """Seconds per scene of training steps on one batch that is composed beforehand."""
    keep_memory()
    device = _device(bench)
    settings = _model_settings(bench)
    compose = ComposeSettings()
    model = build_speaker(settings, (compose.height, compose.width), 256, 0)
    frozen = settings.train_encoder == "frozen"
    task = SpeakerTask(model, LossSettings(), Statistics(), frozen).to(device)
    optimizer: Any = build_optimizer(task, OptimizerSettings())
    loaded = next(iter(Loader(_stream(bench))))
    half = bench.precision == "bf16" or (bench.precision == "auto" and device == "cuda")
    for number in range(1 + bench.steps):
        if number == 1:
            _synchronize(device)
            started = time.perf_counter()
        batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in loaded.items()}
        with torch.autocast(device, torch.bfloat16, enabled=half):
            output = task("training_step", batch)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    _synchronize(device)
    return (time.perf_counter() - started) / (bench.steps * bench.batch)


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def composing(bench: FinetuneBench) -> float:
    """Seconds per scene composed on one core."""
    stream = _stream(bench)
    for number in range(2 * bench.scenes):
        if number == bench.scenes:
            started = time.perf_counter()
        stream.composer.compose(stream.sampler.sample(random.Random(number)))
    return (time.perf_counter() - started) / bench.scenes


def waiting_fraction(bench: FinetuneBench) -> float:
    """Fraction of the time that steps of ``gpu_step`` seconds wait for workers."""
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
    """Measure and print the table.

    Raises:
        UsageError: the folder of shards is missing, or a count is below 1.
    """
    if not bench.data_set or not Path(bench.data_set).is_dir():
        raise UsageError("Name a folder of shards to compose from: --data_set FOLDER.")
    if min(bench.batch, bench.steps, bench.scenes, bench.rounds, bench.workers) < 1:
        raise UsageError("--batch, --steps, --scenes, --rounds and --workers are at least 1.")
    gpu = _device(bench) == "cuda"
    ways: dict[str, Any] = {BASELINE: (training_steps, (bench,))}
    results = in_turns(ways, bench.rounds, pinned=False, gpu=gpu)
    results |= in_turns({"composing, one core": (composing, (bench,))}, bench.rounds)
    rows = [row_of(name, seconds, peak) for name, (seconds, peak) in results.items()]
    name = torch.cuda.get_device_name() if gpu else "all cores"
    encoder = "frozen, pretrained" if bench.encoder else f"{bench.encoder_size}, trained"
    caption = f"cavmae bench finetune: {bench.size}, encoder {encoder}, batch {bench.batch}, {name}"
    print(table(caption, "scene", BASELINE, rows))
    print(
        f"With {bench.workers} workers, steps of {bench.gpu_step} s for {bench.batch} scenes wait "
        f"{waiting_fraction(bench):.0%} of the time for data."
    )
    save(rows, bench.out)
