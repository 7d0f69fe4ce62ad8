"""A complex U-Net, after IQuery (Chen et al., CVPR 2023), whose U-Net sees magnitudes only."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.separators.base import MixtureFeatures, VoiceSeparator
from cavmae.finetune.separators.layers import activated, groups_of
from cavmae.finetune.separators.settings import FUSIONS, UNetOptions
from cavmae.finetune.separators.stft import BINS, STANDARD

LEVELS = (1, 2, 4, 6, 8, 8)  # channels of each level, in multiples of the first
POSITIONS = 8  # channels of sines and cosines of a bin's frequency
LATENT_LEVEL = 1  # two halvings of time give 25 frames a second


class Down(nn.Module):
    """Downsampling by 2: a convolution with a kernel of 4 and a stride of 2.

    Args:
        in_channels: C.
        out_channels: C'.
        over_time: also over time, else over bins only, with a kernel of 3 over time.
    """

    def __init__(self, in_channels: int, out_channels: int, over_time: bool = True):
        super().__init__()
        kernel, stride = ((4, 4), (2, 2)) if over_time else ((4, 3), (2, 1))
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=1)
        self.norm = nn.GroupNorm(groups_of(out_channels), out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, C, B, T'] -> [N, C', B / 2, T' / 2], or T' frames."""
        return activated(self.conv(x), self.norm)


class Up(nn.Module):
    """Upsampling by 2: bilinear interpolation, then a convolution with the skip features."""

    def __init__(self, channels: int, skip_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels + skip_channels, out_channels, 3, padding=1)
        self.norm = nn.GroupNorm(groups_of(out_channels), out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Features [N, C, B, T'] and skip features [N, C', 2 B, 2 T'] -> [N, C'', 2 B, 2 T']."""
        size = skip.shape[-2:]
        x = functional.interpolate(x, size, mode="bilinear", align_corners=False)
        return activated(self.conv(torch.cat([x, skip], dim=1)), self.norm)


def bin_positions(bins: int) -> Tensor:
    """Sines and cosines of the frequency of bins: [1, POSITIONS, B, 1].

    Convolutions are frequency-invariant, speech is not.
    """
    angle = torch.pi * torch.arange(1, POSITIONS // 2 + 1)[:, None] * torch.arange(bins) / bins
    return torch.cat([angle.sin(), angle.cos()])[None, :, :, None]


class ComplexUNet(VoiceSeparator):
    """Complex U-Net of six levels; its map has twice the channels of the first level.

    Args:
        options: of the entry.
        width: D.
    """

    least_samples = STANDARD.hop * 2 ** len(LEVELS)

    def __init__(self, options: UNetOptions, width: int):
        super().__init__()
        channels = options.width
        sizes = [channels * level for level in LEVELS]
        self.downs = nn.ModuleList(map(Down, [3 + POSITIONS, *sizes], sizes))
        up_sizes = [*sizes[-2:0:-1], 2 * channels]
        self.ups = nn.ModuleList(map(Up, [sizes[-1], *up_sizes], sizes[-2::-1], up_sizes))
        # The last upsampling has the most positions: a single linear layer keeps it cheap.
        self.last = nn.ConvTranspose2d(2 * channels, 2 * channels, 4, stride=2, padding=1)
        self.latent_width = 4 * width
        bands = BINS >> (LATENT_LEVEL + 1)
        self.latent_proj = nn.Linear(sizes[LATENT_LEVEL] * bands, self.latent_width)
        self.fusion = FUSIONS.build(options.fusion, width, 2 * channels, 2)
        self.register_buffer("positions", bin_positions(BINS), persistent=False)

    def encode_mixture(self, mixture: Tensor) -> MixtureFeatures:
        """See :meth:`VoiceSeparator.encode_mixture`; its features are the map [N, 2 C, B, T']."""
        spectrum = mixture  # [N, 2, B, T'], T' a multiple of 4
        magnitude = spectrum.square().sum(dim=1, keepdim=True).add(1e-6).sqrt()
        positions = cast(Tensor, self.positions).to(spectrum.dtype)
        positions = positions.expand(len(spectrum), -1, -1, spectrum.shape[-1])
        levels = [torch.cat([spectrum, magnitude, positions], dim=1)]  # [N, 3 + POSITIONS, B, T']
        for down in self.downs:
            levels.append(down(levels[-1]))
        x = levels[-1]
        for up, skip in zip(self.ups, levels[-2:0:-1], strict=True):
            x = up(x, skip)
        # [N, T, channels * bands]
        banded = levels[LATENT_LEVEL + 1].flatten(1, 2).transpose(1, 2)
        return MixtureFeatures(self.latent_proj(banded), self.last(x))

    def estimate(
        self, features: MixtureFeatures, voices: Tensor, visible: Tensor | None = None
    ) -> Tensor:
        """See :meth:`VoiceSeparator.estimate`."""
        masks: Tensor = self.fusion(features.map, voices, visible)
        return masks
