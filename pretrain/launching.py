"""The start of a run: its processes, its folder."""

import contextlib
import ctypes
import logging
import platform
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration

from cavmae.datasets.errors import UsageError
from cavmae.datasets.locking import locked
from cavmae.datasets.storage import write_atomically
from cavmae.pretrain import checkpoints
from cavmae.pretrain.settings import LoopSettings

log = logging.getLogger("cavmae")
CONFIG = "config.yaml"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # options of glibc's mallopt


def make_accelerator(settings: LoopSettings, run: Path) -> Accelerator:
    """Joins the processes that were launched, and sets precision and device.

    Raises:
        UsageError: a device or precision that is not to be had here.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("loop.device cuda: PyTorch sees no GPU here; use auto or cpu.")
    if settings.precision == "fp16" and (settings.device == "cpu" or not torch.cuda.is_available()):
        raise UsageError("loop.precision fp16 needs a GPU; use bf16 or fp32 on the CPU.")
    precision = {"fp32": "no"}.get(settings.precision, settings.precision)
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            cpu=settings.device == "cpu",
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
    if settings.threads:
        torch.set_num_threads(settings.threads)
    # All processes tell what goes wrong, the first one tells what goes on.
    if not accelerator.is_main_process:
        log.setLevel(logging.WARNING)
    return accelerator


def keep_memory() -> None:
    """Has glibc keep what is freed instead of giving it back: a step takes half the time.

    Every large tensor is else a fresh mapping, whose pages the system clears one by one.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)):
        if libc.mallopt(option, value) != 1:
            log.info("The memory allocator takes no options: steps may be slow.")


@contextlib.contextmanager
def joined(settings: LoopSettings, run: Path) -> Iterator[Accelerator]:
    """The processes that were launched, as long as they work together.

    Left without a word, a process group's threads may crash a process that is already done.
    For arguments and errors see :func:`make_accelerator`.
    """
    accelerator = make_accelerator(settings, run)
    if accelerator.device.type == "cpu":
        keep_memory()
    well = False
    try:
        yield accelerator
        if dist.is_initialized():
            dist.barrier()  # no process leaves while another still listens to it
        well = True
    finally:
        # NCCL takes leave of the others: after an error they may not be there to answer.
        if dist.is_initialized() and (well or dist.get_backend() == "gloo"):
            dist.destroy_process_group()


def open_run(stack: ExitStack, run: Path, resume: bool, text: str) -> None:
    """Takes the run's folder for this run and writes down its configuration.

    Args:
        stack: holds the folder.
        resume: the folder may hold an interrupted run.
        text: of ``config.yaml``.

    Raises:
        CavmaeError: another process is in it, or it holds a run already.
    """
    message = f"Another process is training in {run}: wait for it, or choose another --out."
    stack.enter_context(locked(run / ".lock", message))
    before = checkpoints.complete(run)
    if before and not resume:
        raise UsageError(
            f"{run} holds a run already: go on with --resume auto, or choose another --out."
        )
    path = run / CONFIG
    if before and path.exists() and path.read_text() != text:
        kept = run / f"config.until-{before[-1].name}.yaml"
        path.replace(kept)
        log.warning("The configuration has changed; that of the steps before is kept as %s.", kept)
    with write_atomically(path) as file:
        file.write(text.encode())
