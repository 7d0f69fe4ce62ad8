"""What the processes of one run share: gathered tensors with gradients, and agreed decisions.

Decisions go over gloo between CPUs, also where gradients go over NCCL, so that agreeing at every
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
    """The processes of a run; alone when nothing has set up torch.distributed.

    Attributes:
        rank, count: of this process, and of all.
    """

    def __init__(self) -> None:
        self.together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if self.together else 0
        self.count = dist.get_world_size() if self.together else 1
        self._control = dist.new_group(backend="gloo") if self.together else None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set in any process. All must call it together."""
        if not self.together:
            return list(flags)
        told = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(told, op=dist.ReduceOp.MAX, group=self._control)
        return [bool(flag) for flag in told]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes of a small tensor, on the CPU."""
        told = values.detach().to("cpu", torch.float64)
        if self.together:
            dist.all_reduce(told, group=self._control)
        return told / self.count

    def gather(self, thing: Any) -> list[Any]:
        """A (picklable) thing of every process, in every process."""
        if not self.together:
            return [thing]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, thing, group=self._control)
        return found

    def broadcast(self, thing: Any) -> Any:
        """The first process's thing, in every process."""
        if not self.together:
            return thing
        box = [thing]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    @contextlib.contextmanager
    def main_only(self) -> Iterator[None]:
        """Work of the first process only, whose failure is a failure of all.

        The body runs everywhere and has to look at :attr:`first` itself.

        Raises:
            Exception: what went wrong in the first process, in every process.
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
        """Work that every process does by itself: its failure in one is a failure of all.

        Raises:
            Exception: this process's own.
            CavmaeError: another one's.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:  # noqa: BLE001 - raised again
            error = raised
        told = [text for text in self.gather(None if error is None else str(error)) if text]
        if error is not None:
            raise error
        if told:
            raise CavmaeError(f"Another process could not go on: {told[0]}")


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        ctx.rows = len(x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # What every process's loss says of this process's rows.
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        first = dist.get_rank() * ctx.rows
        return gradient[first : first + ctx.rows]


def all_gather_rows(x: Tensor) -> Tensor:
    """The rows of all processes, with gradient: [N, ...] -> [processes * N, ...].

    Processes' losses count as added up; where gradients are then averaged over processes (DDP),
    that is the gradient of the mean of the losses. All must call it together, N being the same.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    found: Tensor = _Gather.apply(x)
    return found


def rank_offset(rows: int) -> int:
    """Where this process's rows begin in what :func:`everyone` gives."""
    return rows * dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
