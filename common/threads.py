"""Threads of a process: idle ones sleep, and processes of one machine share its cores."""

import os


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wait_passively() -> None:
    """Let idle OpenMP threads sleep instead of spin, unless the environment says otherwise.

    OpenMP reads the variable when it is loaded, so before PyTorch is imported. Alone, a training
    step takes as long either way; beside other processes spinning threads keep the cores from
    those that work (docs/results.md, "Under load").
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def fair_threads() -> int | None:
    """Threads for this one of the processes that a launcher started on this machine.

    Returns:
        its share of the cores, at least 1; None: it is the only one, or ``OMP_NUM_THREADS`` is set.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes < 2 or "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, cores() // processes)
