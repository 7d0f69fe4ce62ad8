"""Band-split dual-path network: attention over time and over bands, with convolutional gates.

Bands of 2 to 18 bins, finer where voices have their pitch, after BSRNN (Luo and Yu, TASLP 2023,
arXiv 2209.15174); two paths of attention after BS-RoFormer (Lu et al., ICASSP 2024, arXiv
2309.02612); a gated linear unit with a convolution behind each attention, after TF-Locoformer
(Saijo et al., IWAENC 2024, arXiv 2408.03440). Differences: the first blocks see the mixture alone
and are computed once for all voices, the others are modulated by the embedding of a voice (FiLM);
the convolution is depthwise and gives the positions in time; a bias of each band its own.
Shapes beside the usual: M mixtures or voices, Q bands, C channels.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.separators.base import MixtureFeatures, VoiceSeparator
from cavmae.finetune.separators.layers import at_frame_rate, at_video_rate
from cavmae.finetune.separators.settings import BandSplitOptions
from cavmae.finetune.separators.stft import STFT

BANDS = ((8, 2), (8, 4), (8, 8), (8, 18))  # groups of (bands, bins of each): 256 bins in all
NUM_BANDS = sum(count for count, _ in BANDS)
KERNEL = 5  # frames of the convolution
RESOLUTION = STFT(512, 512, 256)
MAX_ROWS = 65_535  # of a batch of attention: the largest grid of CUDA's kernels


class BandSplit(nn.Module):
    """A linear layer for each band: spectra [M, 2, B, T'] -> [M, T', Q, C]."""

    def __init__(self, channels: int):
        super().__init__()
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(count, 2 * bins, channels) * (2 * bins) ** -0.5)
            for count, bins in BANDS
        )
        self.bias = nn.Parameter(torch.randn(NUM_BANDS, channels) * 0.1)

    def forward(self, spectra: Tensor) -> Tensor:
        """Bands of spectra."""
        sizes = [count * bins for count, bins in BANDS]
        parts = []
        for part, weight in zip(spectra.split(sizes, dim=2), self.weights, strict=True):
            x = part.unflatten(2, (len(weight), -1)).permute(0, 4, 2, 1, 3).flatten(3)
            parts.append(torch.einsum("mtqi,qic->mtqc", x, weight))
        return torch.cat(parts, dim=2) + self.bias


class BandJoin(nn.Module):
    """The reverse of :class:`BandSplit`: [M, T', Q, C] -> masks [M, 2, B, T']."""

    def __init__(self, channels: int):
        super().__init__()
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(count, channels, 2 * bins) * 0.5 * channels**-0.5)
            for count, bins in BANDS
        )

    def forward(self, x_mtqc: Tensor) -> Tensor:
        """Masks of bands."""
        parts = []
        counts = [count for count, _ in BANDS]
        for part, weight in zip(x_mtqc.split(counts, dim=2), self.weights, strict=True):
            y = torch.einsum("mtqc,qci->mtqi", part, weight).unflatten(3, (2, -1))
            parts.append(y.permute(0, 3, 2, 4, 1).flatten(2, 3))
        return torch.cat(parts, dim=2)


class PathAttention(nn.Module):
    """Self-attention among the frames or among the bands of [M, T', Q, C].

    Args:
        channels: C.
        heads: of the attention.
        over_time: attend to other frames of a band, else to other bands of a frame.
    """

    def __init__(self, channels: int, heads: int, over_time: bool):
        super().__init__()
        self.heads, self.over_time = heads, over_time
        self.norm = nn.RMSNorm(channels, eps=1e-5)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out = nn.Linear(channels, channels, bias=False)

    def forward(self, x_mtqc: Tensor) -> Tensor:
        """Residual update of the same shape."""
        qkv = self.qkv(self.norm(x_mtqc)).unflatten(-1, (3, self.heads, -1))
        rows = len(qkv)
        # The attended axis last but one: [M rows, heads, attended, C / heads].
        order = (3, 0, 2, 4, 1, 5) if self.over_time else (3, 0, 1, 4, 2, 5)
        query, key, value = qkv.permute(order).flatten(1, 2)
        parts = zip(*(part.split(MAX_ROWS) for part in (query, key, value)), strict=True)
        x = torch.cat([functional.scaled_dot_product_attention(*part) for part in parts])
        x = x.transpose(1, 2).flatten(2)  # [M rows, attended, C]
        x = x.unflatten(0, (rows, -1))
        out: Tensor = self.out(x.transpose(1, 2) if self.over_time else x)
        return out


class ConvolutionalGate(nn.Module):
    """Gated linear unit, with a depthwise convolution over frames of what passes the gate.

    Args:
        channels: C.
        kernel: frames; 1: no convolution.
    """

    def __init__(self, channels: int, kernel: int):
        super().__init__()
        self.kernel = kernel
        self.norm = nn.RMSNorm(channels, eps=1e-5)
        self.expand = nn.Linear(channels, 4 * channels, bias=False)
        self.taps = nn.Parameter(torch.randn(kernel, 2 * channels) * kernel**-0.5)
        self.out = nn.Linear(2 * channels, channels, bias=False)

    def forward(self, x_mtqc: Tensor) -> Tensor:
        """Residual update of the same shape."""
        value, gate = self.expand(self.norm(x_mtqc)).chunk(2, dim=-1)
        taps = self.taps.to(value.dtype)
        frames = value.shape[1]
        # Shifted products instead of a depthwise convolution: compilers fuse them, and bf16
        # kernels of the latter are slow on GPUs.
        padded = functional.pad(value, (0, 0, 0, 0, self.kernel // 2, self.kernel // 2))
        mixed = padded[:, :frames] * taps[0]
        for tap in range(1, self.kernel):
            mixed = mixed + padded[:, tap : tap + frames] * taps[tap]
        out: Tensor = self.out(mixed * functional.silu(gate))
        return out


class DualPathBlock(nn.Module):
    """Attention and gate over time, then over bands: [M, T', Q, C], of the same shape.

    Args:
        channels: C.
        heads: of the attentions.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.time = PathAttention(channels, heads, over_time=True)
        self.time_gate = ConvolutionalGate(channels, KERNEL)
        self.bands = PathAttention(channels, heads, over_time=False)
        self.band_gate = ConvolutionalGate(channels, 1)

    def forward(self, x_mtqc: Tensor, film: Tensor | None = None) -> Tensor:
        """Features after the block.

        Args:
            x_mtqc: features.
            film: [M, T', 2 C], scale and offset of every band's features; None: none.
        """
        x = x_mtqc
        if film is not None:
            scale, offset = film[:, :, None].chunk(2, dim=-1)
            x = x * (1 + scale) + offset
        x = x + self.time(x)
        x = x + self.time_gate(x)
        x = x + self.bands(x)
        return x + self.band_gate(x)


class BandSplitSeparator(VoiceSeparator):
    """Band-split dual-path separator; see the module's docstring.

    Args:
        options: of the entry.
        width: D.
    """

    stft = RESOLUTION
    least_samples = 2560

    def __init__(self, options: BandSplitOptions, width: int):
        super().__init__()
        channels = options.width
        self.split = BandSplit(channels)
        self.shared_blocks = nn.ModuleList(
            DualPathBlock(channels, options.heads) for _ in range(options.shared_blocks)
        )
        self.voice_blocks = nn.ModuleList(
            DualPathBlock(channels, options.heads) for _ in range(options.blocks)
        )
        self.films = nn.ModuleList(nn.Linear(width, 2 * channels) for _ in range(options.blocks))
        self.band_cue = nn.Linear(width, NUM_BANDS * channels)
        self.norm = nn.RMSNorm(channels, eps=1e-5)
        self.join = BandJoin(channels)
        self.latent_width = 2 * width
        self.latent_proj = nn.Linear(NUM_BANDS * channels, self.latent_width)

    def encode_mixture(self, mixture: Tensor) -> MixtureFeatures:
        """See :meth:`VoiceSeparator.encode_mixture`; its features are [N, T', Q, C]."""
        x = self.split(mixture)
        for block in self.shared_blocks:
            x = block(x)
        return MixtureFeatures(at_video_rate(self.latent_proj(x.flatten(2)), self.stft.hop), x)

    def estimate(
        self, features: MixtureFeatures, voices: Tensor, visible: Tensor | None = None
    ) -> Tensor:
        """See :meth:`VoiceSeparator.estimate`."""
        x_ntqc = features.map
        n, k = voices.shape[:2]
        frames = x_ntqc.shape[1]

        def per_frame(embedding: Tensor) -> Tensor:  # [N, K, T, X] -> [N K, T', X]
            rows = at_frame_rate(embedding, frames).flatten(0, 1)
            # Compiled for the CPU, blocks with a transposed input have written out of bounds.
            return rows.transpose(1, 2).contiguous()

        x = x_ntqc[:, None].expand(-1, k, -1, -1, -1).flatten(0, 1)
        x = x + per_frame(self.band_cue(voices)).unflatten(-1, (NUM_BANDS, -1))
        for block, film in zip(self.voice_blocks, self.films, strict=True):
            x = block(x, per_frame(film(voices)))
        masks = cast(Tensor, self.join(self.norm(x)))
        return masks.unflatten(0, (n, k))
