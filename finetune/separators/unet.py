"""A complex U-Net with `query` fusion, after IQuery (Chen et al., CVPR 2023).

There, a U-Net of magnitudes makes a map of 32 channels, and one embedding of each source is
multiplied with it. Here the spectrum is complex, and the embedding varies in time: one static
vector cannot follow speech.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.separators.base import MaskEstimator, MixtureFeatures, at_spectrum_rate
from cavmae.finetune.speaker.motion import groups_of
from cavmae.finetune.speaker.stft import BINS

LEVELS = (1, 2, 4, 6, 8, 8)  # channels of each, in multiples of the first's
PLACES = 8  # channels that say which bin a place is: sines and cosines of its frequency
BANDS = 32  # in which a voice is turned up and down as a whole
LATENT_LEVEL = 1  # after two halvings of time there are 25 frames a second


class Down(nn.Module):
    """Half the size: a convolution with a kernel of 4 and a stride of 2."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.conv = nn.Conv2d(before, after, 4, stride=2, padding=1)
        self.norm = nn.GroupNorm(groups_of(after), after)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, B, T] -> [N, C', B / 2, T / 2]."""
        return functional.gelu(self.norm(self.conv(x)))


class Up(nn.Module):
    """Twice the size: bilinear, then a convolution of what comes from below and from beside."""

    def __init__(self, below: int, beside: int, after: int):
        super().__init__()
        self.conv = nn.Conv2d(below + beside, after, 3, padding=1)
        self.norm = nn.GroupNorm(groups_of(after), after)

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        """[N, C, B, T] and [N, C', 2 B, 2 T] -> [N, C'', 2 B, 2 T]."""
        size = beside.shape[-2:]
        x = functional.interpolate(x, size, mode="bilinear", align_corners=False)
        return functional.gelu(self.norm(self.conv(torch.cat([x, beside], dim=1))))


class ComplexUNet(MaskEstimator):
    """Six halvings and doublings; the map has twice the channels of the first level.

    Args:
        width: D.
        channels: of the first level.
    """

    fusion = "query"
    least_frames = 2 ** len(LEVELS)

    def __init__(self, width: int, channels: int):
        super().__init__()
        sizes = [channels * level for level in LEVELS]
        self.downs = nn.ModuleList(map(Down, [3 + PLACES, *sizes], sizes))
        after = [*sizes[-2:0:-1], 2 * channels]
        self.ups = nn.ModuleList(map(Up, [sizes[-1], *after], sizes[-2::-1], after))
        # The last doubling has most of the places, so it is a single linear map.
        self.last = nn.ConvTranspose2d(2 * channels, 2 * channels, 4, stride=2, padding=1)
        self.latent_width = 4 * width
        bands = BINS >> (LATENT_LEVEL + 1)
        self.flatten = nn.Linear(sizes[LATENT_LEVEL] * bands, self.latent_width)
        self.query = nn.Linear(width, 2 * 2 * channels)
        self.offset = nn.Linear(width, 2 * BANDS)
        self.scale = (2 * channels) ** -0.5
        # A convolution is the same at all frequencies; speech is not.
        angle = torch.pi * torch.arange(1, PLACES // 2 + 1)[:, None] * torch.arange(BINS) / BINS
        places = torch.cat([angle.sin(), angle.cos()])[None, :, :, None]
        self.register_buffer("places", places, persistent=False)

    def encode_mixture(self, spectrum: Tensor) -> MixtureFeatures:
        """See :meth:`MaskEstimator.encode_mixture`. Features: the map [N, C, B, T]."""
        size = spectrum.square().sum(dim=1, keepdim=True).add(1e-6).sqrt()
        places = cast(Tensor, self.places).to(spectrum.dtype)
        places = places.expand(len(spectrum), -1, -1, spectrum.shape[-1])
        levels = [torch.cat([spectrum, size, places], dim=1)]
        for down in self.downs:
            levels.append(down(levels[-1]))
        x = levels[-1]
        for up, beside in zip(self.ups, levels[-2:0:-1], strict=True):
            x = up(x, beside)
        banded = levels[LATENT_LEVEL + 1].flatten(1, 2).transpose(1, 2)  # [N, T', C * bands]
        return MixtureFeatures(self.flatten(banded), self.last(x))

    def estimate_masks(self, heard: MixtureFeatures, voices: Tensor) -> Tensor:
        """See :meth:`MaskEstimator.estimate_masks`."""
        frames = heard.features.shape[-1]
        asked = at_spectrum_rate(self.query(voices), frames).unflatten(
            2, (2, -1)
        )  # [N, K, 2, C, T]
        found = torch.einsum("nkpct,ncbt->nkpbt", asked * self.scale, heard.features)
        # What lips say of sounds' spectra, and how loud a voice is, is said of whole bands.
        bands = at_spectrum_rate(self.offset(voices), frames).unflatten(2, (2, BANDS)).flatten(0, 1)
        bands = functional.interpolate(bands, (BINS, frames), mode="bilinear", align_corners=False)
        return found + bands.unflatten(0, voices.shape[:2])
