"""Timed training steps of any task, and the precision that they run with."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.amp.grad_scaler import GradScaler

from cavmae.common.device import device_of, to_device
from cavmae.datasets.stream.collate import Batch
from cavmae.pretrain.engine.task import Task
from cavmae.tools.benchmarks.settings import StepsBench


class StepTimes(NamedTuple):
    """Numbers of steps, and the arithmetic of the model.

    Attributes:
        warm_up: steps that are not measured.
        steps: measured ones.
        precision: fp32, bf16 or fp16.
        log_every_step: read all logged values at every step, which waits for the device.
    """

    warm_up: int
    steps: int
    precision: str
    log_every_step: bool = False


def precision_of(bench: StepsBench) -> str:
    """Precision of a benchmark: ``auto`` is bf16 on a GPU, fp32 on the CPU."""
    if bench.precision != "auto":
        return bench.precision
    return "bf16" if device_of(bench.device).type == "cuda" else "fp32"


def seconds_per_step(
    task: Task, optimizer: Any, batches: Iterator[Batch], device: torch.device, times: StepTimes
) -> float:
    """Mean seconds of a training step, loading of its batch included.

    Args:
        task: on the device.
        optimizer: of its parameters.
        batches: at least as many as steps.
        device: of the task.
        times: numbers of steps, precision.
    """
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(times.precision)
    scaler = GradScaler(device.type, enabled=times.precision == "fp16")
    started = 0.0
    for number in range(times.warm_up + times.steps):
        if number == times.warm_up:
            synchronize(device)
            started = time.perf_counter()
        batch = to_device(next(batches), device)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            output = task("training_step", batch)
        scaler.scale(output.loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if times.log_every_step:
            sum(float(value) for value in output.logs.values())
    synchronize(device)
    return (time.perf_counter() - started) / times.steps


def synchronize(device: torch.device) -> None:
    """Waits for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
