"""Trajectory attention (Motionformer): to each frame by itself, then along the path over time.

Patrick et al., *Keeping Your Eye on the Ball: Trajectory Attention in Video Transformers*, NeurIPS
2021, arXiv 2106.05392. There is no class token here; the patches do not depend on it.

Shapes: N clips, H heads, F frames, K tokens of a frame, L = F K, D width, E = D / H.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.pretrain.temporal.base import TemporalAttention
from cavmae.pretrain.temporal.settings import TrajectoryOptions


def attend_each_frame(q: Tensor, k: Tensor, v: Tensor, frames: int) -> Tensor:
    """Attention of every token to the tokens of each frame, a softmax per frame.

    Args:
        q, k, v: [N, H, L, E], frame after frame.
        frames: F.

    Returns:
        [N, F, H, L, E]: what each token gathers in each frame.
    """
    q_nfhle = q[:, None].expand(-1, frames, -1, -1, -1)
    k_nfhke, v_nfhke = (x.unflatten(2, (frames, -1)).transpose(1, 2) for x in (k, v))
    return functional.scaled_dot_product_attention(q_nfhle, k_nfhke, v_nfhke)


def own_frame(y: Tensor) -> Tensor:
    """What each token gathers in its own frame: [N, L, F, D] -> [N, L, D]."""
    y_nfkgd = y.unflatten(1, (y.shape[2], -1))
    return y_nfkgd.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).flatten(1, 2)


class TrajectoryAttention(TemporalAttention):
    """Trajectory attention; see the module's docstring.

    The projections of the attention over time start as the identity: with the weights of a
    per-frame model each token at the start is the mean of what that model gathers for it in each
    frame, weighted by its similarity with what it gathers in its own.

    Args:
        options: of the entry.
        width: of a token.
        heads: among which the width is divided.
    """

    def __init__(self, options: TrajectoryOptions, width: int, heads: int):
        super().__init__(options, width, heads)
        self.time_q = nn.Linear(width, width)
        # A bias of the keys adds the same to all logits of a query, which the softmax undoes.
        self.time_k = nn.Linear(width, width, bias=False)
        self.time_v = nn.Linear(width, width) if options.project_values else None
        for linear in (self.time_q, self.time_k, self.time_v):
            if linear is not None:
                nn.init.eye_(linear.weight)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)

    def mix_frames(self, x: Tensor, frames: int) -> Tensor:
        """See :meth:`TemporalAttention.mix_frames`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y_nfhle = self.attend_frames(q, k, v, frames)
        y_nlfd = y_nfhle.permute(0, 3, 1, 2, 4).flatten(3)
        projected: Tensor = self.proj(self.attend_time(y_nlfd))
        return projected

    def attend_frames(self, q: Tensor, k: Tensor, v: Tensor, frames: int) -> Tensor:
        """First stage; see :func:`attend_each_frame`."""
        return attend_each_frame(q, k, v, frames)

    def attend_time(self, y: Tensor) -> Tensor:
        """Second stage, attention over the frames of a trajectory: [N, L, F, D] -> [N, L, D].

        Keys and values are linear in ``y``, so their projections are applied to the query and to
        the mean over time instead: L tokens are projected and not L F.
        """
        q_nlhe = self.time_q(own_frame(y)).unflatten(-1, (self.heads, -1))
        k_hed = self.time_k.weight.unflatten(0, (self.heads, -1))
        q_nlhd = torch.einsum("nlhe,hed->nlhd", q_nlhe, k_hed) * q_nlhe.shape[-1] ** -0.5
        weights = (q_nlhd @ y.transpose(2, 3)).softmax(dim=-1)  # [N, L, H, F]
        if self.time_v is None:
            y_nlhfe = y.unflatten(-1, (self.heads, -1)).transpose(2, 3)
            return (weights[..., None, :] @ y_nlhfe).flatten(2)
        v_hed = self.time_v.weight.unflatten(0, (self.heads, -1))
        mean = torch.einsum("nlhd,hed->nlhe", weights @ y, v_hed).flatten(2)
        return mean + self.time_v.bias
