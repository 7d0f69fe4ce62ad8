"""A training run: its processes, its folder, its task and the trainer."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cavmae.datasets.stream.loader import Loader
from cavmae.pretrain.engine import checkpoints
from cavmae.pretrain.engine.distributed import DistEnv
from cavmae.pretrain.engine.run_length import RunLength
from cavmae.pretrain.engine.run_setup import claim_run_folder, distributed_run, write_config
from cavmae.pretrain.engine.settings import RunSettings
from cavmae.pretrain.engine.task import Task
from cavmae.pretrain.engine.trainer import Trainer

log = logging.getLogger("cavmae")


Settings = TypeVar("Settings", bound=RunSettings)


class RunContext(NamedTuple):
    """Facts of a run that its data and model are built with.

    Attributes:
        processes: of the run.
        quarantine: JSON-lines file in which this process names broken samples.
        on_gpu: whether the run is on a GPU.
    """

    processes: DistEnv
    quarantine: str
    on_gpu: bool


class TrainingParts(NamedTuple):
    """Parts of a run that depend on the task.

    Attributes:
        task: model, losses and metrics.
        loader: endless batches of this process.
        held_out: finite validation batches of this process; None: no validation.
    """

    task: Task
    loader: Loader
    held_out: Loader | None


Build = Callable[[Settings, RunContext], TrainingParts]


def run_training(
    settings: Settings, build: Build[Settings], run: Path, resume: bool, config_text: str
) -> bool:
    """Trains, as one process of however many were launched.

    Args:
        settings: of the run.
        build: makes task and loaders, in every process.
        run: folder of the run.
        resume: go on from the newest checkpoint.
        config_text: content of ``config.yaml``.

    Returns:
        True at the end of training; False if a signal stopped it.

    Raises:
        CavmaeError: see :class:`~cavmae.pretrain.engine.trainer.Trainer`.
    """
    loop = settings.loop
    with ExitStack() as stack:
        accelerator = stack.enter_context(distributed_run(loop, run))
        processes = DistEnv()
        with processes.main_only():
            if processes.is_main:
                claim_run_folder(stack, run, resume)
        on_gpu = accelerator.device.type == "cuda"
        quarantine = str(run / f"broken-{processes.rank}.jsonl")
        with processes.fail_together():
            parts = build(settings, RunContext(processes, quarantine, on_gpu))
        epoch_samples: Any = parts.loader.stream.samples
        length = RunLength.of(settings, epoch_samples, processes.count)
        trainer = Trainer(*parts, length, loop, settings.optimizer, run, accelerator, processes)
        # A disk may show different machines different files: the view of rank 0 counts.
        newest = processes.broadcast(checkpoints.complete_checkpoints(run)[-1:] if resume else [])
        if newest:
            trainer.resume(newest[0])
        # Not before: a configuration that the checkpoint refuses is none of this run.
        with processes.main_only():
            if processes.is_main:
                write_config(run, config_text)
        if trainer.step >= trainer.steps:
            name = "loop.steps" if loop.steps else "loop.epochs"
            log.info("%s is done: %d steps. Raise %s to go on.", run, trainer.step, name)
            return True
        return trainer.train()
