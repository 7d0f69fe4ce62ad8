"""Set-up of a run: its processes and its folder."""

import contextlib
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from cavmae.common.allocator import keep_memory
from cavmae.common.device import device_of
from cavmae.common.errors import UsageError
from cavmae.common.files import write_atomically
from cavmae.common.locks import locked
from cavmae.common.threads import threads_per_process
from cavmae.pretrain.engine import checkpoints
from cavmae.pretrain.engine.distributed import DistEnv
from cavmae.pretrain.engine.heartbeats import watched_peers
from cavmae.pretrain.engine.settings import LoopSettings

log = logging.getLogger("cavmae")
CONFIG = "config.yaml"
# Where launchers write the number of processes and the rank; accelerate reads these, not Slurm's.
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
SLURM_SIZE = "SLURM_STEP_NUM_TASKS"
LAUNCH = "launch with torchrun --nproc_per_node N (docs/guides/machines.md)"


def launched_processes() -> tuple[int, str]:
    """Number of processes of the run according to the launcher's environment.

    Returns:
        the number, 1 without a launcher, and the name of the variable that says so.

    Raises:
        UsageError: the launcher started fewer processes than it was asked for, or without ranks.
    """
    names = [name for name in (*SIZES, SLURM_SIZE) if os.environ.get(name)]
    # accelerate's launcher for CPUs starts a single process, whatever --num_processes says; that
    # more were asked for shows only in the address of a main process.
    launched_by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched_by_accelerate and "MASTER_ADDR" in os.environ and names in ([], [SLURM_SIZE]):
        raise UsageError(
            "accelerate launch has started one process, but was asked for more (MASTER_ADDR is "
            f"set): {LAUNCH} instead; for one process --num_processes 1, and no MASTER_ADDR."
        )
    if not names:
        return 1, "No launcher"
    name, value = names[0], os.environ[names[0]]
    if not value.isdecimal() or int(value) < 1:
        raise UsageError(f"{name} {value!r} is not a number of processes: {LAUNCH}.")
    if int(value) > 1 and name in SIZES and not any(os.environ.get(rank) for rank in RANKS):
        raise UsageError(
            f"{name} is {value}, but RANK is not set: {LAUNCH}; for one process set WORLD_SIZE=1."
        )
    return int(value), name


def make_accelerator(settings: LoopSettings, run: Path) -> Accelerator:
    """Accelerator of the launched processes, with the precision and device of the settings.

    Raises:
        UsageError: the device, precision or tracker is not available here.
    """
    # Without a GPU accelerate joins processes only where the setting says that they run on the CPU.
    cpu = device_of(settings.device, "loop.device").type == "cpu"
    if cpu and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise UsageError("accelerate launch --use_fsdp needs GPUs: launch without it on CPUs.")
    if cpu and settings.precision == "fp16":
        raise UsageError("loop.precision fp16 needs a GPU; use bf16 or fp32 on the CPU.")
    precision = {"fp32": "no"}.get(settings.precision, settings.precision)
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            cpu=cpu,
            log_with=None if settings.tracker == "none" else settings.tracker,
            project_config=ProjectConfiguration(str(run), logging_dir=str(run)),
            # Buffers are the same everywhere, gradients need not lie in memory twice.
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
            ],
        )
    except (ValueError, ImportError) as error:
        raise UsageError(f"loop: {str(error).splitlines()[0]}") from error
    if settings.tracker not in ["none", *(str(tracker) for tracker in accelerator.log_with)]:
        raise UsageError(
            f"loop.tracker {settings.tracker} is not installed: pip install {settings.tracker}, "
            "or choose another."
        )
    if threads := settings.threads or threads_per_process():
        torch.set_num_threads(threads)
    # Warnings are logged by every process, progress by rank 0.
    if not accelerator.is_main_process:
        log.setLevel(logging.WARNING)
    return accelerator


def check_joined(accelerator: Accelerator, launched: tuple[int, str]) -> None:
    """Checks that launcher, accelerator and process group agree on the number of processes.

    Args:
        launched: see :func:`launched_processes`.

    Raises:
        UsageError: they do not agree on the number of processes.
    """
    count, name = launched
    group = dist.get_world_size() if dist.is_initialized() else 1
    if not count == accelerator.num_processes == group:
        raise UsageError(
            f"{name} says {count} processes, but {accelerator.num_processes} are joined in "
            f"accelerate and {group} in PyTorch, so each would train alone: {LAUNCH}; for one "
            "process set WORLD_SIZE=1."
        )


def check_devices(accelerator: Accelerator, processes: DistEnv) -> None:
    """Checks that all processes use one kind of device; a collective call.

    Raises:
        UsageError: they differ, so that averaging gradients would never end.
    """
    kinds = sorted(set(processes.gather(accelerator.device.type)))
    if len(kinds) > 1:
        raise UsageError(
            f"Some processes run on {kinds[0]}, others on {kinds[1]}, and cannot average their "
            "gradients: set --loop.device cpu, or launch where every process has a GPU."
        )


def check_gradients_synchronized(module: nn.Module, processes: DistEnv) -> None:
    """Checks that a prepared module averages gradients over all processes.

    Raises:
        UsageError: it does not.
    """
    whole = getattr(module, "_orig_mod", module)  # of torch.compile
    if processes.count > 1 and not isinstance(whole, DistributedDataParallel | FSDPModule):
        raise UsageError(
            f"Nothing averages the gradients of the {processes.count} processes, so each would "
            f"train alone: {LAUNCH}."
        )


@contextlib.contextmanager
def distributed_run(settings: LoopSettings, run: Path) -> Iterator[Accelerator]:
    """Process group of the launched processes, destroyed at the end.

    The threads of a group that is not destroyed may crash a process that is done. Arguments and
    errors are those of :func:`make_accelerator`, :func:`check_joined` and
    :func:`~cavmae.pretrain.engine.heartbeats.watched_peers`.
    """
    launched = launched_processes()
    accelerator = make_accelerator(settings, run)
    succeeded = False
    try:
        check_joined(accelerator, launched)
        if accelerator.device.type == "cpu":
            keep_memory()
        with watched_peers(settings.peer_timeout):
            yield accelerator
            if dist.is_initialized():
                dist.barrier()  # no process leaves while another still listens to it
        succeeded = True
    finally:
        # NCCL waits for the other processes, which may be gone after an error.
        if dist.is_initialized() and (succeeded or dist.get_backend() == "gloo"):
            dist.destroy_process_group()


def claim_run_folder(stack: ExitStack, run: Path, resume: bool) -> None:
    """Locks the folder of a run.

    Args:
        stack: releases the lock.
        run: folder of the run.
        resume: the folder may hold an interrupted run.

    Raises:
        CavmaeError: another process trains in it, or it holds a run already.
    """
    message = f"Another process is training in {run}: wait for it, or choose another --out."
    stack.enter_context(locked(run / ".lock", message))
    before = checkpoints.complete_checkpoints(run)
    if before and not resume:
        raise UsageError(
            f"{run} holds a run already: go on with --resume auto, or choose another --out."
        )


def write_config(run: Path, text: str) -> None:
    """Writes the configuration of a run; one that differs is kept for its steps.

    Args:
        run: folder of the run, whose newest checkpoint goes with the new configuration.
        text: content of ``config.yaml``.
    """
    before = checkpoints.complete_checkpoints(run)
    path = run / CONFIG
    if before and path.exists() and path.read_text() != text:
        kept = run / f"config.until-{before[-1].name}.yaml"
        path.replace(kept)
        log.warning("The configuration has changed; that of the steps before is kept as %s.", kept)
    with write_atomically(path) as file:
        file.write(text.encode())
