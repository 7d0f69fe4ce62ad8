"""Guard against non-finite steps: counts them, and ends a run after too many in a row."""

from collections import deque
from typing import Any

import torch
from torch import Tensor

from cavmae.common.errors import CavmaeError
from cavmae.pretrain.engine.distributed import DistEnv


def skip_step_if(optimizer: torch.optim.Optimizer, nonfinite: Tensor) -> None:
    """Makes a fused optimizer skip its next step on the device, without a synchronisation.

    ``found_inf`` is what ``torch.amp.GradScaler`` sets for fused optimizers: internal to PyTorch,
    so only this function knows of it. Other optimizers ignore it.

    Args:
        optimizer: of PyTorch, with ``fused=True``.
        nonfinite: bool [], on the device: whether to skip.
    """
    optimizer.found_inf = nonfinite.float()  # type: ignore[attr-defined]


class NonFiniteGuard:
    """Checks each step one step late, without a synchronisation with the device.

    A step is non-finite in all processes or in none, since gradients are averaged.

    Args:
        allowed: number of non-finite steps in a row that ends the run.
        processes: of the run.
    """

    def __init__(self, allowed: int, processes: DistEnv):
        self.skipped = 0
        self._in_row = 0
        self._allowed, self._processes = allowed, processes
        self._pending: Tensor | None = None
        self._copied: torch.cuda.Event | None = None
        self._keys: deque[list[str]] = deque(maxlen=allowed)

    def record(self, bad: Tensor, keys: list[str]) -> None:
        """Records a step, made or skipped.

        Args:
            bad: bool on the device: the gradient was not finite.
            keys: of this process's clips in the step.
        """
        self._pending, self._copied = bad, None
        if bad.is_cuda:  # copied while the device works on
            self._pending = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._pending.copy_(bad, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        self._keys.append(keys)

    def check(self) -> None:
        """Counts the last step, once.

        Raises:
            CavmaeError: too many steps in a row were not finite.
        """
        if self._pending is None:
            return
        if self._copied is not None:
            self._copied.synchronize()
        bad, self._pending = bool(self._pending), None
        self._in_row = self._in_row + 1 if bad else 0
        self.skipped += bad
        if self._in_row < self._allowed:
            return
        keys = self._processes.gather(list(self._keys))
        batches = "; ".join(", ".join(batch) for own in keys for batch in own)
        raise CavmaeError(
            f"{self._in_row} steps in a row had a loss or gradient that is not finite; the last "
            f"batches: {batches}. The weights are untouched by them: look at those clips (`cavmae "
            "check`), lower optimizer.lr, or use bf16 instead of fp16."
        )

    def state_dict(self) -> dict[str, Any]:
        """JSON values, up to the last checked step."""
        return {"skipped": self.skipped, "in_row": self._in_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self.skipped, self._in_row = state["skipped"], state["in_row"]
