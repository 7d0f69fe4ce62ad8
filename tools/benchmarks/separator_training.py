"""Training of a separator for some CPU time of one core, and its cost. Runs in a worker process.

The budget is CPU time of the process, so that other processes of the machine change the wall clock
only. Evaluations do not count. The learning rate is a function of the fraction of the budget.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import json_bytes
from cavmae.common.registry import to_json_value
from cavmae.datasets.mixtures.seed_stream import batch_seed
from cavmae.datasets.mixtures.sound_mixer import FRAME, SoundMixer
from cavmae.datasets.stream.features import SAMPLE_RATE
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
from cavmae.pretrain.engine.optim import build_optimizer, learning_rate
from cavmae.pretrain.engine.run_setup import keep_memory
from cavmae.pretrain.engine.settings import OptimizerSettings
from cavmae.pretrain.engine.task import forward_flops
from cavmae.pretrain.engine.trainer_state import get_trainer_state, set_trainer_state
from cavmae.tools.benchmarks.settings import SeparatorsBench
from cavmae.tools.benchmarks.table import peak_mb, reset_peak, resident_mb

SCHEDULE_STEPS = 1000  # of the learning rate, over the budget
CURVE_MIXTURES = 32  # of each list, for evaluations during training
WINDOW = round(2.56 * SAMPLE_RATE)  # samples that are separated at once
WINDOW_VOICES = 2
ROUNDS = 5  # windows whose median time counts
CHECKPOINT = "checkpoint.safetensors"
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


@dataclasses.dataclass
class TrainingState:
    """Progress of the training of a separator.

    Attributes:
        seconds: CPU time used.
        steps: of the optimizer, those left out included.
        bad_steps: left out, since their gradient was not finite.
        training_mb: peak memory of training steps, without that of the recordings, in 10^6 bytes.
        curve: CPU minutes and metrics of each evaluation.
    """

    seconds: float = 0.0
    steps: int = 0
    bad_steps: int = 0
    training_mb: float = 0.0
    curve: list[dict[str, float]] = dataclasses.field(default_factory=list)


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
    task = SeparationTask(job.model(), mixer, lists, SoundLossSettings()).train()
    state = _train(job, task, data_mb, report)
    task.eval()
    model, seconds = task.model, state.seconds
    record = {
        "label": job.label,
        "options": to_json_value(job.options),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs_per_sec": macs_per_second(model),
        "real_time_factor": real_time_factor(model),
        "mixtures_per_core_sec": state.steps * bench.data.batch_size / seconds,
        **dataclasses.asdict(state),
        "metrics": evaluate_lists(model, lists, bench.data.held_out_mixtures, CPU),
    }
    model.save_pretrained(job.folder)
    with write_atomically(job.folder / RESULT) as file:
        file.write(json_bytes(record, indent=1))
    (job.folder / CHECKPOINT).unlink(missing_ok=True)
    return record


def _train(
    job: EntryJob, task: SeparationTask, data_mb: float, report: Callable[[Any], None]
) -> TrainingState:
    """Trains for the CPU time that is left, with a checkpoint after each evaluation."""
    bench, budget = job.bench, job.bench.minutes * 60
    # As in the recipe `tiny`.
    settings = OptimizerSettings(lr=bench.lr, beta2=0.99, weight_decay=0.01)
    optimizer = build_optimizer(task, settings)
    path = job.folder / CHECKPOINT
    state = load_checkpoint(path, task, optimizer) if path.exists() else TrainingState()
    size = bench.data.batch_size
    while state.seconds < budget:
        started = time.process_time()
        fraction = state.seconds / budget
        rate = learning_rate(settings, int(SCHEDULE_STEPS * fraction), SCHEDULE_STEPS)
        seed = batch_seed(bench.seed, state.steps)
        batch = {"key": [str(row) for row in range(size)], "seed": seed, "list": ""}
        with torch.autocast("cpu", torch.bfloat16, enabled=bench.precision == "bf16"):
            loss = task("training_step", batch, fraction).loss
        loss.backward()
        if nn.utils.clip_grad_norm_(task.parameters(), settings.max_grad_norm).isfinite():
            for group in optimizer.param_groups:
                learns = fraction >= group["lr_start"]
                group["lr"] = rate * group["lr_scale"] if learns else 0.0
            optimizer.step()
        else:
            state.bad_steps += 1
        optimizer.zero_grad(set_to_none=True)
        used = time.process_time() - started
        if state.steps == 0 and used >= budget:
            raise UsageError(
                f"--minutes {bench.minutes:g} is too short for {job.label}: its first training "
                f"step takes {used:.2g} s of a core."
            )
        state.seconds, state.steps = state.seconds + used, state.steps + 1
        if state.seconds >= budget * (len(state.curve) + 1) / bench.evaluations:
            if not state.curve:  # evaluations would count in later peaks
                state.training_mb = peak_mb() - data_mb
            task.eval()
            count = max(HELD_OUT_BATCH, min(CURVE_MIXTURES, bench.data.held_out_mixtures))
            metrics = evaluate_lists(task.model, task.held_out, count, CPU)
            state.curve.append({"minutes": state.seconds / 60, **metrics})
            task.train()
            save_checkpoint(path, task, optimizer, state)
            report(state)
    return state


def save_checkpoint(
    path: Path, task: SeparationTask, optimizer: torch.optim.Optimizer, state: TrainingState
) -> None:
    """Writes weights, optimizer and state as one file."""
    weights, tensors, groups = get_trainer_state(task, optimizer)
    named = {f"model.{name}": value for name, value in weights.items()} | tensors
    metadata = {"state": json.dumps(dataclasses.asdict(state)), "groups": json.dumps(groups)}
    with write_atomically(path) as file:
        file.write(save({n: v.contiguous() for n, v in named.items()}, metadata))


def load_checkpoint(
    path: Path, task: SeparationTask, optimizer: torch.optim.Optimizer
) -> TrainingState:
    """Restores :func:`save_checkpoint`.

    Raises:
        CavmaeError: the file is damaged, or of another model.
    """
    weights: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(str(path), "pt") as file:
            metadata: Mapping[str, str] = file.metadata()
            state = TrainingState(**json.loads(metadata["state"]))
            groups = json.loads(metadata["groups"])
            for name in file.keys():  # noqa: SIM118
                kind = weights if name.startswith("model.") else tensors
                kind[name.removeprefix("model.")] = file.get_tensor(name)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CavmaeError(f"{path} is damaged ({error}): remove it to train anew.") from error
    set_trainer_state(task, optimizer, weights, tensors, groups)
    return state


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
