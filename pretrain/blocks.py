"""Transformer blocks: CAV-MAE's own, with three pairs of norms, and one of cross-attention."""

from typing import Literal

from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.nn import functional

Modality = Literal["a", "v"] | None
NORM_EPS = 1e-5


class Block(nn.Module):
    """A pre-norm transformer block whose norms depend on what passes through.

    The weights are shared by sound, picture and both; only the norms differ: ``norm1`` and
    ``norm2`` for both together and for the single-modality branches, ``_a`` for sound alone and
    ``_v`` for pictures alone in the joint blocks (Gong et al., ICLR 2023).

    Args:
        width: of a token.
        heads: of the attention.
        mlp_ratio: width of the MLP over that of a token.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm1_a = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm1_v = nn.LayerNorm(width, eps=NORM_EPS)
        # timm's attention is fused (scaled_dot_product_attention) wherever PyTorch can.
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm2_a = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm2_v = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, hidden_features=int(width * mlp_ratio))

    def forward(self, x: Tensor, modality: Modality = None) -> Tensor:
        """x: [N, L, D] -> [N, L, D]."""
        first, second = {
            None: (self.norm1, self.norm2),
            "a": (self.norm1_a, self.norm2_a),
            "v": (self.norm1_v, self.norm2_v),
        }[modality]
        x = x + self.attn(first(x))
        return x + self.mlp(second(x))


class CrossBlock(nn.Module):
    """Tokens that look at others and not at each other (CrossMAE, arXiv 2401.14391).

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
        self.mlp = Mlp(width, hidden_features=int(width * mlp_ratio))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """x: [N, M, D], looking at seen: [N, K, D] -> [N, M, D]."""
        q = self.q(self.norm1(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv = self.kv(seen).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, kv[0], kv[1])
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))
