"""Complex U-Net whose decoder is modulated by the embedding of each voice.

The U-Net of IQuery (Chen et al., CVPR 2023) as in :mod:`cavmae.finetune.separators.unet`, with two
differences: every level of the decoder is modulated (FiLM; Perez et al., AAAI 2018), so that each
voice has a decoder pass of its own instead of a product with the last map; and its STFT has a
window of 32 ms and a hop of 16 ms, which resolves the harmonics of low voices at 0.6 of the cost.
The last of six levels halves bins only. Upsampling is by sub-pixel convolutions (Shi et al., CVPR
2016), the last one gives the masks: on a CPU a hidden layer at the full resolution took as long as
all the rest. Convolutions of skip features are computed once for all voices.

Shapes: N mixtures, K voices, C channels, B bins, T' frames.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.separators.base import MixtureFeatures, VoiceSeparator
from cavmae.finetune.separators.layers import VIDEO_FRAME, activated, at_frame_rate, groups_of
from cavmae.finetune.separators.settings import FiLMUNetOptions
from cavmae.finetune.separators.stft import STFT
from cavmae.finetune.separators.unet import LEVELS, POSITIONS, Down, bin_positions

RESOLUTION = STFT(512, 512, 256)
INPUTS = 3  # channels: compressed real and imaginary part, and their magnitude
FRAME_MULTIPLE = 2 ** (len(LEVELS) - 1)  # frames of the coarsest level
MASK_FACTOR = 2  # of the masks' resolution over that of the last features
LATENT_LEVEL = 1  # its frames, of 64 ms, are interpolated to 25 a second


class SubPixelUp(nn.Module):
    """Modulation, a sub-pixel convolution, plus a convolution of skip features.

    Args:
        channels: of the input.
        skip_channels: of the skip features.
        out_channels: of the output.
        factors: of the resolution of bins and of frames.
    """

    def __init__(
        self, channels: int, skip_channels: int, out_channels: int, factors: tuple[int, int]
    ):
        super().__init__()
        self.factors = factors
        self.conv = nn.Conv2d(channels, math.prod(factors) * out_channels, 3, padding=1)
        self.skip_conv = nn.Conv2d(skip_channels, out_channels, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(groups_of(out_channels), out_channels)

    def forward(self, x: Tensor, modulation: Tensor, skip: Tensor) -> Tensor:
        """Features of voices [N K, C, B, T'] at a higher resolution: [N K, C'', f B, g T'].

        Args:
            x: features of voices.
            modulation: scale and offset of each channel and frame, [N K, 2 C, T'].
            skip: features of mixtures [N, C', f B, g T'].
        """
        scale, offset = modulation[:, :, None].chunk(2, dim=1)
        x = sub_pixels(self.conv(x * (1 + scale) + offset), self.factors)
        x = x.unflatten(0, (len(skip), -1)) + self.skip_conv(skip)[:, None]
        return activated(x.flatten(0, 1), self.norm)


def sub_pixels(x: Tensor, factors: tuple[int, int]) -> Tensor:
    """Channels as positions between positions: [N, C f g, B, T'] -> [N, C, f B, g T']."""
    rows, columns = factors
    if rows == columns == 1:
        return x
    x = x.unflatten(1, (-1, rows, columns)).permute(0, 1, 4, 2, 5, 3)
    return x.flatten(4, 5).flatten(2, 3)


def covered(frames: int, level_frames: int, padded: int) -> int:
    """Frames of a level of a padded mixture that begin before the mixture's end."""
    return -(-frames * level_frames // padded)


class FiLMUNet(VoiceSeparator):
    """U-Net of six levels with a modulated decoder; see the module's docstring.

    Args:
        options: of the entry.
        width: D.
    """

    stft = RESOLUTION
    least_samples = RESOLUTION.hop * 2 ** (len(LEVELS) - 1)

    def __init__(self, options: FiLMUNetOptions, width: int):
        super().__init__()
        channels = options.width
        sizes = [channels * level for level in LEVELS]
        last = len(sizes) - 1
        self.downs = nn.ModuleList(
            Down(inputs, size, over_time=level < last)
            for level, (inputs, size) in enumerate(
                zip([INPUTS + POSITIONS, *sizes[:-1]], sizes, strict=True)
            )
        )
        # From the coarsest level to the first, and once more beside the spectrum itself.
        outputs = [*sizes[-2:0:-1], 2 * channels, 2 * channels]
        skips = [*sizes[-2::-1], INPUTS * MASK_FACTOR**2]
        factors = [(2, 1), *[(2, 2)] * (last - 1), (1, 1)]
        self.ups = nn.ModuleList(map(SubPixelUp, [sizes[-1], *outputs], skips, outputs, factors))
        self.films = nn.ModuleList(
            nn.Linear(width, 2 * size) for size in [sizes[-1], *outputs[:-1]]
        )
        self.mask_head = nn.Conv2d(2 * channels, 2 * MASK_FACTOR**2, 3, padding=1)
        self.latent_width = 4 * width
        bands = self.stft.bins >> (LATENT_LEVEL + 1)
        self.latent_proj = nn.Linear(sizes[LATENT_LEVEL] * bands, self.latent_width)
        self.register_buffer("positions", bin_positions(self.stft.bins), persistent=False)

    def encode_mixture(self, mixture: Tensor) -> MixtureFeatures:
        """See :meth:`VoiceSeparator.encode_mixture`; its features are frames and levels' maps."""
        frames = mixture.shape[-1]
        mixture = functional.pad(mixture, (0, -frames % FRAME_MULTIPLE))
        magnitude = mixture.square().sum(dim=1, keepdim=True).add(1e-6).sqrt()
        spectrum = torch.cat([mixture, magnitude], dim=1)  # [N, INPUTS, B, T']
        positions = cast(Tensor, self.positions).to(mixture.dtype)
        positions = positions.expand(len(mixture), -1, -1, mixture.shape[-1])
        levels = [torch.cat([spectrum, positions], dim=1)]
        for down in self.downs:
            levels.append(down(levels[-1]))
        banded = levels[LATENT_LEVEL + 1].flatten(1, 2).transpose(1, 2)  # [N, T' / 4, ...]
        banded = banded[:, : covered(frames, banded.shape[1], mixture.shape[-1])]
        video_frames = frames * self.stft.hop // VIDEO_FRAME
        latent = at_frame_rate(self.latent_proj(banded)[:, None], video_frames)[:, 0].mT
        pixels = functional.pixel_unshuffle(spectrum, MASK_FACTOR)  # beside the first level
        return MixtureFeatures(latent, (frames, [pixels, *levels[1:]]))

    def estimate(
        self, features: MixtureFeatures, voices: Tensor, visible: Tensor | None = None
    ) -> Tensor:
        """See :meth:`VoiceSeparator.estimate`."""
        n, k = voices.shape[:2]
        frames, (*skips, x) = features.map
        x = x[:, None].expand(-1, k, -1, -1, -1).flatten(0, 1)
        padded = x.shape[-1] * FRAME_MULTIPLE

        for up, film, skip in zip(self.ups, self.films, skips[::-1], strict=True):
            count = covered(frames, x.shape[-1], padded)
            modulation = at_frame_rate(film(voices), count).flatten(0, 1)  # [N K, 2 C, count]
            modulation = functional.pad(modulation, (0, x.shape[-1] - count), mode="replicate")
            x = up(x, modulation, skip)
        masks = functional.pixel_shuffle(self.mask_head(x), MASK_FACTOR)
        return masks[..., :frames].unflatten(0, (n, k))
