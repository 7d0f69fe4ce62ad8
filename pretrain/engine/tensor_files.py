"""Files of tensors: every failure to read is one sentence with the file's name."""

import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cavmae.common.errors import CavmaeError

WRAPPED = ("state_dict", "model")  # what a published file may keep its state dict under
SCALE = ".int8_scale"  # end of the name of the scales of a tensor of 8 bits
MAX_MAPPED_BYTES = 64 << 20  # of a file whose tensors are copied
LEAST_QUANTISED = 4096  # numbers of a tensor; smaller ones would save little
# Of torch.load alone: a bit of a pickle may name any operation with any arguments.
_DAMAGE = (
    SafetensorError, RuntimeError, OSError, EOFError, pickle.UnpicklingError, ValueError, TypeError,
    KeyError, IndexError, AttributeError, ImportError, AssertionError, ArithmeticError,
    struct.error, zipfile.BadZipFile, MemoryError, NotImplementedError,
)  # fmt: skip


def read_tensors(
    path: Path, remedy: str, finite: bool = True, mapped: bool = True
) -> dict[str, Tensor]:
    """Tensors of a file by name: ``.safetensors``, or a file of ``torch.save``.

    Nothing is unpickled but tensors (``weights_only``). Tensors of 8 bits (:func:`narrowed`) are
    restored to float32.

    Args:
        remedy: end of the error's sentence: how to get a sound file.
        finite: refuse NaN and infinite numbers, as no weights are.
        mapped: tensors of a ``.safetensors`` file may lie in the file, which must not change
            then; else they are copies, and the memory never holds two of all of them.

    Raises:
        CavmaeError: no such file, a damaged one, one that does not map names to tensors, or numbers
            that are not finite.
    """
    if not path.is_file():
        raise CavmaeError(f"There is no file {path}: {remedy}.")
    try:
        if path.suffix == ".safetensors":
            tensors: Any = load_file(str(path)) if mapped else _copied(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        for name in WRAPPED:
            if isinstance(tensors, dict) and isinstance(tensors.get(name), dict):
                tensors = tensors[name]
        if not isinstance(tensors, dict) or not all(
            isinstance(v, Tensor) for v in tensors.values()
        ):
            raise CavmaeError(f"{path} is not a state dict, which maps names to tensors: {remedy}.")
        tensors = _restored({str(name): value for name, value in tensors.items()})
        if finite:
            for name, value in tensors.items():
                if not torch.isfinite(value).all():
                    raise CavmaeError(f"{path} is damaged, {name} is not finite: {remedy}.")
    except _DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CavmaeError(
            f"{path} is damaged or holds more than tensors ({reason}): {remedy}."
        ) from error
    return tensors


def _copied(path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    with safe_open(str(path), "pt") as file:
        pending = list(file.keys())
    while pending:
        # Opened anew now and then: what was read of a mapped file is memory until it is closed.
        mapped_bytes = 0
        with safe_open(str(path), "pt") as file:
            while pending and mapped_bytes < MAX_MAPPED_BYTES:
                name = pending.pop()
                tensors[name] = file.get_tensor(name).clone()
                mapped_bytes += tensors[name].nbytes
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a ``.safetensors`` file of tensors by name, and flushes it to disk.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(path), {"format": "pt"})
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)  # safetensors leaves a file that its owner alone can read
    with path.open("rb") as file:
        os.fsync(file.fileno())


def narrowed(tensors: Mapping[str, Tensor], bits: Literal[8, 16]) -> dict[str, Tensor]:
    """Weights for a smaller file: matrices and kernels in float16, or in 8 bits.

    With 8 bits each row (first dimension) of a large one becomes int8 numbers and a float32 scale,
    the largest absolute value over 127, so that no weight moves by more than half a scale; small
    ones become float16. Vectors keep their type: biases, norms and running statistics take few
    bytes, and some of their values are below what float16 resolves. :func:`read_tensors` restores
    float32 from 8 bits.

    Args:
        tensors: weights by name, of any shapes.
        bits: of a number.

    Raises:
        CavmaeError: a weight exceeds the largest number of float16.
    """
    result: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if not value.is_floating_point() or value.ndim < 2:
            result[name] = value
        elif bits == 8 and value.numel() >= LEAST_QUANTISED:
            rows = value.float().flatten(1)
            scale = rows.abs().amax(1, keepdim=True) / 127
            numbers = (rows / scale.clamp(min=torch.finfo(torch.float32).tiny)).round()
            result[name] = numbers.to(torch.int8).view(value.shape)
            result[name + SCALE] = scale[:, 0]
        else:
            result[name] = value.half()
            if not torch.isfinite(result[name]).all():
                raise CavmaeError(
                    f"{name} exceeds {torch.finfo(torch.float16).max:g}, the largest number of "
                    "half precision: export with --precision fp32."
                )
    return result


def _restored(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors with float32 in place of 8 bits and their scales.

    Raises:
        ValueError: numbers without a scale, a scale without its numbers, or another shape.
    """
    result = {name: value for name, value in tensors.items() if not name.endswith(SCALE)}
    for name, scale in tensors.items():
        if not name.endswith(SCALE):
            continue
        numbers = result.get(name.removesuffix(SCALE))
        if numbers is None or numbers.dtype != torch.int8 or scale.shape != numbers.shape[:1]:
            raise ValueError(f"{name} is not the scale of a tensor of 8 bits")
        shape = (-1, *[1] * (numbers.ndim - 1))
        result[name.removesuffix(SCALE)] = numbers.float() * scale.float().view(shape)
    for name, value in result.items():
        if value.dtype == torch.int8:
            raise ValueError(f"{name} has 8 bits and no scale")
    return result
