"""Muon: momentum whose matrices are made orthogonal, beside AdamW for all other weights.

After K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with the
step size of J. Liu et al., "Muon is scalable for LLM training" (arXiv 2502.16982): an update has
the root mean square of one of AdamW, so that both take the same learning rate. Kernels of
convolutions are matrices of output channels by all else (PyTorch's own Muon takes no kernels).
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of Jordan et al.: steep at 0, so that few iterations do
LIKE_ADAMW = 0.2  # root mean square of AdamW's updates
LEAST_SIDE = 8  # of a matrix; narrower ones have hardly any directions to balance


def is_matrix(weight: Tensor) -> bool:
    """Whether a weight is a matrix or a kernel, and not a token, vectors or a depthwise kernel."""
    if weight.dim() < 2 or weight.shape[1] == 1:
        return False
    return min(weight.shape[0], weight[0].numel()) >= LEAST_SIDE


class Muon(torch.optim.AdamW):
    """AdamW, but Muon in groups with ``orthogonal``.

    Args:
        groups: of parameters, each with ``orthogonal``; its parameters are :func:`is_matrix`.
        lr: learning rate of both.
        betas: of AdamW.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float]):
        super().__init__(groups, lr, betas, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of all groups."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["orthogonal"]]
        try:
            loss: float | None = super().step(closure)
        finally:
            self.param_groups = groups
        # As of fused optimizers: a step that a GPU knows to be left out, without waiting for it.
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        kept = None if found_inf is None else 1 - found_inf
        for group in groups:
            if group["orthogonal"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._move(parameter, group["lr"], group["weight_decay"], kept)
        return loss

    def _move(self, parameter: nn.Parameter, lr: float, decay: float, kept: Tensor | None) -> None:
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
            state["step"] = torch.zeros(())  # which AdamW looks for when it loads any state
        rate: float | Tensor = lr
        share: float | Tensor = 1 - MOMENTUM
        if kept is not None:  # 0 or 1
            gradient = gradient.where(kept > 0, 0)
            rate, share = lr * kept, (1 - MOMENTUM) * kept
        momentum: Tensor = state["momentum"].lerp_(gradient, share)
        matrix = gradient.lerp(momentum, MOMENTUM).flatten(1)  # as Nesterov
        update = orthogonalized(matrix).view_as(parameter)
        parameter.mul_(1 - rate * decay)
        parameter.sub_(update * (rate * LIKE_ADAMW * math.sqrt(max(matrix.shape))))


def orthogonalized(matrix: Tensor) -> Tensor:
    """Matrix [M, K] with singular values near 1 (0.7 to 1.2) and about the same singular vectors.

    By Newton-Schulz iterations in bfloat16, in the type of the matrix.
    """
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)
