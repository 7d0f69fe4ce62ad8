"""Concatenation of a map with embeddings, as separators that are conditioned on a speaker do.

The conditioning of Looking to Listen (Ephrat et al., SIGGRAPH 2018) and VoiceFilter (Wang et al.,
Interspeech 2019), for each bin of a map.
"""

from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.separators.fusions.base import Fusion
from cavmae.finetune.separators.layers import at_frame_rate
from cavmae.finetune.separators.settings import ConcatOptions


class ConcatFusion(Fusion):
    """Concat fusion; see :class:`Fusion` for the arguments.

    The first layer of a concatenation is the sum of a layer for each part, so that the map's is
    computed once for all voices.
    """

    def __init__(self, options: ConcatOptions, width: int, channels: int, outputs: int):
        super().__init__()
        hidden = options.width or channels
        self.map_proj = nn.Conv2d(channels, hidden, 1)
        self.voice_proj = nn.Linear(width, hidden)
        self.last = nn.Conv2d(hidden, outputs, 1)

    def forward(self, x_ncbt: Tensor, voices: Tensor, visible: Tensor | None = None) -> Tensor:
        """See :meth:`Fusion.forward`."""
        embeddings = at_frame_rate(self.voice_proj(voices), x_ncbt.shape[-1])  # [N, K, hidden, T']
        hidden = self.map_proj(x_ncbt)[:, None] + embeddings[..., None, :]
        fused: Tensor = self.last(functional.gelu(hidden.flatten(0, 1)))
        return fused.unflatten(0, voices.shape[:2])
