"""Feature-wise linear modulation of a map by embeddings (FiLM, Perez et al., AAAI 2018).

As in the paper the modulation stands between a layer and its nonlinearity, arXiv 1709.07871.
Difference: scale and offset vary in time, as a static vector cannot follow speech.
"""

from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.separators.fusions.base import Fusion
from cavmae.finetune.separators.layers import at_frame_rate
from cavmae.finetune.separators.settings import FiLMOptions


class FiLMFusion(Fusion):
    """FiLM fusion; see :class:`Fusion` for the arguments.

    The layer before the modulation is computed once for all voices.
    """

    def __init__(self, options: FiLMOptions, width: int, channels: int, outputs: int):
        super().__init__()
        hidden = options.width or channels
        self.map_proj = nn.Conv2d(channels, hidden, 1)
        self.film = nn.Linear(width, 2 * hidden)
        self.last = nn.Conv2d(hidden, outputs, 1)

    def forward(self, x_ncbt: Tensor, voices: Tensor, visible: Tensor | None = None) -> Tensor:
        """See :meth:`Fusion.forward`."""
        modulation = at_frame_rate(self.film(voices), x_ncbt.shape[-1])[..., None, :]
        scale, offset = modulation.chunk(2, dim=2)  # [N, K, hidden, 1, T'] each
        hidden = self.map_proj(x_ncbt)[:, None] * (1 + scale) + offset
        fused: Tensor = self.last(functional.gelu(hidden.flatten(0, 1)))
        return fused.unflatten(0, voices.shape[:2])
