"""Device of a model: its option, and batches that are moved to it.

PyTorch is imported by the functions, since options are parsed without it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cavmae.common.errors import UsageError

if TYPE_CHECKING:
    import torch


def device_of(name: str, option: str = "--device") -> "torch.device":
    """Device of an option: ``auto`` is a GPU of CUDA if there is one, else the CPU.

    Nothing is allocated on a GPU: each process of a run would do so on the first one.

    Args:
        name: ``auto``, or a device of PyTorch.
        option: for the error.

    Raises:
        UsageError: PyTorch cannot use the device here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type != "cuda":
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{option} {name} cannot be used: {reason}; use auto or cpu.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"{option} {name}: PyTorch sees no GPU of that name; use auto or cpu.")
    return device


def to_device(batch: Mapping[str, Any], device: "torch.device | str") -> dict[str, Any]:
    """Batch with its tensors on a device; copies from pinned memory overlap with computation."""
    import torch

    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
