"""Trial of a network: training for some CPU time, and its score. Runs in a worker process."""

import dataclasses
import itertools
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cavmae.common.allocator import keep_memory
from cavmae.common.files import write_atomically
from cavmae.common.json_files import json_bytes
from cavmae.common.registry import to_json_value
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.mixtures.clip_pool import ClipPool
from cavmae.datasets.mixtures.sampler import SceneSampler
from cavmae.datasets.mixtures.scene_stream import ComposedStream, FixedSceneStream
from cavmae.datasets.stream.base import Stream
from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.stream.shard_reader import Access
from cavmae.finetune.speaker.articulation import (
    ArticulationConfig,
    ArticulationModel,
    ArticulationTask,
)
from cavmae.tools.benchmarks.table import reset_peak, resident_mb
from cavmae.tools.benchmarks.timed_training import TimeBudget, recipe_optimizer, train_for
from cavmae.tools.expanding.axes import Network
from cavmae.tools.expanding.repeated_batches import RepeatedBatches
from cavmae.tools.expanding.settings import ExpandSettings

TRIALS = "trials"  # folder of results, a file each
TRAINING = "training"  # folder of checkpoints of unfinished trials
NEEDED = ("motion", "masks", "articulation", "articulated", "present", "masked")  # of a batch


@dataclasses.dataclass(frozen=True)
class TrialJob:
    """Training of a network.

    Attributes:
        settings: of the search.
        network: to train.
    """

    settings: ExpandSettings
    network: Network

    @property
    def path(self) -> Path:
        """File of the result."""
        return Path(self.settings.out) / TRIALS / f"{self.network.label}.json"

    @property
    def folder(self) -> Path:
        """Folder of the checkpoint."""
        return Path(self.settings.out) / TRAINING / self.network.label


def run_trial(job: TrialJob, report: Callable[[Any], None]) -> dict[str, Any]:
    """Trains a network and writes its result.

    Args:
        job: the training.
        report: is called with the state after each evaluation.

    Raises:
        UsageError: the minutes are too short for a step.
        CavmaeError: clips or a checkpoint cannot be used.
    """
    torch.set_num_threads(1)
    keep_memory()
    settings, network = job.settings, job.network
    job.folder.mkdir(parents=True, exist_ok=True)
    config = ArticulationConfig(network.motion, settings.width, network.frames, network.resolution)
    torch.manual_seed(settings.seed)
    task = ArticulationTask(ArticulationModel(config))
    batches, held_out = _batches(job, config)
    loader = Loader(RepeatedBatches(batches, settings.seed))
    reset_peak()
    budget = TimeBudget(
        network.label, settings.minutes, recipe_optimizer(settings.lr),
        settings.precision == "bf16", settings.evaluations, job.folder,
    )  # fmt: skip

    def evaluate() -> dict[str, float]:
        return dict(task.aggregate([task("validation_step", batch) for batch in held_out]))

    state = train_for(budget, task, loader, evaluate, resident_mb(), report)
    record = {
        "network": to_json_value(network),
        "parameters": sum(p.numel() for p in task.model.motion_reader.pathway.parameters()),
        "score": state.curve[-1]["correlation"],
        **dataclasses.asdict(state),
    }
    job.path.parent.mkdir(exist_ok=True)
    with write_atomically(job.path) as file:
        file.write(json_bytes(record, indent=1))
    shutil.rmtree(job.folder)
    return record


def _batches(job: TrialJob, config: ArticulationConfig) -> tuple[list[Batch], list[Batch]]:
    """Scenes of a clip's length to train on, and held-out ones, as batches of what is needed."""
    settings, data = job.settings, job.settings.data
    size = settings.compose.height, settings.compose.width
    quarantine = str(Path(settings.out) / "broken.jsonl")
    # The hashes were verified before the first trial.
    access = Access("size", max_broken=data.max_broken, quarantine=quarantine)
    options: dict[str, Any] = {"exclude": data.exclude, "seed": settings.seed, "access": access}
    compose = dataclasses.replace(settings.compose, seconds=job.network.seconds)
    stream: Stream = ComposedStream(
        Manifest.load(data.train), compose, size, config.keys, data.batch_size, **options
    )
    count = math.ceil(data.scenes / data.batch_size)
    batches = [_needed(batch) for batch in itertools.islice(Loader(stream), count)]
    compose = dataclasses.replace(settings.compose, speed=0.0)
    manifest = Manifest.load(data.held_out)
    sampler = SceneSampler(ClipPool(manifest, access, data.exclude), compose)
    specs = [
        sampler.sample(random.Random(f"held out {settings.seed} {number}"))
        for number in range(data.held_out_scenes)
    ]
    keys = config.keys * round(compose.seconds / job.network.seconds)
    stream = FixedSceneStream(manifest, compose, specs, size, keys, data.batch_size, **options)
    return batches, [_needed(batch) for batch in Loader(stream)]


def _needed(batch: Batch) -> Batch:
    return {name: batch[name] for name in NEEDED}
