"""Divided space-time attention (TimeSformer): over time, then within each frame.

Bertasius et al., *Is Space-Time Attention All You Need for Video Understanding?*, ICML 2021, arXiv
2102.05095. There each of both attentions has a norm and a residual connection of its own; here both
are one branch behind the block's norm, so that a block stays the same for every attention.
"""

from torch import Tensor, nn

from cavmae.pretrain.blocks import Attention
from cavmae.pretrain.temporal.base import TemporalAttention
from cavmae.pretrain.temporal.settings import DividedOptions


class DividedAttention(TemporalAttention):
    """Attention to the same patch in all frames, then to all patches of the frame.

    The output projection of the attention over time starts at 0, as in TimeSformer: with the
    weights of a per-frame model it is that model at the start.

    Args:
        options: none.
        width: of a token.
        heads: among which the width is divided.
    """

    def __init__(self, options: DividedOptions, width: int, heads: int):
        super().__init__(options, width, heads)
        self.time = Attention(width, heads)
        nn.init.xavier_uniform_(self.time.qkv.weight)
        for zero in (self.time.qkv.bias, self.time.proj.weight, self.time.proj.bias):
            nn.init.zeros_(zero)

    def mix_frames(self, x: Tensor, frames: int) -> Tensor:
        """See :meth:`TemporalAttention.mix_frames`; token k is the same patch in every frame."""
        n = len(x)
        x_nfkd = x.unflatten(1, (frames, -1))
        tracks = x_nfkd.transpose(1, 2).flatten(0, 1)  # [N K, F, D]
        over_time = self.time(tracks).unflatten(0, (n, -1)).transpose(1, 2)  # [N, F, K, D]
        within = Attention.forward(self, (x_nfkd + over_time).flatten(0, 1))  # [N F, K, D]
        return (over_time + within.unflatten(0, (n, frames))).flatten(1, 2)
