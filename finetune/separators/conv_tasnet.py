"""Conv-TasNet (Luo and Mesgarani, TASLP 2019, arXiv 1809.07454), on the waveform.

A learned filter bank of 2 ms with a stride of 1 ms, repeats of dilated depthwise convolutions with
skip connections, masks on the filters, a learned synthesis. Its published size is N 512, L 16 (at 8
kHz; 32 here), B 128, H 512, Sc 128, P 3, X 8, R 3. The embedding of a voice is concatenated behind
the first repeat, as Wu et al. (ASRU 2019, arXiv 1904.03760) do with lip features; the first repeat
is computed once for all voices.
Shapes beside the usual: M mixtures or voices, C channels, L = S / 16 frames.
"""

import torch
from torch import Tensor, nn

from cavmae.finetune.separators.base import MixtureFeatures, VoiceSeparator
from cavmae.finetune.separators.layers import at_frame_rate
from cavmae.finetune.separators.settings import ConvTasNetOptions

KERNEL, STRIDE = 32, 16  # samples
POOL = 40  # frames of 1 ms in a video frame


class GlobalLayerNorm(nn.GroupNorm):
    """Layer norm over channels and time (gLN of the paper)."""

    def __init__(self, channels: int):
        super().__init__(1, channels, eps=1e-8)


class DepthwiseBlock(nn.Module):
    """Block of the paper: residual and skip outputs of a depthwise separable convolution.

    Args:
        channels: C, of residual and skip outputs.
        hidden: channels of the depthwise convolution.
        dilation: of it.
        last: block without a residual output, which nothing would read.
    """

    def __init__(self, channels: int, hidden: int, dilation: int, last: bool):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(channels, hidden, 1), nn.PReLU(), GlobalLayerNorm(hidden),
            nn.Conv1d(hidden, hidden, 3, padding=dilation, dilation=dilation, groups=hidden),
            nn.PReLU(), GlobalLayerNorm(hidden),
        )  # fmt: skip
        self.residual = None if last else nn.Conv1d(hidden, channels, 1)
        self.skip = nn.Conv1d(hidden, channels, 1)

    def forward(self, x_mcl: Tensor) -> tuple[Tensor, Tensor]:
        """Features and skip features, each [M, C, L]."""
        y = self.layers(x_mcl)
        return x_mcl if self.residual is None else x_mcl + self.residual(y), self.skip(y)


class Repeat(nn.Module):
    """Blocks with dilations of 1, 2, 4, ... frames; returns features and the sum of the skips."""

    def __init__(self, channels: int, hidden: int, dilations: int, last: bool = False):
        super().__init__()
        self.blocks = nn.ModuleList(
            DepthwiseBlock(channels, hidden, 2**index, last and index == dilations - 1)
            for index in range(dilations)
        )

    def forward(self, x_mcl: Tensor) -> tuple[Tensor, Tensor]:
        """Features and skip features, each [M, C, L]."""
        skips = []
        for block in self.blocks:
            x_mcl, skip = block(x_mcl)
            skips.append(skip)
        return x_mcl, torch.stack(skips).sum(0)


class ConvTasNet(VoiceSeparator):
    """Conv-TasNet told of each voice; see the module's docstring.

    Args:
        options: of the entry.
        width: D.
    """

    takes, gives = "waveform", "waveforms"
    least_samples = 640

    def __init__(self, options: ConvTasNetOptions, width: int):
        super().__init__()
        filters, channels = options.filters, options.width
        padding = (KERNEL - STRIDE) // 2
        self.encoder = nn.Conv1d(1, filters, KERNEL, STRIDE, padding, bias=False)
        self.decoder = nn.ConvTranspose1d(filters, 1, KERNEL, STRIDE, padding, bias=False)
        self.norm = GlobalLayerNorm(filters)
        self.bottleneck = nn.Conv1d(filters, channels, 1)
        sizes = channels, options.hidden, options.dilations
        self.shared_repeat = Repeat(*sizes)
        # The first layer of a concatenation is the sum of a layer for each part.
        self.mixture_proj = nn.Conv1d(channels, channels, 1)
        self.voice_proj = nn.Linear(width, channels)
        self.repeats = nn.ModuleList(
            Repeat(*sizes, last=number == options.repeats - 1)
            for number in range(1, options.repeats)
        )
        self.mask_head = nn.Sequential(nn.PReLU(), nn.Conv1d(channels, filters, 1), nn.ReLU())
        self.latent_width = 2 * width
        self.latent_proj = nn.Linear(channels, self.latent_width)

    def encode_mixture(self, mixture: Tensor) -> MixtureFeatures:
        """See :meth:`VoiceSeparator.encode_mixture`; its features are [N, filters + 2 C, L]."""
        filtered = self.encoder(mixture[:, None]).relu()
        x, skip = self.shared_repeat(self.bottleneck(self.norm(filtered)))
        latent = nn.functional.avg_pool1d(x, POOL).transpose(1, 2)  # [N, T, C]
        return MixtureFeatures(self.latent_proj(latent), torch.cat([filtered, x, skip], dim=1))

    def estimate(
        self, features: MixtureFeatures, voices: Tensor, visible: Tensor | None = None
    ) -> Tensor:
        """See :meth:`VoiceSeparator.estimate`; a voice's waveform is [S]."""
        n, k = voices.shape[:2]
        channels = self.mixture_proj.in_channels
        sizes = [features.map.shape[1] - 2 * channels, channels, channels]
        filtered, mixture, skip = features.map.split(sizes, dim=1)
        embeddings = at_frame_rate(self.voice_proj(voices), mixture.shape[-1])  # [N, K, C, L]
        x = (self.mixture_proj(mixture)[:, None] + embeddings).flatten(0, 1)
        skips = skip[:, None].expand(-1, k, -1, -1).flatten(0, 1)
        for repeat in self.repeats:
            x, skip = repeat(x)
            skips = skips + skip
        masks = self.mask_head(skips).unflatten(0, (n, k))
        waves: Tensor = self.decoder((masks * filtered[:, None]).flatten(0, 1))
        return waves.unflatten(0, (n, k))[:, :, 0]
