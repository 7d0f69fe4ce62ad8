"""Threads of a process: idle ones soon sleep, and processes of one machine share its cores."""

import os

import threadpoolctl


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_spinning() -> None:
    """Let idle OpenMP threads sleep after some microseconds, unless the environment says otherwise.

    GNU OpenMP, which PyTorch's wheels have, reads the variable when it is loaded, so before PyTorch
    is imported. Its own default spins for milliseconds: alone a training step is as fast either
    way, beside other processes spinning threads keep the cores from those that work. To sleep at
    once (``OMP_WAIT_POLICY=PASSIVE``) costs a fifth alone (docs/benchmarks/cpu-contention.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def single_threaded_blas() -> threadpoolctl.threadpool_limits:
    """Let NumPy's matrix products use one thread each, for good or as a context.

    BLAS splits even products of a fraction of a millisecond over all cores and waits for the
    slowest part, which takes a hundred times as long where encoders or other processes occupy the
    cores. PyTorch's threads are not affected.
    """
    return threadpoolctl.threadpool_limits(1, user_api="blas")


def use_one_thread() -> None:
    """Let PyTorch and NumPy compute in one thread: of a worker, one of many processes."""
    import torch  # takes seconds

    torch.set_num_threads(1)
    single_threaded_blas()


def threads_per_process() -> int | None:
    """Threads for this one of the processes that a launcher started on this machine.

    Returns:
        its share of the cores, at least 1; None: it is the only one, or ``OMP_NUM_THREADS`` is set.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes < 2 or "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, cores() // processes)
