"""Machine: cores and memory that the process may use, GPUs, free disk."""

import contextlib
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from huggingface_hub.constants import HF_HUB_CACHE

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
GPU_NODE = Path("/dev/nvidia0")


class Gpu(NamedTuple):
    """GPU that PyTorch can use: name, memory in bytes, compute capability."""

    name: str
    memory_bytes: int
    capability: str


class Disk(NamedTuple):
    """Folder in use, and the free bytes of its disk."""

    use: str
    folder: str
    free_bytes: int


def core_quota() -> float | None:
    """Cores' worth of time that a container or a job grants (cgroup v2); None: no limit."""
    quotas = []
    for folder in _cgroups():
        quota, _, period = _content(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_bytes() -> tuple[int, int]:
    """Memory that the process may use, and how much of the machine's is free."""
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    for folder in _cgroups():
        limit, used = _content(folder / "memory.max"), _content(folder / "memory.current")
        if limit.isdigit():
            total = min(total, int(limit))
            free = min(free, int(limit) - int(used) if used.isdigit() else int(limit))
    return total, max(0, free)


def _cgroups() -> list[Path]:
    """Folders of the process's cgroup and of those around it (version 2)."""
    lines = _content(OWN_CGROUP).splitlines()
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    path = Path(own)
    return [CGROUPS / part for part in (path, *path.parents)]


def _content(path: Path) -> str:
    """Content of a file; empty where there is none."""
    with contextlib.suppress(OSError):
        return path.read_text().strip()
    return ""


def gpus() -> list[Gpu]:
    """GPUs that PyTorch can use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an old driver: see `gpu_remark`
        if not torch.cuda.is_available():
            return []
        facts = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    return [Gpu(f.name, f.total_memory, f"{f.major}.{f.minor}") for f in facts]


def gpu_remark() -> str | None:
    """Reason why a GPU of this machine cannot be used; None: there is no such GPU."""
    if not GPU_NODE.exists() or gpus():
        return None
    if torch.version.cuda is None:
        return (
            "there is an NVIDIA GPU, and PyTorch was built without CUDA: pip install a CUDA build"
        )
    return (
        "there is an NVIDIA GPU that PyTorch cannot use: its driver is too old for CUDA "
        f"{torch.version.cuda}, or CUDA_VISIBLE_DEVICES hides it"
    )


def disks() -> list[Disk]:
    """Folders that the commands write to, without those of a command's own options."""
    folders = {
        "working folder": Path.cwd(),
        "temporary files, cache of remote shards": Path(tempfile.gettempdir()),
        "cache of the hub": Path(HF_HUB_CACHE),
    }
    return [
        Disk(use, str(folder), shutil.disk_usage(_existing(folder)).free)
        for use, folder in folders.items()
    ]


def _existing(folder: Path) -> Path:
    """The nearest parent of a folder that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())
