"""Measuring in processes of their own, and printing what was measured."""

import gc
import math
import multiprocessing
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


class Row(NamedTuple):
    """One way of doing a thing.

    Attributes:
        name: what it is called.
        seconds: for one unit of work; None: could not be measured.
        peak_mb: memory of its process, in 10^6 bytes.
        note: anything to add.
    """

    name: str
    seconds: float | None
    peak_mb: float | None = None
    note: str = ""


def row_of(name: str, seconds: float, peak_mb: float, note: str = "") -> Row:
    """Row of a measurement by :func:`in_turns`; infinite seconds: the memory did not suffice."""
    if math.isinf(seconds):
        return Row(name, None, None, "out of memory")
    return Row(name, seconds, peak_mb, note)


def _child(
    connection: Any, pinned: bool, work: Callable[..., float], arguments: tuple[Any, ...]
) -> None:
    if pinned and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch: Any = sys.modules.get("torch")
    if pinned and torch is not None:  # imported before pinning, it has counted every core
        torch.set_num_threads(1)
    seconds = work(*arguments)
    torch = sys.modules.get("torch")
    gpu = torch is not None and torch.cuda.is_initialized()
    connection.send((seconds, torch.cuda.max_memory_allocated() / 1e6 if gpu else peak_mb()))


def peak_mb() -> float:
    """Largest memory of this process so far, in 10^6 bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's figure is inherited from the parent process on Linux
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def on_one_core(
    work: Callable[..., float], *arguments: Any, pinned: bool = True
) -> tuple[float, float]:
    """Runs work in a fresh process on one core.

    Args:
        work: module-level function that returns seconds for one unit.
        pinned: on one core; else on all.

    Returns:
        those seconds, and the process's peak memory in 10^6 bytes: of the GPU, if it used one.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, pinned, work, arguments))
    process.start()
    theirs.close()
    try:
        result: tuple[float, float] = ours.recv()
    except EOFError as error:
        process.join()
        raise RuntimeError(f"{work.__name__} failed with code {process.exitcode}") from error
    process.join()
    return result


def on_gpu(work: Callable[..., float], *arguments: Any) -> tuple[float, float]:
    """The same of work on the GPU, in this process: its memory is counted without a fresh one.

    Seconds are infinite where the memory does not suffice.
    """
    torch: Any = sys.modules["torch"]
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()  # what a compiler still holds of others
    try:
        seconds = work(*arguments)
    except torch.OutOfMemoryError:
        seconds = math.inf
    return seconds, (torch.cuda.max_memory_allocated() - before) / 1e6


def in_turns(
    ways: dict[str, tuple[Callable[..., float], tuple[Any, ...]]],
    rounds: int,
    pinned: bool = True,
    gpu: bool = False,
) -> dict[str, tuple[float, float]]:
    """Measures several ways round after round, so that a slow moment hits all of them.

    Args:
        pinned: on one core each.
        gpu: all of them run on the GPU, whose memory counts.

    Returns:
        median seconds and largest peak of each.
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
    """Like :func:`in_turns`, but seconds and peak of every round."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (work, arguments) in ways.items():
            measured = on_gpu(work, *arguments) if gpu else None
            found[name].append(measured or on_one_core(work, *arguments, pinned=pinned))
    return found


def resident_mb() -> float:
    """Memory of this process now, in 10^6 bytes."""
    return float(psutil.Process().memory_info().rss / 1e6)


def machine() -> str:
    """The hardware, for the caption of a table."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def table(title: str, unit: str, baseline: str, rows: Sequence[Row]) -> str:
    """A Markdown table with the ratio of every row to the baseline."""
    base = next(row.seconds for row in rows if row.name == baseline)
    lines = [
        f"{title} ({time.strftime('%Y-%m-%d')}, {machine()})",
        "",
        f"| way | ms a {unit} | {unit}s/s | times the baseline's time | peak memory | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        if row.seconds is None:
            lines.append(f"| {row.name} | - | - | - | - | {row.note} |")
            continue
        ratio = "-" if base is None else f"{row.seconds / base:.3g}"
        memory = "-" if row.peak_mb is None else f"{row.peak_mb:.0f} MB"
        lines.append(
            f"| {row.name} | {row.seconds * 1e3:.3g} | {1 / row.seconds:.4g} | "
            f"{ratio} | {memory} | {row.note} |"
        )
    return "\n".join(lines)


def text_of(rows: Sequence[Any]) -> bytes:
    """Rows (named tuples) and the machine as JSON."""
    record = {"machine": machine(), "rows": [row._asdict() for row in rows]}
    return json_bytes(record, indent=1)


def save(rows: Sequence[Row], path: str | None) -> None:
    """Writes rows as JSON, if a path is given."""
    if path is None:
        return
    with write_atomically(Path(path)) as file:
        file.write(text_of(rows))
