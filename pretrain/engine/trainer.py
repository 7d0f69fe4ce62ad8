"""Training loop of every task: the task gives losses, the trainer steps.

Guarantees: a resumed run makes exactly the steps that the interrupted one would have made; all
processes agree on signals at step boundaries; a non-finite gradient never reaches the weights; no
process waits for one that failed.
"""

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from cavmae.common.device import to_device
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.loader import Loader
from cavmae.pretrain.engine import checkpoints
from cavmae.pretrain.engine.averaging import WeightAverage
from cavmae.pretrain.engine.checkpointer import Checkpointer
from cavmae.pretrain.engine.distributed import DistEnv
from cavmae.pretrain.engine.metric_logger import MetricLogger
from cavmae.pretrain.engine.nonfinite import NonFiniteGuard, skip_step_if
from cavmae.pretrain.engine.optim import build_optimizer, learning_rate
from cavmae.pretrain.engine.run_length import RunLength
from cavmae.pretrain.engine.run_setup import check_devices, check_gradients_synchronized
from cavmae.pretrain.engine.settings import LoopSettings, OptimizerSettings
from cavmae.pretrain.engine.stop_signals import StopSignals
from cavmae.pretrain.engine.task import Embeddings, StepOutput, Task
from cavmae.pretrain.engine.throughput import Throughput
from cavmae.pretrain.engine.validation import validation_records

log = logging.getLogger("cavmae")
# Steps in a row that a scaler of fp16 may need to find its scale, beside those that are bad.
SCALE_SEARCH = 16


class Trainer:
    """Training of a task.

    Args:
        task: model, losses and metrics.
        loader: endless batches of this process.
        held_out: finite validation batches of this process; None: no validation.
        length: of the run.
        settings, optimizer: of the run.
        run: folder of the run.
        accelerator: with the precision and device of the run.
        processes: of the run.

    Raises:
        UsageError: an unsupported kind of FSDP, or processes that would train apart.
    """

    def __init__(
        self,
        task: Task,
        loader: Loader,
        held_out: Loader | None,
        length: RunLength,
        settings: LoopSettings,
        optimizer: OptimizerSettings,
        run: Path,
        accelerator: Accelerator,
        processes: DistEnv,
    ):
        self.task = task
        self.settings = settings
        self.step = self.samples = 0
        self.steps = length.steps  # the last one's number
        self._loader, self._held_out = loader, held_out
        self._length, self._optimizer_settings, self._run = length, optimizer, run
        self._accelerator = accelerator
        self._processes = processes
        self._sharded = accelerator.distributed_type == DistributedType.FSDP
        if self._sharded and accelerator.state.fsdp_plugin.fsdp_version != 2:
            raise UsageError("Launch FSDP with --fsdp_version 2: the first would clip wrongly.")
        averaging = bool(optimizer.ema or optimizer.average_from_epoch)
        if self._sharded and averaging:
            raise UsageError(
                "optimizer.ema and average_from_epoch average whole models: they do not go with "
                "FSDP."
            )
        if self._sharded and optimizer.name == "muon":
            raise UsageError(
                "optimizer.name muon needs whole matrices, which FSDP shards: set it to adamw."
            )
        check_devices(accelerator, processes)
        # Model and optimizer only: a prepared loader would drop data, a prepared schedule would
        # step once a process.
        self._module, self._optimizer = accelerator.prepare(task, build_optimizer(task, optimizer))
        check_gradients_synchronized(self._module, processes)
        self._parameters = [p for p in self._module.parameters() if p.requires_grad]
        self._average = (
            WeightAverage(task.model, optimizer, length.epoch_steps) if averaging else None
        )
        if optimizer.average_from_epoch > length.epochs:
            log.warning(
                "The run ends after %.3g epochs, before optimizer.average_from_epoch %d: no "
                "weights are averaged.", length.epochs, optimizer.average_from_epoch,
            )  # fmt: skip
        searching = SCALE_SEARCH if accelerator.scaler is not None else 0
        self.nonfinite = NonFiniteGuard(settings.max_bad_steps + searching, self._processes)
        self._checkpointer = Checkpointer(
            task, self._module, self._optimizer.optimizer, self._average, loader, run,
            settings.keep, accelerator, self._processes,
        )  # fmt: skip
        self._signals = StopSignals()
        self._pending_error: CavmaeError | None = (
            None  # raised at the next step boundary, in all processes
        )
        self._metrics: MetricLogger | None = None
        torch.manual_seed(settings.seed + 1 + 1000 * self._processes.rank)

    # --- steps ---

    def train(self) -> bool:
        """Makes all remaining steps.

        Returns:
            True at the end; False if a signal stopped the run, after a checkpoint.

        Raises:
            CavmaeError: data, disk or numbers stop the run; a checkpoint is saved if possible.
        """
        with self._processes.main_only():
            if self._processes.is_main:
                checkpoints.remove_unfinished(self._run)
                self._metrics = MetricLogger(
                    self._run, self.step, self._accelerator, self.settings.tracker
                )
        throughput = Throughput(self.task, self._accelerator.device, self.settings, self._processes)
        self._module.train()
        # Closed after an error, too: the interpreter's exit would wait forever for loader workers,
        # which take the first SIGTERM for one to the whole group.
        with self._signals.catch(), contextlib.closing(iter(self._loader)) as batches:
            try:
                while self.step < self.steps:
                    position = self._loader.state_dict()
                    with throughput.waiting():
                        micro, problem = self._next_batches(batches)
                    if self._maybe_checkpoint_or_stop(position, problem):
                        return False
                    outputs, norm, rate = self._train_step(micro)
                    throughput.count(micro)
                    if self.step % self.settings.log_every == 0 or self.step == self.steps:
                        self._log(throughput, outputs, norm, rate)
                    every = self.settings.evaluate_every
                    if every and self.step % every == 0 and self.step < self.steps:
                        with throughput.paused():
                            self.validate()
                self._check_finite()
                self.validate()
                self._save(self._loader.state_dict())
            finally:
                if self._metrics is not None:
                    self._metrics.close()
        return True

    def _next_batches(self, batches: Iterator[Batch]) -> tuple[list[Batch], CavmaeError | None]:
        """The batches of a step, on the device, or the error that prevents them."""
        micro: list[Batch] = []
        try:
            for _ in range(self.settings.grad_accum_steps):
                micro.append(to_device(next(batches), self._accelerator.device))
        except StopIteration:
            return [], CavmaeError(
                f"Process {self._processes.rank} has run out of data at step {self.step}."
            )
        except CavmaeError as error:
            return [], error
        except Exception as error:  # noqa: BLE001 - raised in all processes, after a checkpoint
            return [], CavmaeError(f"Loading a batch failed: {type(error).__name__}: {error}")
        return micro, None

    def _maybe_checkpoint_or_stop(
        self, position: dict[str, Any], problem: CavmaeError | None
    ) -> bool:
        """Step boundary: writes a checkpoint when it is due, stops on signals and errors.

        Args:
            position: state of the stream before the batches of the next step.

        Returns:
            whether to stop.
        """
        settings = self.settings
        problem = problem or self._pending_error
        late = 0 < settings.save_minutes < self._checkpointer.minutes()
        stop, failed, late = self._processes.any_process(
            self._signals.received is not None,
            problem is not None,
            late and self._processes.is_main,
        )
        regular = settings.save_every and self.step and self.step % settings.save_every == 0
        if stop or failed or late or regular:
            self._check_finite(position)
            if self.step:
                self._save(position)
        if failed:
            messages = [str(p) for p in self._processes.gather(problem) if p is not None]
            raise problem or CavmaeError(f"Another process could not go on: {messages[0]}")
        if stop:
            names = [name for name in self._processes.gather(self._signals.received) if name]
            log.info(
                "Stopped at step %d of %d by %s; the same command with --resume auto goes on.",
                self.step, self.steps, names[0],
            )  # fmt: skip
        return stop

    def _train_step(self, micro: Sequence[Batch]) -> tuple[list[StepOutput], Tensor, float]:
        """One optimizer step over the batches of all micro-batches."""
        length = self._length
        progress = length.progress(self.step, self.samples)
        # Exactly the step in a run of so many steps, where a factor may be halved at one.
        place = self.step if length.total_samples is None else progress * length.steps
        rate = learning_rate(self._optimizer_settings, place, length.steps)
        for group in self._optimizer.param_groups:
            started = progress >= group.get("lr_start", 0.0)
            group["lr"] = rate * group.get("lr_scale", 1.0) if started else 0.0
        embeddings: list[Embeddings] = []
        states = []
        if self.task.needs_global_batch and len(micro) > 1:
            for batch in micro:
                states.append(self._rng_states())
                with torch.no_grad():
                    embeddings.append(self._module("embed", batch))
        outputs = []
        for index, batch in enumerate(micro):
            if states:  # the same masks as in the pass without gradient
                self._set_rng_states(states[index])
            last = index == len(micro) - 1
            with contextlib.nullcontext() if last else self._accelerator.no_sync(self._module):
                output = self._module("training_step", batch, progress, embeddings, index)
                # Without embeddings the task does not know the number of micro-batches.
                loss = output.loss if embeddings else output.loss / len(micro)
                # A non-finite loss makes every gradient NaN, in every process.
                self._accelerator.backward(loss * (1 + 0 * loss.detach()))
            outputs.append(output)
        norm = self._accelerator.clip_grad_norm_(
            self._parameters, self._optimizer_settings.max_grad_norm or math.inf
        )
        assert norm is not None
        if hasattr(norm, "full_tensor"):  # of FSDP
            norm = norm.full_tensor()
        self._check_finite()
        nonfinite = ~norm.isfinite()
        if self._accelerator.scaler is None and not self._sharded:
            skip_step_if(self._optimizer.optimizer, nonfinite)
        if not (self._sharded and nonfinite):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.nonfinite.record(nonfinite, [key for batch in micro for key in batch["key"]])
        self.step += 1
        epoch = length.epoch(self.samples)
        self.samples += self._processes.count * sum(len(batch["key"]) for batch in micro)
        if self._average is not None:
            after = length.epoch(self.samples)
            self._average.update(self.task.model, after if after > epoch else 0)
        return outputs, norm, rate

    def _check_finite(self, position: dict[str, Any] | None = None) -> None:
        """Counts the last step if it was non-finite; too many end the run, after a checkpoint."""
        try:
            self.nonfinite.check()
        except CavmaeError:  # in all processes
            self._save(self._loader.state_dict() if position is None else position)
            raise

    def _rng_states(self) -> tuple[Tensor, Tensor | None]:
        gpu = self._accelerator.device.type == "cuda"
        return torch.get_rng_state(), torch.cuda.get_rng_state() if gpu else None

    def _set_rng_states(self, state: tuple[Tensor, Tensor | None]) -> None:
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1])

    # --- logging, validation ---

    def _log(
        self, throughput: Throughput, outputs: Sequence[StepOutput], norm: Tensor, rate: float
    ) -> None:
        self._check_finite()
        names = sorted(outputs[0].logs)
        logs = torch.stack(
            [torch.stack([o.logs[name].detach().float() for o in outputs]).mean() for name in names]
        )
        values = dict(zip(names, self._processes.mean(logs).tolist(), strict=True))
        values |= {"lr": rate, "grad_norm": float(norm), "samples": self.samples}
        values["epoch"] = self._length.epoch(self.samples)
        values |= {"skipped_steps": self.nonfinite.skipped, **throughput.read(self._loader)}
        if self._metrics is not None:
            try:
                self._metrics.log(self.step, "train", values)
            except CavmaeError as error:
                self._pending_error = error
        left = (self.steps - self.step) * values["step_time"] / 60
        if self._processes.is_main:
            log.info(
                "step %d of %d: loss %.4f, %.1f samples/s, %.0f %% waiting for data, %.1f min left",
                self.step, self.steps, values["loss"], values["samples_per_sec"],
                100 * values["data_wait"], left,
            )  # fmt: skip

    def validate(self) -> dict[str, float]:
        """Metrics of the held-out set; the state of training does not change.

        Raises:
            CavmaeError: the set cannot be read, or the metrics cannot be written.
        """
        if self._held_out is None:
            return {}
        module = self._module if self._sharded else self.task
        device = self._accelerator.device
        module.eval()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.settings.seed)
            records, problem = validation_records(
                module, self._held_out, device, self._processes, self._sharded
            )
        module.train()
        if self._processes.any_process(problem is not None)[0]:
            self._save(self._loader.state_dict())
            raise problem or CavmaeError("Another process could not evaluate the held-out set.")
        metrics: dict[str, float] = {}
        gathered = self._processes.gather(records)
        with self._processes.main_only():
            if self._processes.is_main:
                metrics = dict(self.task.aggregate([r for own in gathered for r in own]))
                if self._metrics is not None:
                    conditions = self.task.conditions()
                    self._metrics.log(self.step, "held_out", metrics, conditions)
                line = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
                described = "; ".join(f"{k} {v}" for k, v in self.task.conditions().items())
                log.info(
                    "held out, step %d: %s%s", self.step, line,
                    f" ({described})" if described else "",
                )  # fmt: skip
        return metrics

    # --- checkpoints ---

    def _save(self, position: dict[str, Any]) -> None:
        counters = {
            "step": self.step,
            "samples": self.samples,
            "nonfinite": self.nonfinite.state_dict(),
        }
        self._checkpointer.save(counters, position)

    def resume(self, folder: Path) -> None:
        """Loads a checkpoint; call it before :meth:`train`.

        Raises:
            CavmaeError: the checkpoint is damaged or of another model; nothing has changed.
        """
        counters = self._checkpointer.resume(folder)
        self.step, self.samples = counters["step"], counters["samples"]
        self.nonfinite.load_state_dict(counters["nonfinite"])
        self.steps = self._length.last_step(self.step, self.samples)
