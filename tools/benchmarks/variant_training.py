"""Training of a variant of a task for some CPU time of one core. Runs in a worker process."""

import dataclasses
import re
import shlex
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from cavmae.common.allocator import keep_memory
from cavmae.common.cli import named_config, parse_settings, parser
from cavmae.common.errors import UsageError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import json_bytes
from cavmae.datasets.stream.loader import Loader
from cavmae.finetune.events import run as events_run
from cavmae.finetune.events import train as events_train
from cavmae.finetune.events.settings import EventSettings
from cavmae.finetune.speaker import run as speakers_run
from cavmae.finetune.speaker import train as speakers_train
from cavmae.finetune.speaker.evaluation import Way, evaluate
from cavmae.finetune.speaker.lips_task import LipsTask
from cavmae.finetune.speaker.metrics import summary
from cavmae.finetune.speaker.settings import SpeakerSettings
from cavmae.finetune.speaker.task import SpeakerTask
from cavmae.pretrain.engine.distributed import DistEnv
from cavmae.pretrain.engine.run import RunContext, TrainingParts
from cavmae.pretrain.engine.task import Task
from cavmae.tools.benchmarks.settings import VariantsBench
from cavmae.tools.benchmarks.table import reset_peak, resident_mb
from cavmae.tools.benchmarks.timed_training import TimeBudget, train_for

RUNS = "runs"  # folder of results, a file each
TRAINING = "training"  # folder of checkpoints of unfinished runs
RECIPES = {"speakers": "tiny", "events": "small-set"}  # by default
LONGEST = 60  # characters of a file's name that come from options

# task: (class of its settings, folder of its configurations, builder of its parts)
TASKS: dict[str, tuple[type[Any], Path, Callable[..., TrainingParts]]] = {
    "speakers": (SpeakerSettings, speakers_train.CONFIGS, speakers_run.build),
    "events": (EventSettings, events_train.CONFIGS, events_run.build),
}


@dataclasses.dataclass(frozen=True)
class VariantJob:
    """Run of the benchmark.

    Attributes:
        bench: options of the benchmark.
        variant: options of the model; empty: the default.
        seed: of the run.
    """

    bench: VariantsBench
    variant: str
    seed: int

    @property
    def label(self) -> str:
        """Name of its files: options, their checksum, and the seed."""
        words = "-".join(re.findall("[A-Za-z0-9._]+", self.variant))[:LONGEST] or "default"
        return f"{words}-{zlib.crc32(self.variant.encode()):08x}-{self.seed}"

    @property
    def path(self) -> Path:
        """File of the result."""
        return Path(self.bench.out) / RUNS / f"{self.label}.json"

    def settings(self) -> Any:
        """Settings of the run.

        Raises:
            UsageError: an option is unknown or out of range, or no data are held out.
        """
        bench = self.bench
        kind, configs, _ = TASKS[bench.task]
        words = named_config(["--config", bench.recipe or RECIPES[bench.task]], configs)
        words += [*shlex.split(bench.options), *shlex.split(self.variant)]
        arguments = parser(f"finetune {bench.task}", "Settings of a run.")
        settings, _ = parse_settings(arguments, kind, words)
        if settings.data.held_out is None:
            raise UsageError(
                "--options: bench variants measures on what is held out: name it with "
                "--data.held-out (and --data.held-out-shards for speakers)."
            )
        if settings.loop.precision == "fp16":
            raise UsageError("--options: runs are on the CPU; choose loop.precision fp32 or bf16.")
        # Each run is a single process.
        data = dataclasses.replace(settings.data, workers=0)
        loop = dataclasses.replace(settings.loop, seed=self.seed)
        return dataclasses.replace(settings, data=data, loop=loop)

    def check(self, default: Any) -> None:
        """Checks that the benchmark honours what the variant changes.

        Args:
            default: settings of the default.

        Raises:
            UsageError: it does not.
        """
        own = self.settings()
        plain = [f"loop.{field.name}" for field in dataclasses.fields(own.loop)]
        plain += ["optimizer.ema", "optimizer.average_from_epoch"]
        for name in plain:
            part, _, field = name.partition(".")
            same = getattr(getattr(own, part), field) == getattr(getattr(default, part), field)
            if not same and name not in ("loop.seed", "loop.precision"):
                raise UsageError(
                    f"--variants {self.variant!r}: {name} does not count in runs of equal time."
                )


def run_variant(job: VariantJob, report: Callable[[Any], None]) -> dict[str, Any]:
    """Trains and measures a variant, and writes its result.

    Args:
        job: the run.
        report: is called with the state after each evaluation.

    Raises:
        UsageError: settings that do not go together, or the minutes are too short for a step.
        CavmaeError: clips or a checkpoint cannot be used.
    """
    torch.set_num_threads(1)
    keep_memory()
    bench, settings = job.bench, job.settings()
    folder = Path(bench.out) / TRAINING / job.label
    folder.mkdir(parents=True, exist_ok=True)
    context = RunContext(DistEnv(), str(Path(bench.out) / "broken.jsonl"), False)
    parts = TASKS[bench.task][2](settings, context)
    task, held_out = parts.task, parts.held_out
    assert held_out is not None
    reset_peak()
    budget = TimeBudget(
        job.label, bench.minutes, settings.optimizer, settings.loop.precision == "bf16",
        bench.evaluations, folder,
    )  # fmt: skip
    state = train_for(
        budget, task, parts.loader, lambda: metrics_of(task, held_out), resident_mb(), report
    )
    record = {
        "variant": job.variant,
        "seed": job.seed,
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "flops": task.flops_per_sample(),
        "samples_per_core_sec": state.steps * settings.data.batch_size / state.seconds,
        **dataclasses.asdict(state),
    }
    job.path.parent.mkdir(exist_ok=True)
    with write_atomically(job.path) as file:
        file.write(json_bytes(record, indent=1))
    shutil.rmtree(folder)
    return record


@torch.no_grad()
def metrics_of(task: Task, held_out: Loader) -> Mapping[str, float]:
    """Metrics on what is held out; of a speaker model those of what learns.

    Voices have metrics under people's true masks, too, with their name before that of the metric.
    """
    if not isinstance(task, SpeakerTask):
        return task.aggregate([task("validation_step", batch) for batch in held_out])
    ways: dict[Way, str] = {"model": "", "true_masks": "true_masks_"}
    metrics: dict[str, float] = {}
    if isinstance(task, LipsTask):
        del ways["model"]
        metrics |= task.aggregate([task("validation_step", batch) for batch in held_out])
    elif task.freeze_voices:
        del ways["true_masks"]
    scenes = evaluate(task, held_out, list(ways)).scenes
    for way, prefix in ways.items():
        metrics |= {f"{prefix}{name}": value for name, value in summary(scenes[way]).items()}
    return metrics
