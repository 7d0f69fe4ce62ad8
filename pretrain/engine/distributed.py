"""Processes of a run: gathered tensors with gradients, and decisions that all agree on.

Decisions go over gloo between CPUs, also where gradients go over NCCL, so that a decision at every
step never waits for a GPU.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cavmae.common.errors import CavmaeError


class DistEnv:
    """The processes of a run; a single one if torch.distributed is not initialized.

    Attributes:
        rank: of this process.
        count: number of processes.
    """

    def __init__(self) -> None:
        self.together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if self.together else 0
        self.count = dist.get_world_size() if self.together else 1
        self._control = dist.new_group(backend="gloo") if self.together else None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files: rank 0."""
        return self.rank == 0

    def any_process(self, *flags: bool) -> list[bool]:
        """Logical or of each flag over all processes; a collective call."""
        if not self.together:
            return list(flags)
        reduced = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(reduced, op=dist.ReduceOp.MAX, group=self._control)
        return [bool(flag) for flag in reduced]

    def mean(self, values: Tensor) -> Tensor:
        """Mean of a small tensor over all processes, on the CPU; a collective call."""
        total = values.detach().to("cpu", torch.float64)
        if self.together:
            dist.all_reduce(total, group=self._control)
        return total / self.count

    def gather(self, value: Any) -> list[Any]:
        """A picklable value of every process, in every process; a collective call."""
        if not self.together:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self._control)
        return values

    def broadcast(self, value: Any) -> Any:
        """The value of rank 0, in every process; a collective call."""
        if not self.together:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._control)
        return values[0]

    @contextlib.contextmanager
    def main_only(self) -> Iterator[None]:
        """Work of rank 0 whose failure is raised in every process.

        The body runs everywhere and checks :attr:`is_main` itself.

        Raises:
            Exception: the one of rank 0, in every process.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:  # noqa: BLE001 - raised again, everywhere
            error = raised
        shared = self.broadcast(error if self.is_main else None)
        if error is not None:
            raise error
        if shared is not None:
            raise shared

    @contextlib.contextmanager
    def fail_together(self) -> Iterator[None]:
        """Work of every process; a failure in one is raised in all.

        Raises:
            Exception: the one of this process.
            CavmaeError: another process failed.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:  # noqa: BLE001 - raised again
            error = raised
        messages = [text for text in self.gather(None if error is None else str(error)) if text]
        if error is not None:
            raise error
        if messages:
            raise CavmaeError(f"Another process could not go on: {messages[0]}")


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        ctx.rows = len(x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Sum over processes of the gradients with respect to the rows of this one.
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        first = dist.get_rank() * ctx.rows
        return gradient[first : first + ctx.rows]


def all_gather_rows(x: Tensor) -> Tensor:
    """Rows of all processes, with gradient: [N, ...] -> [processes * N, ...].

    The gradient is that of the sum of all processes' losses; where DDP then averages gradients, it
    is that of the mean. A collective call, with the same N in every process.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    rows: Tensor = _Gather.apply(x)
    return rows


def rank_offset(rows: int) -> int:
    """Index of the first of this process's rows in :func:`all_gather_rows`."""
    return rows * dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
