"""Frame transformer, version 3: a transformer of several channels, without a U-Net.

After the vocal remover of that name (https://github.com/carperbr/frame-transformer); its scores
accumulate from layer to layer, as in RealFormer (He et al., arXiv 2012.11747). So they have to be
materialised: scaled_dot_product_attention does not give them. They take 4 N C heads T'^2 bytes a
layer. Difference: no dropout.
Shapes: N mixtures, C channels, T' frames, F features of a frame: its bins. Maps are [N, C, T', F]
inside, so that norms and attention find F last.
"""

from torch import Tensor, nn

from cavmae.finetune.separators.layers import RotaryPositions
from cavmae.finetune.separators.map_separator import INPUTS, MapSeparator
from cavmae.finetune.separators.multichannel import MultichannelLayerNorm, MultichannelLinear
from cavmae.finetune.separators.settings import FrameTransformerV3Options


class MultichannelAttention(nn.Module):
    """Attention among the frames of each channel, whose scores are added to earlier ones.

    Args:
        channels: C.
        features: F.
        heads: among which F is divided.
    """

    def __init__(self, channels: int, features: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = MultichannelLinear(channels, channels, features, features)
        self.key = MultichannelLinear(channels, channels, features, features)
        self.value = MultichannelLinear(channels, channels, features, features)
        self.out = MultichannelLinear(channels, channels, features, features)
        self.rotary = RotaryPositions(features // heads)

    def forward(self, x_nctf: Tensor, scores: Tensor | None) -> tuple[Tensor, Tensor]:
        """Residual update [N, C, T', F], and scores [N, C, heads, T', T'].

        Args:
            x_nctf: features.
            scores: of the layer before; None: there is none.
        """
        query, key, value = (
            proj(x_nctf).unflatten(-1, (self.heads, -1)).transpose(2, 3)
            for proj in (self.query, self.key, self.value)
        )  # [N, C, heads, T', F / heads]
        products = self.rotary(query) @ self.rotary(key).mT
        added = products.float() * x_nctf.shape[-1] ** -0.5  # sums of bf16 lose what is added last
        scores = added if scores is None else scores + added
        attended = scores.softmax(-1).to(value.dtype) @ value
        return self.out(attended.transpose(2, 3).flatten(3)), scores


class MultichannelBlock(nn.Module):
    """Pre-norm block of multichannel attention and two convolutions with a squared ReLU between.

    Args:
        channels: C.
        features: F.
        heads: of the attention.
        expansion: channels between the convolutions over C.
    """

    def __init__(self, channels: int, features: int, heads: int, expansion: int):
        super().__init__()
        self.norm1 = MultichannelLayerNorm(channels, features)
        self.attention = MultichannelAttention(channels, features, heads)
        self.norm2 = MultichannelLayerNorm(channels, features)
        self.conv1 = nn.Conv2d(channels, expansion * channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(expansion * channels, channels, 3, padding=1, bias=False)

    def forward(self, x_nctf: Tensor, scores: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features after the block, and scores; see :meth:`MultichannelAttention.forward`."""
        update, scores = self.attention(self.norm1(x_nctf), scores)
        x_nctf = x_nctf + update
        return x_nctf + self.conv2(self.conv1(self.norm2(x_nctf)).relu().square()), scores


class FrameTransformerV3(nn.Module):
    """Network of the frame transformer, version 3; about 4 C F^2 parameters a block.

    Args:
        in_channels: C of the input.
        out_channels: C of the output.
        bins: F.
        channels: C of the blocks.
        blocks: number of blocks.
        heads: of the attentions; F is a multiple of twice their number.
        expansion: of the convolutions' channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bins: int,
        channels: int,
        blocks: int,
        heads: int,
        expansion: int,
    ):
        super().__init__()
        self.embedding = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList(
            MultichannelBlock(channels, bins, heads, expansion) for _ in range(blocks)
        )
        self.out = nn.Conv2d(channels, out_channels, 1, bias=False)

    def forward_blocks(self, x: Tensor) -> Tensor:
        """Features [N, C, T', F] after the last block, from spectra [N, C, F, T']."""
        x_nctf = self.embedding(x.mT.contiguous())
        scores = None
        for block in self.blocks:
            x_nctf, scores = block(x_nctf, scores)
        return x_nctf

    def forward(self, x: Tensor) -> Tensor:
        """Spectra [N, C, F, T'] -> [N, C', F, T']."""
        out: Tensor = self.out(self.forward_blocks(x))
        return out.mT


class FrameTransformerV3Separator(MapSeparator):
    """Separator with the network of version 3 as its trunk, whose last features are the bottleneck.

    Args:
        options: of the entry.
        width: D.
    """

    def __init__(self, options: FrameTransformerV3Options, width: int):
        channels, bins = options.width, self.stft.bins
        super().__init__(options.fusion, width, channels, channels * bins)
        self.network = FrameTransformerV3(
            INPUTS, channels, bins, channels, options.blocks, options.heads, options.expansion
        )

    def forward_trunk(self, x_ncbt: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`MapSeparator.forward_trunk`."""
        x_nctf = self.network.forward_blocks(x_ncbt)
        out: Tensor = self.network.out(x_nctf)
        return out.mT, x_nctf.transpose(1, 2).flatten(2)
