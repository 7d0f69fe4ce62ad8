"""Checkpoints of a run in progress: saved by all its processes together, and resumed from."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from cavmae.datasets.stream.loader import Loader
from cavmae.pretrain.engine import checkpoints, trainer_state
from cavmae.pretrain.engine.averaging import WeightAverage
from cavmae.pretrain.engine.distributed import DistEnv
from cavmae.pretrain.engine.hub import check_same_model
from cavmae.pretrain.engine.model_files import verify
from cavmae.pretrain.engine.task import Task

log = logging.getLogger("cavmae")


class Checkpointer:
    """Saves and restores whatever a resumed run needs to make the same steps.

    Args:
        task: with the model and its preprocessing.
        module: the task, or DDP or FSDP around it.
        optimizer: of the task.
        average: averaged weights; None: there are none.
        loader: batches of this process.
        run: folder of the run.
        keep: number of checkpoints that stay.
        accelerator: with the scaler of the run.
        processes: of the run.

    Attributes:
        saved_step: step of the newest checkpoint; -1: there is none.
    """

    def __init__(
        self,
        task: Task,
        module: nn.Module,
        optimizer: Optimizer,
        average: WeightAverage | None,
        loader: Loader,
        run: Path,
        keep: int,
        accelerator: Accelerator,
        processes: DistEnv,
    ):
        self.saved_step = -1
        self._saved_at = time.monotonic()
        self._task, self._module, self._optimizer = task, module, optimizer
        self._average, self._loader = average, loader
        self._run, self._keep = run, keep
        self._accelerator, self._processes = accelerator, processes

    def minutes(self) -> float:
        """Minutes since the newest checkpoint, or since the start."""
        return (time.monotonic() - self._saved_at) / 60

    def save(self, counters: Mapping[str, Any], position: Mapping[str, Any]) -> None:
        """Save a checkpoint, unless this step has one; a collective call.

        Args:
            counters: ``step``, ``samples`` and ``nonfinite`` of the trainer, as JSON values.
            position: state of the loader of this process.

        Raises:
            CavmaeError: it cannot be written; the one before it is intact.
        """
        step = counters["step"]
        if self.saved_step == step:
            return
        weights, tensors, groups = trainer_state.get_trainer_state(self._module, self._optimizer)
        own = {"loader": position, "random": trainer_state.rng_state()}
        ranks = self._processes.gather(own)
        with self._processes.main_only():
            if self._processes.is_main:
                scaler, average = self._accelerator.scaler, self._average
                trainer = {
                    **counters,
                    "averages": average.count if average is not None else 0,
                    "groups": groups,
                    "scaler": scaler.state_dict() if scaler is not None else None,
                    "ranks": ranks,
                }
                config = self._task.model.config_values()
                preprocessing = self._task.preprocessing()
                averaged = average.state_dict() if average is not None else None
                averaging = average.description() if average is not None else {}
                state = checkpoints.Checkpoint(
                    weights, config, preprocessing, averaged, tensors, trainer, averaging
                )
                checkpoints.save(self._run, step, state, self._keep)
                log.info("Saved %s.", checkpoints.checkpoint_folder(self._run, step))
        self.saved_step, self._saved_at = step, time.monotonic()

    def resume(self, folder: Path) -> Mapping[str, Any]:
        """Restore a checkpoint; a collective call.

        Returns:
            ``counters`` of :meth:`save`.

        Raises:
            CavmaeError: the checkpoint is damaged or of another model; nothing has changed.
        """
        with self._processes.main_only():
            verify(folder) if self._processes.is_main else None
        with self._processes.fail_together():
            checkpoint = checkpoints.load(folder)
            check_same_model(self._task.model, folder)
        trainer = checkpoint.trainer
        trainer_state.set_trainer_state(
            self._module,
            self._optimizer,
            checkpoint.weights,
            checkpoint.tensors,
            trainer["groups"],
        )
        if self._average is not None:
            averaged = checkpoint.averaged
            source = averaged if averaged is not None else checkpoint.weights
            self._average.load_state_dict(source, trainer["averages"], checkpoint.averaging)
        if self._accelerator.scaler is not None and trainer["scaler"] is not None:
            self._accelerator.scaler.load_state_dict(trainer["scaler"])
        ranks = trainer["ranks"]
        self._loader.load_states([rank["loader"] for rank in ranks])
        if len(ranks) == self._processes.count:
            trainer_state.set_rng_state(ranks[self._processes.rank]["random"])
        self.saved_step = trainer["step"]
        log.info("Going on from %s.", folder)
        return {name: trainer[name] for name in ("step", "samples", "nonfinite")}
