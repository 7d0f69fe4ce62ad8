"""Dilated temporal convolution network on the spectrum, of the Conv-TasNet family.

The blocks of Conv-TasNet (Luo and Mesgarani, TASLP 2019, arXiv 1809.07454) on frames of the
compressed complex spectrum instead of a learned filter bank with frames of 1 ms, which makes them
16 times cheaper. Further differences: the first blocks see the mixture alone and are computed once
for all voices, the others are modulated by the embedding of a voice (FiLM); gated linear units
with RMSNorm instead of PReLU and global layer norm, so that frames depend on the blocks' reach
only.
Shapes beside the usual: M mixtures or voices, C channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.separators.base import MixtureFeatures, VoiceSeparator
from cavmae.finetune.separators.layers import at_frame_rate, at_video_rate
from cavmae.finetune.separators.settings import TCNOptions
from cavmae.finetune.separators.stft import STFT

RESOLUTION = STFT(512, 512, 256)
KERNEL = 3  # frames of a convolution


class TemporalBlock(nn.Module):
    """Gated depthwise convolution over time: [M, T', C], of the same shape.

    Args:
        channels: C.
        hidden: channels of the convolution.
        dilation: of the convolution, in frames.
    """

    def __init__(self, channels: int, hidden: int, dilation: int):
        super().__init__()
        self.dilation = dilation
        self.norm = nn.RMSNorm(channels, eps=1e-5)
        self.expand = nn.Linear(channels, 2 * hidden, bias=False)
        self.taps = nn.Parameter(torch.randn(KERNEL, hidden) * KERNEL**-0.5)
        self.out = nn.Linear(hidden, channels, bias=False)

    def forward(self, x_mtc: Tensor) -> Tensor:
        """Features after the block."""
        value, gate = self.expand(self.norm(x_mtc)).chunk(2, dim=-1)
        frames, reach = value.shape[1], self.dilation * (KERNEL // 2)
        padded = functional.pad(value, (0, 0, reach, reach))
        # Shifted products are faster than a depthwise convolution, which wants channels first.
        taps = self.taps.to(value.dtype)
        mixed = padded[:, :frames] * taps[0]
        for tap in range(1, KERNEL):
            first = tap * self.dilation
            mixed = mixed + padded[:, first : first + frames] * taps[tap]
        updated: Tensor = x_mtc + self.out(mixed * functional.silu(gate))
        return updated


class TCNSeparator(VoiceSeparator):
    """Dilated temporal convolution network; see the module's docstring.

    Args:
        options: of the entry.
        width: D.
    """

    stft = RESOLUTION
    least_samples = 2560

    def __init__(self, options: TCNOptions, width: int):
        super().__init__()
        channels, bins = options.width, self.stft.bins

        def blocks(count: int) -> nn.ModuleList:
            return nn.ModuleList(
                TemporalBlock(channels, options.hidden, 2 ** (index % options.dilations))
                for index in range(count)
            )

        self.bins_proj = nn.Linear(2 * bins, channels)
        self.shared_blocks = blocks(options.shared_blocks)
        self.voice_blocks = blocks(options.blocks)
        self.films = nn.ModuleList(nn.Linear(width, 2 * channels) for _ in range(options.blocks))
        self.norm = nn.RMSNorm(channels, eps=1e-5)
        self.mask_head = nn.Linear(channels, 2 * bins)
        self.latent_width = 2 * width
        self.latent_proj = nn.Linear(channels, self.latent_width)

    def encode_mixture(self, mixture: Tensor) -> MixtureFeatures:
        """See :meth:`VoiceSeparator.encode_mixture`; its features are [N, T', C]."""
        x = self.bins_proj(mixture.flatten(1, 2).transpose(1, 2))
        for block in self.shared_blocks:
            x = block(x)
        return MixtureFeatures(at_video_rate(self.latent_proj(x), self.stft.hop), x)

    def estimate(
        self, features: MixtureFeatures, voices: Tensor, visible: Tensor | None = None
    ) -> Tensor:
        """See :meth:`VoiceSeparator.estimate`."""
        n, k = voices.shape[:2]
        frames = features.map.shape[1]
        x = features.map[:, None].expand(-1, k, -1, -1).flatten(0, 1)  # [N K, T', C]
        for block, film in zip(self.voice_blocks, self.films, strict=True):
            modulation = at_frame_rate(film(voices), frames).flatten(0, 1).transpose(1, 2)
            scale, offset = modulation.chunk(2, dim=-1)
            x = block(x * (1 + scale) + offset)
        masks = self.mask_head(self.norm(x)).unflatten(-1, (2, -1))  # [N K, T', 2, B]
        return masks.permute(0, 2, 3, 1).unflatten(0, (n, k))
