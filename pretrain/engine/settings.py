"""Settings of every training run: optimizer and loop."""

import dataclasses
from typing import Literal, Protocol

from cavmae.common.errors import UsageError
from cavmae.common.settings import DeviceSettings, SeedSettings


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """Optimizer and learning rate schedule. Fractions are of all steps.

    Args:
        name: ``adamw`` (fused; no decay of biases, norms and tokens); ``muon``: matrices and
            kernels move by Muon, all else by that; or ``adam``, the reference's.
        lr: largest learning rate.
        beta1: of the running mean of gradients (reference: 0.95).
        beta2: of the running mean of their squares.
        weight_decay: reference: 5e-7.
        max_grad_norm: largest norm of a gradient; 0: as it is.
        schedule: ``cosine`` falls to a hundredth of ``lr``; ``halving``; or ``constant``.
        halve_from: share of steps before the first halving (reference: 10 of 25 epochs of
            pretraining).
        halve_every: share of steps from one halving to the next (reference: 5 of 25 epochs).
        warmup: share of steps in which the rate rises from 0.
        ema: decay of averaged weights, which are saved beside the others; 0: none.
        average_from_epoch: first epoch, counted from 1, after which and after every later one the
            weights enter a mean, which is saved beside them; 0: none.
    """

    name: Literal["adamw", "muon", "adam"] = "adamw"
    lr: float = 2e-4
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    schedule: Literal["cosine", "halving", "constant"] = "cosine"
    halve_from: float = 0.4
    halve_every: float = 0.2
    warmup: float = 0.05
    ema: float = 0.0
    average_from_epoch: int = 0

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"optimizer.{name} {getattr(self, name)} is not in [0, 1).")
        for name in ("warmup", "halve_from"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"optimizer.{name} {getattr(self, name)} is not in [0, 1].")
        if not 0 < self.halve_every <= 1:
            raise UsageError(f"optimizer.halve_every {self.halve_every} is not in (0, 1].")
        if self.average_from_epoch < 0:
            raise UsageError(
                f"optimizer.average_from_epoch {self.average_from_epoch} cannot be negative."
            )
        if self.average_from_epoch and self.ema:
            raise UsageError("optimizer: average by ema or by average_from_epoch, not by both.")
        if self.lr <= 0 or self.max_grad_norm < 0 or self.weight_decay < 0:
            raise UsageError(
                "optimizer: lr must be above 0, max_grad_norm and weight_decay not below."
            )


@dataclasses.dataclass(frozen=True)
class LoopSettings(SeedSettings, DeviceSettings):
    """Length and conduct of a run.

    Args:
        steps: of the optimizer; 0: as many as ``epochs`` take.
        epochs: over the data, if ``steps`` is 0.
        grad_accum_steps: batches of a step; contrasts are over all of them.
        precision: of the mathematics.
        threads: of a process on the CPU; 0: its share of the cores.
        compile: a backend of torch.compile such as ``inductor`` for the blocks; ``off``.
        checkpoint_activations: compute activations again instead of keeping them: less memory.
        log_every: steps between lines of metrics.jsonl.
        evaluate_every: steps between evaluations; 0: only at the end.
        save_every: steps between checkpoints; 0: by time, and at the end.
        save_minutes: minutes between checkpoints; 0: by steps.
        keep: newest checkpoints that are kept.
        max_bad_steps: so many steps in a row without a finite gradient end the run.
        peer_timeout: seconds without a heartbeat of another process of the run, after which this
            one ends; 0: wait for it forever.
        tracker: beside metrics.jsonl.
    """

    steps: int = 0
    epochs: float = 25.0
    grad_accum_steps: int = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    compile: str = "off"
    checkpoint_activations: bool = False
    log_every: int = 20
    evaluate_every: int = 0
    save_every: int = 1000
    save_minutes: float = 30.0
    keep: int = 3
    max_bad_steps: int = 5
    peer_timeout: float = 60.0
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"

    def __post_init__(self) -> None:
        for name in ("grad_accum_steps", "log_every", "max_bad_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"loop.{name} {getattr(self, name)} must be at least 1.")
        for name in (
            "steps", "epochs", "threads", "evaluate_every", "save_every", "save_minutes",
            "peer_timeout",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise UsageError(f"loop.{name} {getattr(self, name)} cannot be negative.")
        if self.keep < 2:
            raise UsageError(f"loop.keep {self.keep}: at least 2, as the newest may be damaged.")
        if not self.steps and not self.epochs:
            raise UsageError("Set loop.steps or loop.epochs.")


class BatchSettings(Protocol):
    """Data settings that every task has: scenes or clips of a batch of one process."""

    @property
    def batch_size(self) -> int: ...


class RunSettings(Protocol):
    """Settings that every task has; the others are its own."""

    @property
    def data(self) -> BatchSettings: ...
    @property
    def optimizer(self) -> OptimizerSettings: ...
    @property
    def loop(self) -> LoopSettings: ...
