"""Throughput of a run: samples, waiting for data, memory, FLOPs."""

import contextlib
import re
import time
from collections.abc import Iterator, Sequence

import psutil
import torch

from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.loader import Loader
from cavmae.pretrain.engine.distributed import DistEnv
from cavmae.pretrain.engine.settings import LoopSettings
from cavmae.pretrain.engine.task import Task

# Vendors' data sheets, dense, 10^12 operations/s: name, fp32 without tensor cores, 16 bit with.
PEAKS = (
    ("H200", 67.0, 989.0),
    ("H100", 67.0, 989.0),
    ("A100", 19.5, 312.0),
    ("L40S", 91.6, 362.0),
    ("RTX 4090", 82.6, 165.2),
    ("L4", 30.3, 121.0),
    ("T4", 8.1, 65.0),
)


class Throughput:
    """Counters between two readings.

    Args:
        task: gives the FLOPs of a sample.
        device: of the run.
        settings: of the run.
        processes: of the run.
    """

    def __init__(
        self, task: Task, device: torch.device, settings: LoopSettings, processes: DistEnv
    ):
        self._flops_per_sample = task.flops_per_sample()
        self._device = device
        self._processes = processes
        self._peak = None
        if device.type == "cuda":
            name = torch.cuda.get_device_name(device)
            self._peak = peak_flops(name, settings.precision)
            torch.cuda.reset_peak_memory_stats(device)
        self._begin()

    def _begin(self) -> None:
        self._since = time.perf_counter()
        self._waited = 0.0
        self._samples = self._steps = 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time in the body as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time in the body out."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def count(self, micro: Sequence[Batch]) -> None:
        """Counts a step of these batches."""
        self._steps += 1
        self._samples += sum(len(batch["key"]) for batch in micro)

    def read(self, loader: Loader) -> dict[str, float]:
        """Metrics since the last reading.

        ``samples_per_sec`` is of all processes together; FLOPs, MFU and memory are of one.
        """
        elapsed = max(time.perf_counter() - self._since, 1e-9)
        rate = self._samples / elapsed  # of this process; all make the same number of steps
        values = {
            "samples_per_sec": rate * self._processes.count,
            "step_time": elapsed / max(1, self._steps),
            "data_wait": self._waited / elapsed,
            "flops_per_sec": rate * self._flops_per_sample,
            "skipped_samples": float(sum(loader.broken.values())),
        }
        if self._peak is not None:
            values["mfu"] = values["flops_per_sec"] / self._peak
        if self._device.type == "cuda":
            values["memory_gb"] = torch.cuda.max_memory_allocated(self._device) / 1e9
        else:
            values["memory_gb"] = psutil.Process().memory_info().rss / 1e9
        self._begin()
        return values


def peak_flops(device_name: str, precision: str) -> float | None:
    """Peak FLOP/s of a device; None: unknown."""
    for name, single, half in PEAKS:
        if re.search(rf"\b{name}\b", device_name):
            return (single if precision == "fp32" else half) * 1e12
    return None
