"""Attention within each frame: tokens of different frames do not mix."""

from torch import Tensor

from cavmae.pretrain.blocks import Attention
from cavmae.pretrain.temporal.base import TemporalAttention


class PerFrameAttention(TemporalAttention):
    """Self-attention among the tokens of each frame by itself."""

    def mix_frames(self, x: Tensor, frames: int) -> Tensor:
        """See :meth:`TemporalAttention.mix_frames`: frames are folded into the batch."""
        folded = x.unflatten(1, (frames, -1)).flatten(0, 1)  # [N F, K, D]
        attended = Attention.forward(self, folded)
        return attended.unflatten(0, (len(x), frames)).flatten(1, 2)
