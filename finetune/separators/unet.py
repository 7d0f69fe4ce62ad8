"""A complex U-Net with `query` fusion, after IQuery (Chen et al., CVPR 2023).

IQuery multiplies a map of 32 channels of a magnitude U-Net with one embedding of each source. Here
the spectrum is complex and the embedding varies in time, as a static vector cannot follow speech.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.separators.base import MaskEstimator, MixtureFeatures, at_spectrum_rate
from cavmae.finetune.speaker.motion import groups_of
from cavmae.finetune.speaker.stft import BINS

LEVELS = (1, 2, 4, 6, 8, 8)  # channels of each level, in multiples of the first
POSITIONS = 8  # channels of sines and cosines of a bin's frequency
BANDS = 32  # frequency bands of the additive gain
LATENT_LEVEL = 1  # two halvings of time give 25 frames a second


class Down(nn.Module):
    """Downsampling by 2: a convolution with a kernel of 4 and a stride of 2."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1)
        self.norm = nn.GroupNorm(groups_of(out_channels), out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, C, B, T] -> [N, C', B / 2, T / 2]."""
        return functional.gelu(self.norm(self.conv(x)))


class Up(nn.Module):
    """Upsampling by 2: bilinear interpolation, then a convolution with the skip features."""

    def __init__(self, channels: int, skip_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels + skip_channels, out_channels, 3, padding=1)
        self.norm = nn.GroupNorm(groups_of(out_channels), out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Features [N, C, B, T] and skip features [N, C', 2 B, 2 T] -> [N, C'', 2 B, 2 T]."""
        size = skip.shape[-2:]
        x = functional.interpolate(x, size, mode="bilinear", align_corners=False)
        return functional.gelu(self.norm(self.conv(torch.cat([x, skip], dim=1))))


class ComplexUNet(MaskEstimator):
    """Complex U-Net of six levels; its map has twice the channels of the first level.

    Args:
        width: D.
        channels: of the first level.
    """

    fusion = "query"
    least_frames = 2 ** len(LEVELS)

    def __init__(self, width: int, channels: int):
        super().__init__()
        sizes = [channels * level for level in LEVELS]
        self.downs = nn.ModuleList(map(Down, [3 + POSITIONS, *sizes], sizes))
        up_sizes = [*sizes[-2:0:-1], 2 * channels]
        self.ups = nn.ModuleList(map(Up, [sizes[-1], *up_sizes], sizes[-2::-1], up_sizes))
        # The last upsampling has the most positions: a single linear layer keeps it cheap.
        self.last = nn.ConvTranspose2d(2 * channels, 2 * channels, 4, stride=2, padding=1)
        self.latent_width = 4 * width
        bands = BINS >> (LATENT_LEVEL + 1)
        self.latent_proj = nn.Linear(sizes[LATENT_LEVEL] * bands, self.latent_width)
        self.query = nn.Linear(width, 2 * 2 * channels)
        self.offset = nn.Linear(width, 2 * BANDS)
        self.scale = (2 * channels) ** -0.5
        # Convolutions are frequency-invariant, speech is not.
        angle = torch.pi * torch.arange(1, POSITIONS // 2 + 1)[:, None] * torch.arange(BINS) / BINS
        positions = torch.cat([angle.sin(), angle.cos()])[None, :, :, None]
        self.register_buffer("positions", positions, persistent=False)

    def encode_mixture(self, spectrum: Tensor) -> MixtureFeatures:
        """See :meth:`MaskEstimator.encode_mixture`; its features are the map [N, 2 C, B, T]."""
        magnitude = spectrum.square().sum(dim=1, keepdim=True).add(1e-6).sqrt()
        positions = cast(Tensor, self.positions).to(spectrum.dtype)
        positions = positions.expand(len(spectrum), -1, -1, spectrum.shape[-1])
        levels = [torch.cat([spectrum, magnitude, positions], dim=1)]  # [N, 3 + POSITIONS, B, T]
        for down in self.downs:
            levels.append(down(levels[-1]))
        x = levels[-1]
        for up, skip in zip(self.ups, levels[-2:0:-1], strict=True):
            x = up(x, skip)
        # [N, T', channels * bands]
        banded = levels[LATENT_LEVEL + 1].flatten(1, 2).transpose(1, 2)
        return MixtureFeatures(self.latent_proj(banded), self.last(x))

    def estimate_masks(self, features: MixtureFeatures, voices: Tensor) -> Tensor:
        """See :meth:`MaskEstimator.estimate_masks`."""
        frames = features.features.shape[-1]
        queries = at_spectrum_rate(self.query(voices), frames)
        queries = queries.unflatten(2, (2, -1))  # [N, K, 2, 2 C, T]
        masks = torch.einsum("nkpct,ncbt->nkpbt", queries * self.scale, features.features)
        # Lip shapes and the level of a voice determine whole bands: an additive term of few bands.
        bands = at_spectrum_rate(self.offset(voices), frames)
        bands = bands.unflatten(2, (2, BANDS)).flatten(0, 1)  # [N K, 2, BANDS, T]
        bands = functional.interpolate(bands, (BINS, frames), mode="bilinear", align_corners=False)
        return masks + bands.unflatten(0, voices.shape[:2])
