"""Joint space-time attention: all tokens of all frames are one sequence."""

from torch import Tensor

from cavmae.pretrain.blocks import Attention
from cavmae.pretrain.temporal.base import TemporalAttention


class JointAttention(TemporalAttention):
    """Self-attention among the tokens of all frames of a clip.

    The baseline of TimeSformer (arXiv 2102.05095) and Motionformer (arXiv 2106.05392). It has no
    weights of its own: with those of a per-frame model each token attends to the other frames as to
    its own.
    """

    def mix_frames(self, x: Tensor, frames: int) -> Tensor:
        """See :meth:`TemporalAttention.mix_frames`."""
        return Attention.forward(self, x)
