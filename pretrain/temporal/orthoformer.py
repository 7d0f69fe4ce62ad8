"""Orthoformer: trajectory attention whose first stage goes by way of a few prototypes.

Patrick et al., *Keeping Your Eye on the Ball*, NeurIPS 2021, arXiv 2106.05392, section 3.3. The
approximation is not exact, not even with all queries as prototypes.

Shapes: as in :mod:`cavmae.pretrain.temporal.trajectory`; R prototypes.
"""

import torch
from torch import Tensor
from torch.nn import functional

from cavmae.pretrain.temporal.settings import OrthoformerOptions
from cavmae.pretrain.temporal.trajectory import TrajectoryAttention


@torch.compiler.disable  # else a compiler unrolls the loop
@torch.no_grad()
def choose_prototypes(q: Tensor, first: Tensor, count: int) -> Tensor:
    """Greedy choice of nearly orthogonal queries.

    The next one always is the query whose largest absolute cosine to those chosen is the smallest;
    the earliest of several.

    Args:
        q: [B, L, E].
        first: int64 [B], numbers of the first prototypes.
        count: R, at most L.

    Returns:
        int64 [B, R]: numbers of the prototypes, in the order of their choice.
    """
    rows = torch.arange(len(q), device=q.device)
    unit = functional.normalize(q.float(), dim=-1)
    columns = unit.transpose(1, 2).contiguous()  # [B, E, L]: a product by rows is the faster one
    largest = torch.zeros(unit.shape[:2], device=q.device)
    chosen = torch.empty(len(q), count, dtype=torch.int64, device=q.device)
    chosen[:, 0] = first
    for number in range(1, count):
        latest = chosen[:, number - 1]
        cosine = torch.bmm(unit[rows, latest][:, None], columns)[:, 0]
        largest = torch.maximum(largest, cosine.abs_())
        largest[rows, latest] = float("inf")  # no query is chosen twice
        chosen[:, number] = largest.argmin(dim=1)
    return chosen


def attend_by_prototypes(
    q: Tensor, k: Tensor, v: Tensor, prototypes: Tensor, frames: int
) -> Tensor:
    """Attention of every token to each frame through prototypes, which all frames share.

    Args:
        q, k, v: [N, H, L, E], frame after frame.
        prototypes: [N, H, R, E].
        frames: F.

    Returns:
        [N, F, H, L, E], as :func:`~cavmae.pretrain.temporal.trajectory.attend_each_frame`.
    """
    attend = functional.scaled_dot_product_attention
    p_nfhre = prototypes[:, None].expand(-1, frames, -1, -1, -1)
    k_nfhke, v_nfhke = (x.unflatten(2, (frames, -1)).transpose(1, 2) for x in (k, v))
    gathered = attend(p_nfhre, k_nfhke, v_nfhke)  # [N, F, H, R, E]
    # The weights of tokens over prototypes are the same for all frames, whose values lie side by
    # side.
    spread = attend(q, prototypes, gathered.permute(0, 2, 3, 1, 4).flatten(3))  # [N, H, L, F E]
    return spread.unflatten(-1, (frames, -1)).permute(0, 3, 1, 2, 4)


class OrthoformerAttention(TrajectoryAttention):
    """Trajectory attention by prototypes; see the module's docstring.

    Prototypes are queries of the clip, chosen without gradient for each head and shared by its
    frames. The first one is random in training, from PyTorch's own generator, which resumes with a
    run; else it is the longest query, so that the order of the frames does not matter. It starts as
    :class:`~cavmae.pretrain.temporal.trajectory.TrajectoryAttention`, approximately.

    Args:
        options: of the entry.
        width: of a token.
        heads: among which the width is divided.
    """

    def __init__(self, options: OrthoformerOptions, width: int, heads: int):
        super().__init__(options, width, heads)
        self.prototypes = options.prototypes

    def attend_frames(self, q: Tensor, k: Tensor, v: Tensor, frames: int) -> Tensor:
        """First stage; see :func:`attend_by_prototypes`."""
        return attend_by_prototypes(q, k, v, self._prototypes(q), frames)

    def _prototypes(self, q: Tensor) -> Tensor:
        """Chosen queries: [N, H, L, E] -> [N, H, R, E], without gradient."""
        queries = q.detach().flatten(0, 1)
        batch, tokens, width = queries.shape
        if self.training:
            first = torch.randint(tokens, (batch,), device=q.device)
        else:
            first = queries.norm(dim=-1).argmax(dim=-1)
        chosen = choose_prototypes(queries, first, min(self.prototypes, tokens))
        prototypes = queries.gather(1, chosen[..., None].expand(-1, -1, width))
        return prototypes.unflatten(0, q.shape[:2])
