"""Audio query generator and cross-modal mixer of AVSegFormer (AAAI 2024).

Shapes: N clips, Q queries, L audio tokens, D width, H x W pixels of a feature map.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class QueryLayer(nn.Module):
    """Post-norm decoder layer: self-attention, cross-attention to audio, MLP; no attention bias.

    Args:
        width: D, of queries and of audio tokens.
        heads: of both attentions.
        mlp_ratio: hidden width of the MLP over D.
        dropout: of both attentions.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0):
        super().__init__()
        options = {"dropout": dropout, "bias": False, "batch_first": True}
        self.self_attn = nn.MultiheadAttention(width, heads, **options)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn = nn.MultiheadAttention(width, heads, **options)
        self.norm2 = nn.LayerNorm(width)
        hidden = int(width * mlp_ratio)
        # This order gives the linear layers the published indices, so published weights load.
        self.ffn = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.norm3 = nn.LayerNorm(width)

    def forward(self, queries: Tensor, audio: Tensor) -> Tensor:
        """Queries [N, Q, D], given audio tokens [N, L, D] -> [N, Q, D]."""
        self_attended, _ = self.self_attn(queries, queries, queries, need_weights=False)
        queries = self.norm1(queries + self_attended)
        cross_attended, _ = self.cross_attn(queries, audio, audio, need_weights=False)
        queries = self.norm2(queries + cross_attended)
        return self.norm3(queries + self.ffn(queries))


class QueryGenerator(nn.Module):
    """Learned queries, conditioned on audio tokens.

    Attention to a single token gives every query the same vector, so the audio needs several.

    Args:
        queries: Q.
        width: D.
        layers: number of :class:`QueryLayer`.
        heads, mlp_ratio, dropout: of each layer.
    """

    def __init__(
        self,
        queries: int,
        width: int,
        layers: int = 6,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.query = nn.Embedding(queries, width)
        self.layers = nn.ModuleList(
            QueryLayer(width, heads, mlp_ratio, dropout) for _ in range(layers)
        )

    def forward(self, audio: Tensor) -> Tensor:
        """Audio tokens [N, L, D] -> queries [N, Q, D]."""
        queries = self.query.weight.expand(len(audio), -1, -1)
        for layer in self.layers:
            queries = layer(queries, audio)
        return queries


class CrossModalMixer(nn.Module):
    """Channel attention of a feature map, conditioned on an audio query.

    The query attends to the map's pixels; a linear layer and a sigmoid give each channel a weight
    from 0 to 1.

    Args:
        width: D, of the query and of the map.
        heads: attention heads.
    """

    def __init__(self, width: int, heads: int = 8):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.kv_proj = nn.Linear(width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, features: Tensor, query: Tensor) -> Tensor:
        """Features [N, D, H, W] and query [N, 1, D] -> [N, D, H, W]."""
        pixels = features.flatten(2).transpose(1, 2)
        q = self.q_proj(query).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        # [2, N, heads, H W, D / heads]
        kv = self.kv_proj(pixels).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, kv[0], kv[1])
        weight = torch.sigmoid(self.proj(attended.transpose(1, 2).flatten(2)))
        return features * weight.transpose(1, 2)[..., None]
