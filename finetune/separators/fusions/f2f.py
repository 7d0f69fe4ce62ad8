"""Frame-to-frame fusion: every frame of a map attends to the frames of an embedding.

An attention row for each frame; values differ by frequency. A key and a value for every bin would
take 2 D h a B weights (100 M at D 768, h 4, a 32 and 512 bins), so bins share those of a sub-band:
the queries of a sub-band are the mean over its bins, its update is interpolated between bands.
"""

from torch import Tensor
from torch.nn import functional

from cavmae.finetune.separators.fusions.base import Fusion
from cavmae.finetune.separators.fusions.cross_attention import (
    CrossAttention,
    UpdatedMapHead,
    query_times,
)
from cavmae.finetune.separators.settings import F2FOptions


class F2FFusion(Fusion):
    """f2f fusion; see :class:`Fusion` for the arguments."""

    def __init__(self, options: F2FOptions, width: int, channels: int, outputs: int):
        super().__init__()
        self.bands = options.bands
        self.attention = CrossAttention(
            channels, width, options.heads, options.head_width, options.bands
        )
        self.head = UpdatedMapHead(channels, outputs)

    def forward(self, x_ncbt: Tensor, voices: Tensor, visible: Tensor | None = None) -> Tensor:
        """See :meth:`Fusion.forward`."""
        frames = x_ncbt.shape[-1]
        banded = functional.adaptive_avg_pool2d(x_ncbt, (self.bands, frames))  # [N, C, G, T']
        times = query_times(frames, voices.shape[2], voices.device)
        outputs: Tensor = self.head(x_ncbt, self.attention(banded, times, voices, visible))
        return outputs
