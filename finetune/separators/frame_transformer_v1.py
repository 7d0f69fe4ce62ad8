"""Frame transformer, version 1: a U-Net over frequency, with attention among frames.

After the vocal remover of that name (https://github.com/carperbr/frame-transformer). Each level
squeezes its map to a single channel, whose frames attend to each other; the U-Net never
downsamples time. Differences: no dropout; the decoder's cross-attention and feed-forward have norms
of their own, while the original's reuse those of self-attention and of cross-attention.
Shapes: N mixtures, C channels, T' frames, F features of a frame: the bins of a level. Maps are
[N, C, T', F] inside, so that norms and attention find F last.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.separators.layers import RotaryPositions
from cavmae.finetune.separators.map_separator import INPUTS, MapSeparator
from cavmae.finetune.separators.settings import FrameTransformerV1Options

LEVELS = (1, 2, 4, 6, 8, 10)  # channels of each level, in multiples of the first


class ResidualBlock(nn.Module):
    """Norm and two convolutions with a squared ReLU between, added to a projection of the input.

    Args:
        in_channels: C.
        out_channels: C'.
        bins: F.
        stride: over frequency.
    """

    def __init__(self, in_channels: int, out_channels: int, bins: int, stride: int = 1):
        super().__init__()
        self.norm = nn.LayerNorm(bins)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(
            out_channels, out_channels, 3, stride=(1, stride), padding=1, bias=False
        )
        self.identity = (
            nn.Conv2d(in_channels, out_channels, 1, stride=(1, stride), bias=False)
            if in_channels != out_channels or stride > 1
            else nn.Identity()
        )

    def forward(self, x_nctf: Tensor) -> Tensor:
        """[N, C, T', F] -> [N, C', T', F / stride]."""
        h = self.conv1(self.norm(x_nctf)).relu().square()
        out: Tensor = self.identity(x_nctf) + self.conv2(h)
        return out


class FrameAttention(nn.Module):
    """Attention among frames, with rotary positions; the scale is that of all heads together.

    Args:
        bins: F.
        heads: among which F is divided.
    """

    def __init__(self, bins: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(bins, bins, bias=False)
        self.key = nn.Linear(bins, bins, bias=False)
        self.value = nn.Linear(bins, bins, bias=False)
        self.out = nn.Linear(bins, bins, bias=False)
        self.rotary = RotaryPositions(bins // heads)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Frames [N, T', F] attend to those of a context of the same shape -> [N, T', F]."""
        query, key, value = (
            proj(frames).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj, frames in ((self.query, x), (self.key, context), (self.value, context))
        )
        attended = functional.scaled_dot_product_attention(
            self.rotary(query), self.rotary(key), value, scale=x.shape[-1] ** -0.5
        )
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out


class FrameTransformerBlock(nn.Module):
    """Transformer layer on a map that is squeezed to a single channel, appended to the map.

    Args:
        channels: C.
        bins: F.
        heads: of the attention.
        expansion: width of the feed-forward layer over F.
        cross: attend to the frames of an encoder, too.
        shared_norms: see :class:`FrameTransformerV1`.
    """

    def __init__(
        self, channels: int, bins: int, heads: int, expansion: int, cross: bool, shared_norms: bool
    ):
        super().__init__()
        self.shared_norms = shared_norms
        self.squeeze = nn.Conv2d(channels, 1, 1)
        self.norm_attention = nn.LayerNorm(bins)
        self.attention = FrameAttention(bins, heads)
        if cross:
            self.cross_attention = FrameAttention(bins, heads)
            if not shared_norms:
                self.norm_cross = nn.LayerNorm(bins)
        self.norm_mlp = nn.LayerNorm(bins)
        self.fc1 = nn.Linear(bins, expansion * bins, bias=False)
        self.fc2 = nn.Linear(expansion * bins, bins, bias=False)

    def forward(self, x_nctf: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map with the layer's output as another channel, and that output.

        Args:
            x_nctf: map.
            skip: [N, T', F], output of the encoder's layer of this level; None: no
                cross-attention.

        Returns:
            [N, C + 1, T', F] and [N, T', F].
        """
        h = self.squeeze(x_nctf)[:, 0]
        z = self.norm_attention(h)
        h = h + self.attention(z, z)
        if skip is not None:
            norm = self.norm_attention if self.shared_norms else self.norm_cross
            h = h + self.cross_attention(norm(h), skip)
        h = h + self.fc2(self.fc1(self.norm_mlp(h)).relu().square())
        return torch.cat([x_nctf, h[:, None]], dim=1), h


class FrameTransformerV1(nn.Module):
    """Network of the frame transformer, version 1.

    Args:
        in_channels: C of the input.
        out_channels: C of the output.
        bins: F of the input, a multiple of 32.
        channels: of the first level.
        heads: of the attentions; F / 32 is a multiple of twice their number.
        expansion: width of a feed-forward layer over the bins of its level.
        shared_norms: as in the original, the decoder's cross-attention uses the norm of
            self-attention; for weights of the original.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bins: int,
        channels: int,
        heads: int,
        expansion: int,
        shared_norms: bool = False,
    ):
        super().__init__()
        widths = [channels * level for level in LEVELS]
        sizes = [bins >> level for level in range(len(LEVELS))]

        def block(width: int, size: int, cross: bool) -> FrameTransformerBlock:
            return FrameTransformerBlock(width, size, heads, expansion, cross, shared_norms)

        self.first = block(in_channels, bins, False)
        self.encoders, self.encoder_blocks = nn.ModuleList(), nn.ModuleList()
        for level, (width, size) in enumerate(zip(widths, sizes, strict=True)):
            before, stride = (widths[level - 1], 2) if level else (in_channels, 1)
            self.encoders.append(ResidualBlock(before + 1, width, size * stride, stride))
            self.encoder_blocks.append(block(width, size, False))
        self.decoders, self.decoder_blocks = nn.ModuleList(), nn.ModuleList()
        for level in range(len(LEVELS) - 2, -1, -1):
            joined = widths[level + 1] + 1 + widths[level] + 1
            self.decoders.append(ResidualBlock(joined, widths[level], sizes[level]))
            self.decoder_blocks.append(block(widths[level], sizes[level], True))
        self.out = nn.Conv2d(channels + 1, out_channels, 1, bias=False)
        self.bottleneck_width = (widths[-1] + 1) * sizes[-1]

    def forward_encoder(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Maps [N, C + 1, T', F] and layer outputs [N, T', F] of each level, from [N, C, F, T']."""
        x_nctf, _ = self.first(x.mT.contiguous())
        maps, layers = [], []
        for encoder, block in zip(self.encoders, self.encoder_blocks, strict=True):
            x_nctf, h = block(encoder(x_nctf))
            maps.append(x_nctf)
            layers.append(h)
        return maps, layers

    def forward_decoder(self, maps: list[Tensor], layers: list[Tensor]) -> Tensor:
        """Output [N, C', F, T'] from what :meth:`forward_encoder` gives."""
        x_nctf = maps[-1]
        for index, decoder in enumerate(self.decoders):
            skip = maps[-2 - index]
            size = skip.shape[-2:]
            x_nctf = functional.interpolate(x_nctf, size, mode="bilinear", align_corners=True)
            x_nctf = decoder(torch.cat([x_nctf, skip], dim=1))
            x_nctf, _ = self.decoder_blocks[index](x_nctf, layers[-2 - index])
        out: Tensor = self.out(x_nctf)
        return out.mT

    def forward(self, x: Tensor) -> Tensor:
        """Spectra [N, C, F, T'] -> [N, C', F, T']."""
        return self.forward_decoder(*self.forward_encoder(x))


class FrameTransformerV1Separator(MapSeparator):
    """Separator with the network of version 1 as its trunk.

    Args:
        options: of the entry.
        width: D.
    """

    def __init__(self, options: FrameTransformerV1Options, width: int):
        channels, bins = options.width + 1, self.stft.bins
        network = FrameTransformerV1(
            INPUTS, channels, bins, options.width, options.heads, options.expansion
        )
        super().__init__(options.fusion, width, channels, network.bottleneck_width)
        self.network = network

    def forward_trunk(self, x_ncbt: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`MapSeparator.forward_trunk`."""
        maps, layers = self.network.forward_encoder(x_ncbt)
        bottleneck = maps[-1].transpose(1, 2).flatten(2)
        return self.network.forward_decoder(maps, layers), bottleneck
