"""Pixel decoder of pooling attention (MViT, Fan et al., ICCV 2021; v2: Li et al., CVPR 2022).

The tokens of a plain ViT are unfolded to 1/4 of the frame, where pixels join them. Blocks of
pooling attention turn that into levels at 1/8, where motion joins, and at 1/16 of the frame, each
with twice the width and heads; the levels are merged from coarse to fine. As in MViT, the stride of
keys and values is halved with each level, and a block widens in its attention (v2). Two differences
from MViT: positions are those of the ViT's tokens, and there is no class token.

Shapes: N maps, L tokens of a grid of h x w, D width, H heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.speaker.pixel_decoders.base import Merge, PixelDecoder, upsample
from cavmae.finetune.speaker.pixel_decoders.settings import PoolingOptions
from cavmae.pretrain.blocks import NORM_EPS, Mlp
from cavmae.pretrain.positions import Grid

KERNEL = 3  # of pooling
KEY_STRIDE = 8  # of keys and values at the finest level; halved with each level, as MViT's


class TokenPool(nn.Module):
    """Pooling of tokens: channelwise convolution shared by heads, and LayerNorm.

    Args:
        width: of a head.
        kernel: of the convolution, an odd number.
        stride: of the convolution.
        class_token: whether the first token is no part of the grid, and is normalised only.
    """

    def __init__(self, width: int, kernel: int, stride: int, class_token: bool):
        super().__init__()
        self.conv = nn.Conv2d(
            width, width, kernel, stride=stride, padding=kernel // 2, groups=width, bias=False
        )
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.unpooled = int(class_token)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """[N, H, L, D / H] -> [N, H, L', D / H], L' as :func:`pooled_grid` says."""
        token, x = x[:, :, : self.unpooled], x[:, :, self.unpooled :]
        maps = x.transpose(2, 3).unflatten(3, grid).flatten(0, 1)
        if maps.device.type == "cpu" and self.conv.stride[0] > 1:
            # In bf16, the gradient of a strided channelwise convolution takes 12 times as long.
            with torch.autocast("cpu", enabled=False):
                maps = self.conv(maps.to(self.conv.weight.dtype))
        else:
            maps = self.conv(maps)
        pooled = maps.flatten(2).transpose(1, 2).unflatten(0, token.shape[:2])
        normed: Tensor = self.norm(torch.cat([token, pooled], dim=2))
        return normed


def pooled_grid(grid: Grid, stride: int) -> Grid:
    """Grid after pooling: floor((L + 2 p - k) / s) + 1 tokens of L, where k = 2 p + 1."""
    rows, columns = grid
    return (rows - 1) // stride + 1, (columns - 1) // stride + 1


class PoolingAttention(nn.Module):
    """Self-attention of pooled queries to pooled keys and values; widths may differ.

    Args:
        width: of an input token.
        out_width: of an output token, D.
        heads: H.
        kernel: of pooling, an odd number; with strides of 1 as well, 1 is plain attention.
        query_stride: of pooling queries.
        key_stride: of pooling keys and values.
        residual_query: whether the pooled query is added to the output (v2).
        class_token: whether the first token is no part of the grid. It is not pooled, and gets no
            residual query.
    """

    def __init__(
        self,
        width: int,
        out_width: int,
        heads: int,
        kernel: int,
        query_stride: int,
        key_stride: int,
        residual_query: bool,
        class_token: bool = False,
    ):
        super().__init__()
        self.heads, self.query_stride = heads, query_stride
        self.residual_query, self.class_token = residual_query, class_token
        self.qkv = nn.Linear(width, 3 * out_width)
        self.proj = nn.Linear(out_width, out_width)

        def pool(stride: int) -> TokenPool | None:
            if kernel == stride == 1:
                return None
            return TokenPool(out_width // heads, kernel, stride, class_token)

        self.pool_q = pool(query_stride)
        self.pool_k, self.pool_v = pool(key_stride), pool(key_stride)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Tokens [N, L, width] of a grid -> [N, L', D], L' as :func:`pooled_grid` says."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q = q if self.pool_q is None else self.pool_q(q, grid)
        k = k if self.pool_k is None else self.pool_k(k, grid)
        v = v if self.pool_v is None else self.pool_v(v, grid)
        attended = functional.scaled_dot_product_attention(q, k, v)  # [N, H, L', D / H]
        if self.residual_query:
            first = int(self.class_token)
            residual = functional.pad(q[:, :, first:], (0, 0, first, 0))
            attended = attended + residual
        projected: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return projected


class PoolingBlock(nn.Module):
    """Transformer block of pooling attention, which widens in the attention, and an MLP.

    Args:
        width: of an input token.
        out_width: of an output token.
        heads: of the attention.
        query_stride: 1 or an even number, by which the grid shrinks.
        key_stride: of keys and values.
        residual_query: see :class:`PoolingAttention`.
    """

    def __init__(
        self,
        width: int,
        out_width: int,
        heads: int,
        query_stride: int,
        key_stride: int,
        residual_query: bool,
    ):
        super().__init__()
        self.stride = query_stride
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = PoolingAttention(
            width, out_width, heads, KERNEL, query_stride, key_stride, residual_query
        )
        self.shortcut = nn.Identity() if width == out_width else nn.Linear(width, out_width)
        self.norm2 = nn.LayerNorm(out_width, eps=NORM_EPS)
        self.mlp = Mlp(out_width, 4 * out_width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [M, width, h, w] -> [M, out_width, h', w'], see :func:`pooled_grid`."""
        rows, columns = x.shape[-2:]
        tokens = x.flatten(2).mT
        normed = self.norm1(tokens)
        # v2 projects what is normalised; a block that keeps the width has a plain residual.
        skip = tokens if isinstance(self.shortcut, nn.Identity) else self.shortcut(normed)
        if self.stride > 1:
            kernel = self.stride + 1
            maps = skip.mT.unflatten(2, (rows, columns))
            skip = functional.max_pool2d(maps, kernel, self.stride, kernel // 2).flatten(2).mT
        tokens = skip + self.attn(normed, (rows, columns))
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens.mT.unflatten(2, pooled_grid((rows, columns), self.stride))


class PoolingDecoder(PixelDecoder):
    """Pyramid of pooling attention at 1/4, 1/8 and 1/16 of the frame, merged from coarse to fine.

    Args:
        options: of the entry.
        width: of a token.
        motion: channels of the motion map.
        channels: of the output.
        grid: rows and columns of tokens.
    """

    def __init__(self, options: PoolingOptions, width: int, motion: int, channels: int, grid: Grid):
        super().__init__(grid)
        c, residual_query = channels, options.residual_query
        self.stem = nn.Conv2d(3, c, 7, stride=4, padding=3)
        self.unfold = nn.Conv2d(width, 16 * c, 1)
        self.motion_proj = nn.Conv2d(motion, 2 * c, 1)
        keys = KEY_STRIDE
        self.block4 = PoolingBlock(c, c, 1, 1, keys, residual_query)
        self.block8 = PoolingBlock(c, 2 * c, 2, 2, keys // 2, residual_query)
        self.block16 = PoolingBlock(2 * c, 4 * c, 4, 2, keys // 4, residual_query)
        self.context = nn.Sequential(*(
            PoolingBlock(4 * c, 4 * c, 4, 1, keys // 4, residual_query)
            for _ in range(options.depth)
        ))  # fmt: skip
        self.merge8 = Merge(6 * c, 2 * c)
        self.merge4 = Merge(3 * c, c)
        self.out = nn.Conv2d(c, c, 1)
        self.out_norm = nn.GroupNorm(1, c)

    def decode(self, tokens: Tensor, frames: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`PixelDecoder.decode`."""
        unfolded = functional.pixel_shuffle(self.unfold(tokens), 4)  # [M, c, 4 rows, 4 columns]
        fine = self.block4(self.stem(frames) + unfolded)
        middle = self.block8(fine) + self.motion_proj(motion)
        coarse = self.context(self.block16(middle))
        x = self.merge8(upsample(coarse), middle)
        return self.out_norm(self.out(self.merge4(upsample(x), fine))), coarse
