"""Measurements in fresh processes, and Markdown tables of them."""

import contextlib
import gc
import math
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from cavmae.common.files import write_atomically
from cavmae.common.json_files import json_bytes
from cavmae.common.tables import markdown_table
from cavmae.common.worker_pool import fork_context, preload


class Row(NamedTuple):
    """Row of a table: one measured way of doing the work.

    Attributes:
        name: of the way.
        seconds: per unit of work; None: not measured.
        peak_mb: peak memory of its process, in 10^6 bytes.
        note: last column.
    """

    name: str
    seconds: float | None
    peak_mb: float | None = None
    note: str = ""


def row_of(name: str, seconds: float, peak_mb: float, note: str = "") -> Row:
    """Row of a measurement of :func:`in_turns`; infinite seconds mean "out of memory"."""
    if math.isinf(seconds):
        return Row(name, None, None, "out of memory")
    return Row(name, seconds, peak_mb, note)


def _child(
    connection: Any, pinned: bool, function: Callable[..., float], arguments: tuple[Any, ...]
) -> None:
    if pinned and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch: Any = sys.modules.get("torch")
    if pinned and torch is not None:  # PyTorch counts the cores when it is imported
        torch.set_num_threads(1)
    seconds = function(*arguments)
    torch = sys.modules.get("torch")
    gpu = torch is not None and torch.cuda.is_initialized()
    connection.send((seconds, torch.cuda.max_memory_allocated() / 1e6 if gpu else peak_mb()))


def peak_mb() -> float:
    """Peak memory of this process so far, in 10^6 bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's figure is inherited from the parent process on Linux
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def reset_peak() -> None:
    """Lets :func:`peak_mb` count from now on, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def on_one_core(
    function: Callable[..., float], *arguments: Any, pinned: bool = True
) -> tuple[float, float]:
    """Call a function in a fresh process on one core.

    Args:
        function: module-level function that returns seconds per unit of work.
        arguments: of the function.
        pinned: to one core; else the process uses all.

    Returns:
        those seconds, and the peak memory of the process in 10^6 bytes: of the GPU, if it used one.

    Raises:
        RuntimeError: the process ends without a result.
    """
    preload(function.__module__)  # what is measured is not the import
    context = fork_context()
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, pinned, function, arguments))
    process.start()
    theirs.close()
    try:
        result: tuple[float, float] = ours.recv()
    except EOFError as error:
        process.join()
        raise RuntimeError(f"{function.__name__} failed with code {process.exitcode}") from error
    process.join()
    return result


def on_gpu(function: Callable[..., float], *arguments: Any) -> tuple[float, float]:
    """Call a function that uses the GPU in this process; PyTorch counts the memory of each call.

    Returns:
        seconds per unit of work, infinite if the memory does not suffice, and the peak memory of
        the GPU in 10^6 bytes.
    """
    torch: Any = sys.modules["torch"]
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()  # a compiler still holds memory of earlier calls
    try:
        seconds = function(*arguments)
    except torch.OutOfMemoryError:
        seconds = math.inf
    return seconds, (torch.cuda.max_memory_allocated() - before) / 1e6


def in_turns(
    ways: dict[str, tuple[Callable[..., float], tuple[Any, ...]]],
    rounds: int,
    pinned: bool = True,
    gpu: bool = False,
) -> dict[str, tuple[float, float]]:
    """Measure several ways round after round, so that a slow moment affects all of them.

    Args:
        ways: function and arguments of each way, by its name.
        rounds: measurements of each way.
        pinned: each way runs on one core.
        gpu: all ways run on the GPU, whose memory counts.

    Returns:
        median seconds and largest peak memory of each way.
    """
    return {
        name: (statistics.median(s for s, _ in runs), max(m for _, m in runs))
        for name, runs in rounds_of(ways, rounds, pinned, gpu).items()
    }


def rounds_of(
    ways: dict[str, tuple[Callable[..., float], tuple[Any, ...]]],
    rounds: int,
    pinned: bool = True,
    gpu: bool = False,
) -> dict[str, list[tuple[float, float]]]:
    """Like :func:`in_turns`, with seconds and peak memory of every round."""
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (function, arguments) in ways.items():
            measured = on_gpu(function, *arguments) if gpu else None
            results[name].append(measured or on_one_core(function, *arguments, pinned=pinned))
    return results


def resident_mb() -> float:
    """Resident memory of this process, in 10^6 bytes."""
    return float(psutil.Process().memory_info().rss / 1e6)


def machine() -> str:
    """Processor, cores and memory, for the caption of a table."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def table(title: str, unit: str, baseline: str, rows: Sequence[Row]) -> str:
    """Markdown table with the ratio of every row to the baseline."""
    base = next(row.seconds for row in rows if row.name == baseline)
    head = ["way", f"ms a {unit}", f"{unit}s/s", "times the baseline's time", "peak memory", ""]
    cells = []
    for row in rows:
        if row.seconds is None:
            cells.append([row.name, "-", "-", "-", "-", row.note])
            continue
        ratio = "-" if base is None else f"{row.seconds / base:.3g}"
        memory = "-" if row.peak_mb is None else f"{row.peak_mb:.0f} MB"
        milliseconds, per_second = f"{row.seconds * 1e3:.3g}", f"{1 / row.seconds:.4g}"
        cells.append([row.name, milliseconds, per_second, ratio, memory, row.note])
    caption = f"{title} ({time.strftime('%Y-%m-%d')}, {machine()})"
    return f"{caption}\n\n{markdown_table(head, cells, text_columns=(0, 5))}"


def text_of(rows: Sequence[Any]) -> bytes:
    """JSON of rows (named tuples) and the machine."""
    record = {"machine": machine(), "rows": [row._asdict() for row in rows]}
    return json_bytes(record, indent=1)


def save(rows: Sequence[Row], path: str | None) -> None:
    """Write rows as JSON, if a path is given."""
    if path is None:
        return
    with write_atomically(Path(path)) as file:
        file.write(text_of(rows))
