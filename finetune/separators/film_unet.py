"""Complex U-Net whose decoder is modulated by the embedding of each voice.

The U-Net of IQuery (Chen et al., CVPR 2023) as in :mod:`cavmae.finetune.separators.unet`, with two
differences: every level of the decoder is modulated (FiLM; Perez et al., AAAI 2018), so that each
voice has a decoder pass of its own instead of a product with the last map; and its STFT has a
window of 32 ms and a hop of 16 ms, which resolves the harmonics of low voices at 0.6 of the cost.
The last of six levels halves bins only.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.separators.base import MixtureFeatures, VoiceSeparator
from cavmae.finetune.separators.layers import VIDEO_FRAME, at_frame_rate
from cavmae.finetune.separators.settings import FiLMUNetOptions
from cavmae.finetune.separators.stft import STFT
from cavmae.finetune.separators.unet import LEVELS, POSITIONS, Down, Up, bin_positions

RESOLUTION = STFT(512, 512, 256)
LATENT_LEVEL = 1  # its frames, of 64 ms, are interpolated to 25 a second


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
        over_time = [True] * (len(sizes) - 1) + [False]
        self.downs = nn.ModuleList(map(Down, [3 + POSITIONS, *sizes], sizes, over_time))
        up_sizes = [*sizes[-2:0:-1], 2 * channels]
        self.ups = nn.ModuleList(map(Up, [sizes[-1], *up_sizes], sizes[-2::-1], up_sizes))
        self.films = nn.ModuleList(nn.Linear(width, 2 * size) for size in [sizes[-1], *up_sizes])
        # The last upsampling has the most positions: a single linear layer keeps it cheap.
        self.last = nn.ConvTranspose2d(2 * channels, 2 * channels, 4, stride=2, padding=1)
        self.mask_head = nn.Conv2d(2 * channels, 2, 1)
        self.latent_width = 4 * width
        bands = self.stft.bins >> (LATENT_LEVEL + 1)
        self.latent_proj = nn.Linear(sizes[LATENT_LEVEL] * bands, self.latent_width)
        self.register_buffer("positions", bin_positions(self.stft.bins), persistent=False)

    def encode_mixture(self, mixture: Tensor) -> MixtureFeatures:
        """See :meth:`VoiceSeparator.encode_mixture`; its features are all levels' maps."""
        magnitude = mixture.square().sum(dim=1, keepdim=True).add(1e-6).sqrt()
        positions = cast(Tensor, self.positions).to(mixture.dtype)
        positions = positions.expand(len(mixture), -1, -1, mixture.shape[-1])
        levels = [torch.cat([mixture, magnitude, positions], dim=1)]
        for down in self.downs:
            levels.append(down(levels[-1]))
        banded = levels[LATENT_LEVEL + 1].flatten(1, 2).transpose(1, 2)  # [N, T' / 4, ...]
        frames = mixture.shape[-1] * self.stft.hop // VIDEO_FRAME
        latent = at_frame_rate(self.latent_proj(banded)[:, None], frames)[:, 0].transpose(1, 2)
        return MixtureFeatures(latent, levels[1:])

    def estimate(
        self, features: MixtureFeatures, voices: Tensor, visible: Tensor | None = None
    ) -> Tensor:
        """See :meth:`VoiceSeparator.estimate`."""
        n, k = voices.shape[:2]

        def of_voices(level: Tensor) -> Tensor:  # [N, C, B, T'] -> [N K, C, B, T']
            return level[:, None].expand(-1, k, -1, -1, -1).flatten(0, 1)

        def modulate(x: Tensor, film: nn.Module) -> Tensor:
            frames = at_frame_rate(film(voices), x.shape[-1]).flatten(0, 1)  # [N K, 2 C, T']
            scale, offset = frames[:, :, None].chunk(2, dim=1)
            return x * (1 + scale) + offset

        *skips, x = map(of_voices, features.map)
        for up, film, skip in zip(self.ups, self.films, skips[::-1], strict=False):
            x = up(modulate(x, film), skip)
        masks = self.mask_head(functional.gelu(self.last(modulate(x, self.films[-1]))))
        return cast(Tensor, masks.unflatten(0, (n, k)))
