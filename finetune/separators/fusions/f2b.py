"""Frame-to-bin fusion: every time-frequency bin of a map attends to the frames of an embedding.

The matrix of weights, as many rows as there are bins in all frames, is never written: attention is
fused. With a stride the queries are means over blocks of bins and frames, since an embedding has a
quarter of the map's frames anyway.
"""

from torch import Tensor
from torch.nn import functional

from cavmae.finetune.separators.fusions.base import Fusion
from cavmae.finetune.separators.fusions.cross_attention import (
    CrossAttention,
    UpdatedMapHead,
    query_times,
)
from cavmae.finetune.separators.settings import F2BOptions


class F2BFusion(Fusion):
    """f2b fusion; see :class:`Fusion` for the arguments."""

    def __init__(self, options: F2BOptions, width: int, channels: int, outputs: int):
        super().__init__()
        self.stride = options.stride
        self.attention = CrossAttention(channels, width, options.heads, options.head_width, 1)
        self.head = UpdatedMapHead(channels, outputs)

    def forward(self, x_ncbt: Tensor, voices: Tensor, visible: Tensor | None = None) -> Tensor:
        """See :meth:`Fusion.forward`."""
        blocks = functional.avg_pool2d(x_ncbt, self.stride, ceil_mode=True)  # [N, C, b, t]
        bins, frames = blocks.shape[-2:]
        times = query_times(frames, voices.shape[2], voices.device).repeat(bins)  # [b t]
        update = self.attention(blocks.flatten(2)[:, :, None], times, voices, visible)
        outputs: Tensor = self.head(x_ncbt, update[:, :, :, 0].unflatten(-1, (bins, frames)))
        return outputs
