"""Transformer blocks: that of CAV-MAE, with three pairs of norms, and one of cross-attention.

Attention and MLP are those of ViT (Dosovitskiy et al., ICLR 2021), with timm's names of parameters:
its weights fit. They are written here since timm takes longer to import than PyTorch itself.

Shapes: N clips, L and M tokens, D width of a token, H heads.
"""

from collections.abc import Collection, Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.pretrain.temporal.settings import PER_FRAME, TEMPORAL, TemporalOptions

Modality = Literal["a", "v"] | None
NORM_EPS = 1e-5


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        width: of a token.
        heads: among which the width is divided.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, L, D] -> [N, L, D]."""
        qkv = (
            self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # 3, N, H, L, D/H
        attended = functional.scaled_dot_product_attention(*qkv.unbind(0))
        projected: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return projected


class Mlp(nn.Module):
    """Two linear layers with a GELU between them.

    Args:
        width: of a token.
        hidden: of the layer between.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., D] -> [..., D]."""
        projected: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return projected


class AttentionPool(nn.Module):
    """Attention pooling of tokens by a learned query, and an MLP (Zhai et al., CVPR 2022).

    Args:
        width: of a token.
        heads: of the attention.
        out_width: of the embedding.
    """

    def __init__(self, width: int, heads: int, out_width: int):
        super().__init__()
        self.heads = heads
        self.latent = nn.Parameter(torch.empty(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, out_width)
        self.mlp = Mlp(out_width, 4 * out_width)
        std = width**-0.5
        nn.init.trunc_normal_(self.latent, std=std, a=-2 * std, b=2 * std)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, L, D] -> [N, out_width]."""
        q = self.q(self.latent).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv = self.kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # 2, N, H, L, D/H
        attended = functional.scaled_dot_product_attention(
            q.expand(len(x), -1, -1, -1), *kv.unbind(0)
        )
        pooled = self.proj(attended.transpose(1, 2).flatten(2))
        embedding: Tensor = (pooled + self.mlp(pooled))[:, 0]
        return embedding


class Block(nn.Module):
    """Pre-norm transformer block with one pair of norms per modality.

    The weights are shared by audio, video and both; only the norms differ: ``norm1`` and
    ``norm2`` for both together and for the single-modality branches, ``_a`` for audio alone and
    ``_v`` for video alone in the joint blocks (Gong et al., ICLR 2023).

    Args:
        width: of a token.
        heads: of the attention.
        mlp_ratio: width of the MLP over that of a token.
        temporal: attention among the tokens of several frames.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        temporal: TemporalOptions = PER_FRAME,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm1_a = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm1_v = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = TEMPORAL.build(temporal, width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm2_a = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm2_v = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def norms(self, modality: Modality) -> tuple[nn.LayerNorm, nn.LayerNorm]:
        """Norms before attention and MLP."""
        return {
            None: (self.norm1, self.norm2),
            "a": (self.norm1_a, self.norm2_a),
            "v": (self.norm1_v, self.norm2_v),
        }[modality]

    def forward(self, x: Tensor, modality: Modality = None, frames: int = 1) -> Tensor:
        """x: [N, L, D] -> [N, L, D].

        Args:
            modality: whose norms are used.
            frames: of a clip, whose tokens follow each other frame after frame.
        """
        first, second = self.norms(modality)
        x = x + self.attn(first(x), frames)
        return x + self.mlp(second(x))


def unused_norm_parameters(
    blocks: nn.ModuleList, passes: Collection[Modality]
) -> Iterator[nn.Parameter]:
    """Parameters of the norms of blocks that none of the passes uses."""
    modalities: tuple[Modality, ...] = (None, "a", "v")
    unused = [modality for modality in modalities if modality not in passes]
    for block in blocks:
        if isinstance(block, Block):  # other kinds have a single pair of norms
            for modality in unused:
                for norm in block.norms(modality):
                    yield from norm.parameters()


class CrossBlock(nn.Module):
    """Cross-attention block without self-attention (CrossMAE, arXiv 2401.14391).

    Args:
        width: of a token.
        heads: of the attention.
        mlp_ratio: width of the MLP over that of a token.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """Queries x: [N, M, D] attend to seen: [N, K, D] -> [N, M, D]."""
        q = self.q(self.norm1(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv = self.kv(seen).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, kv[0], kv[1])
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))
