"""Base of separators that make a map of the mixture's spectrum and fuse voices with it.

Shapes: N mixtures, C channels, B bins, T' frames, T frames of 40 ms.
"""

import abc

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.separators.base import MixtureFeatures, VoiceSeparator
from cavmae.finetune.separators.layers import at_video_rate, groups_of
from cavmae.finetune.separators.settings import FUSIONS, FusionOptions
from cavmae.finetune.separators.stft import STFT

INPUTS = 3  # channels: compressed real and imaginary part, and their magnitude
MAP_CHANNELS = 32  # of the map that voices are fused with


class MapSeparator(VoiceSeparator, abc.ABC):
    """Separator whose trunk sees the mixture only, and whose voices enter by a fusion.

    A convolution makes the map of what the trunk gives and of its input: a mask follows single
    harmonics, which need not pass through the trunk.

    Args:
        fusion: of the map with the embedding of a voice.
        width: D.
        channels: of what the trunk gives.
        bottleneck_width: features of a frame of the trunk's bottleneck.
    """

    stft = STFT(512, 512, 256)
    least_samples = 2560

    def __init__(self, fusion: FusionOptions, width: int, channels: int, bottleneck_width: int):
        super().__init__()
        self.last = nn.Conv2d(INPUTS + channels, MAP_CHANNELS, 3, padding=1)
        self.norm = nn.GroupNorm(groups_of(MAP_CHANNELS), MAP_CHANNELS)
        self.latent_width = 2 * width
        self.latent_proj = nn.Linear(bottleneck_width, self.latent_width)
        self.fusion = FUSIONS.build(fusion, width, MAP_CHANNELS, 2)

    @abc.abstractmethod
    def forward_trunk(self, x_ncbt: Tensor) -> tuple[Tensor, Tensor]:
        """Trunk: spectra [N, 3, B, T'] -> [N, C, B, T'], and its bottleneck [N, T', features]."""

    def encode_mixture(self, mixture: Tensor) -> MixtureFeatures:
        """See :meth:`VoiceSeparator.encode_mixture`; its features are the map [N, C, B, T']."""
        magnitude = mixture.square().sum(dim=1, keepdim=True).add(1e-6).sqrt()
        x = torch.cat([mixture, magnitude], dim=1)
        out, bottleneck = self.forward_trunk(x)
        latent = at_video_rate(self.latent_proj(bottleneck), self.stft.hop)
        fused = self.norm(self.last(torch.cat([x, out], dim=1)))
        return MixtureFeatures(latent, functional.gelu(fused))

    def estimate(
        self, features: MixtureFeatures, voices: Tensor, visible: Tensor | None = None
    ) -> Tensor:
        """See :meth:`VoiceSeparator.estimate`."""
        masks: Tensor = self.fusion(features.map, voices, visible)
        return masks
