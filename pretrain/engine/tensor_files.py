"""Files of tensors: every failure to read is one sentence with the file's name."""

import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cavmae.common.errors import CavmaeError

WRAPPED = ("state_dict", "model")  # what a published file may keep its state dict under
# Of torch.load alone: a bit of a pickle may name any operation with any arguments.
_DAMAGE = (
    SafetensorError, RuntimeError, OSError, EOFError, pickle.UnpicklingError, ValueError, TypeError,
    KeyError, IndexError, AttributeError, ImportError, AssertionError, ArithmeticError,
    struct.error, zipfile.BadZipFile, MemoryError, NotImplementedError,
)  # fmt: skip


def read_tensors(path: Path, remedy: str, finite: bool = True) -> dict[str, Tensor]:
    """Tensors of a file by name: ``.safetensors``, or a file of ``torch.save``.

    Nothing is unpickled but tensors (``weights_only``).

    Args:
        remedy: end of the error's sentence: how to get a sound file.
        finite: refuse NaN and infinite numbers, as no weights are.

    Raises:
        CavmaeError: no such file, a damaged one, one that does not map names to tensors, or numbers
            that are not finite.
    """
    if not path.is_file():
        raise CavmaeError(f"There is no file {path}: {remedy}.")
    try:
        if path.suffix == ".safetensors":
            tensors: Any = load_file(str(path))
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        for name in WRAPPED:
            if isinstance(tensors, dict) and isinstance(tensors.get(name), dict):
                tensors = tensors[name]
        if not isinstance(tensors, dict) or not all(
            isinstance(v, Tensor) for v in tensors.values()
        ):
            raise CavmaeError(f"{path} is not a state dict, which maps names to tensors: {remedy}.")
        if finite:
            for name, value in tensors.items():
                if not torch.isfinite(value).all():
                    raise CavmaeError(f"{path} is damaged, {name} is not finite: {remedy}.")
    except _DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CavmaeError(
            f"{path} is damaged or holds more than tensors ({reason}): {remedy}."
        ) from error
    return {str(name): value for name, value in tensors.items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a ``.safetensors`` file of tensors by name, and flushes it to disk.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(path), {"format": "pt"})
    with path.open("rb") as file:
        os.fsync(file.fileno())


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for a file of half the size: matrices and kernels in float16.

    Vectors keep their type: biases, norms and running statistics take few bytes, and some of their
    values are below what float16 resolves.

    Args:
        tensors: weights by name, of any shapes.

    Raises:
        CavmaeError: a weight exceeds the largest number of float16.
    """
    result = {}
    for name, value in tensors.items():
        narrow = value.half() if value.is_floating_point() and value.ndim > 1 else value
        if not torch.isfinite(narrow).all():
            raise CavmaeError(
                f"{name} exceeds {torch.finfo(torch.float16).max:g}, the largest number of half "
                "precision: export without --half."
            )
        result[name] = narrow
    return result
