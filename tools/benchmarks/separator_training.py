"""Training of a separator for some CPU time of one core, and its cost. Runs in a worker process."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cavmae.common.allocator import keep_memory
from cavmae.common.files import write_atomically
from cavmae.common.json_files import json_bytes
from cavmae.common.registry import to_json_value
from cavmae.datasets.mixtures.seed_stream import SeedStream
from cavmae.datasets.mixtures.sound_mixer import FRAME, SoundMixer
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.datasets.stream.loader import Loader
from cavmae.finetune.separation.evaluation import evaluate_lists
from cavmae.finetune.separation.model import SoundSeparator
from cavmae.finetune.separation.run import (
    HELD_OUT_BATCH,
    build_sound_separator,
    held_out_mixers,
    load_banks,
)
from cavmae.finetune.separation.settings import SoundLossSettings, SoundModelSettings
from cavmae.finetune.separation.task import SeparationTask
from cavmae.finetune.separators.settings import SeparatorOptions
from cavmae.finetune.separators.stft import wave
from cavmae.pretrain.engine.task import forward_flops
from cavmae.tools.benchmarks.settings import SeparatorsBench
from cavmae.tools.benchmarks.table import reset_peak, resident_mb
from cavmae.tools.benchmarks.timed_training import (
    CHECKPOINT,
    TimeBudget,
    recipe_optimizer,
    train_for,
)

CURVE_MIXTURES = 32  # of each list, for evaluations during training
WINDOW = round(2.56 * SAMPLE_RATE)  # samples that are separated at once
WINDOW_VOICES = 2
ROUNDS = 5  # windows whose median time counts
RESULT = "result.json"
CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class EntryJob:
    """Separator of the benchmark.

    Attributes:
        bench: options of the benchmark.
        label: of the separator.
        options: of the separator.
    """

    bench: SeparatorsBench
    label: str
    options: SeparatorOptions

    @property
    def folder(self) -> Path:
        """Folder of its checkpoint, its model and its result."""
        return Path(self.bench.out) / "entries" / self.label

    def model(self) -> SoundSeparator:
        """Model with initial weights of the benchmark's seed, and pretrained parts.

        Raises:
            CavmaeError: options that make no model, or weights that cannot be used.
        """
        torch.manual_seed(self.bench.seed)
        return build_sound_separator(SoundModelSettings(self.options, self.bench.width))


def measure_entry(job: EntryJob, report: Callable[[Any], None]) -> dict[str, Any]:
    """Trains and measures a separator; its result is written to its folder, too.

    Args:
        job: the separator.
        report: is called with the state after each evaluation.

    Raises:
        UsageError: the minutes are too short for a step.
        CavmaeError: recordings or a checkpoint cannot be used.
    """
    torch.set_num_threads(1)
    keep_memory()
    bench = job.bench
    job.folder.mkdir(parents=True, exist_ok=True)
    speech, noise, banks = load_banks(bench.data)
    lists = held_out_mixers(bench.data.held_out, banks, bench.mix)
    mixer = SoundMixer(speech, noise, bench.mix)
    data_mb = resident_mb()
    reset_peak()
    task = SeparationTask(job.model(), mixer, lists, SoundLossSettings())
    model = task.model
    budget = TimeBudget(
        job.label, bench.minutes, recipe_optimizer(bench.lr), bench.precision == "bf16",
        bench.evaluations, job.folder,
    )  # fmt: skip
    loader = Loader(SeedStream(bench.data.batch_size, bench.seed))
    count = max(HELD_OUT_BATCH, min(CURVE_MIXTURES, bench.data.held_out_mixtures))
    state = train_for(
        budget, task, loader, lambda: evaluate_lists(model, lists, count, CPU), data_mb, report
    )
    record = {
        "label": job.label,
        "options": to_json_value(job.options),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs_per_sec": macs_per_second(model),
        "real_time_factor": real_time_factor(model),
        "mixtures_per_core_sec": state.steps * bench.data.batch_size / state.seconds,
        **dataclasses.asdict(state),
        "metrics": evaluate_lists(model, lists, bench.data.held_out_mixtures, CPU),
    }
    model.save_pretrained(job.folder)
    with write_atomically(job.folder / RESULT) as file:
        file.write(json_bytes(record, indent=1))
    (job.folder / CHECKPOINT).unlink(missing_ok=True)
    return record


def macs_per_second(model: SoundSeparator) -> float:
    """Multiply-adds for a second of sound with two voices, without Fourier transforms."""
    mixture, cues = _window(model)
    return forward_flops(lambda: model(mixture, cues)) / 2 * SAMPLE_RATE / WINDOW


@torch.no_grad()
def real_time_factor(model: SoundSeparator) -> float:
    """CPU seconds for a second of sound: windows of 2.56 s with two voices, one at a time."""
    mixture, cues = _window(model)
    seconds = []
    for _ in range(1 + ROUNDS):
        started = time.process_time()
        wave(model(mixture, cues).spectra, WINDOW)
        seconds.append(time.process_time() - started)
    return statistics.median(seconds[1:]) * SAMPLE_RATE / WINDOW


def _window(model: SoundSeparator) -> tuple[Tensor, Tensor]:
    """Noise with an RMS of 1 and cues of two voices."""
    rng = torch.Generator().manual_seed(0)
    shape = 1, WINDOW_VOICES, WINDOW // FRAME, model.config.cue_channels
    return torch.randn(1, WINDOW, generator=rng), torch.rand(shape, generator=rng)
