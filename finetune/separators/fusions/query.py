"""Product of a map with queries, after IQuery (Chen et al., CVPR 2023).

IQuery multiplies a map of 32 channels with one embedding of each source. Here the embedding varies
in time, as a static vector cannot follow speech, and a gain of few bands is added: lip shapes and
the level of a voice determine whole bands.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.separators.fusions.base import Fusion
from cavmae.finetune.separators.layers import at_frame_rate
from cavmae.finetune.separators.settings import QueryOptions


class QueryFusion(Fusion):
    """Query fusion; see :class:`Fusion` for the arguments."""

    def __init__(self, options: QueryOptions, width: int, channels: int, outputs: int):
        super().__init__()
        self.outputs, self.bands = outputs, options.bands
        self.query = nn.Linear(width, outputs * channels)
        if options.bands:
            self.offset = nn.Linear(width, outputs * options.bands)
        self.scale = channels**-0.5

    def forward(self, x_ncbt: Tensor, voices: Tensor, visible: Tensor | None = None) -> Tensor:
        """See :meth:`Fusion.forward`."""
        bins, frames = x_ncbt.shape[-2:]
        queries = at_frame_rate(self.query(voices), frames)
        queries = queries.unflatten(2, (self.outputs, -1))  # [N, K, P, C, T']
        fused = torch.einsum("nkpct,ncbt->nkpbt", queries * self.scale, x_ncbt)
        if not self.bands:
            return fused
        bands = at_frame_rate(self.offset(voices), frames)
        bands = bands.unflatten(2, (self.outputs, self.bands)).flatten(0, 1)  # [N K, P, bands, T']
        bands = functional.interpolate(bands, (bins, frames), mode="bilinear", align_corners=False)
        return fused + bands.unflatten(0, voices.shape[:2])
