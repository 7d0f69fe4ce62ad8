"""Queries made of sound, and features of pictures mixed with it, as AVSegFormer (AAAI 2024).

Shapes: N clips, Q queries, L tokens of sound, D width, H and W of a map of features.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class QueryLayer(nn.Module):
    """Queries that look at each other, then at the sound; norms come after, attention has no bias.

    Args:
        width: of a query and of a token of sound.
        heads: of both attentions.
        mlp_ratio: width of the MLP over that of a query.
        dropout: of both attentions and of the MLP's hidden values.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0):
        super().__init__()
        how = {"dropout": dropout, "bias": False, "batch_first": True}
        self.self_attn = nn.MultiheadAttention(width, heads, **how)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn = nn.MultiheadAttention(width, heads, **how)
        self.norm2 = nn.LayerNorm(width)
        hidden = int(width * mlp_ratio)
        # In this order, so that the numbers of the linear maps are the published ones.
        self.ffn = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.norm3 = nn.LayerNorm(width)

    def forward(self, queries: Tensor, sound: Tensor) -> Tensor:
        """queries [N, Q, D] looking at sound [N, L, D] -> [N, Q, D]."""
        seen, _ = self.self_attn(queries, queries, queries, need_weights=False)
        queries = self.norm1(queries + seen)
        heard, _ = self.cross_attn(queries, sound, sound, need_weights=False)
        queries = self.norm2(queries + heard)
        return self.norm3(queries + self.ffn(queries))


class QueryGenerator(nn.Module):
    """Learned slots, filled with what is heard.

    With a single token of sound every query would get the same vector, whatever it asks: give it
    many.

    Args:
        queries: Q.
        width: D.
        layers: of :class:`QueryLayer`.
        heads, mlp_ratio, dropout: of each.
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

    def forward(self, sound: Tensor) -> Tensor:
        """Tokens of sound [N, L, D] -> queries [N, Q, D]."""
        queries = self.query.weight.expand(len(sound), -1, -1)
        for layer in self.layers:
            queries = layer(queries, sound)
        return queries


class CrossModalMixer(nn.Module):
    """Scales the channels of a map of features by how the sound fits them.

    The query attends over the map's pixels; a linear map and a sigmoid make it a weight from 0 to 1
    for each channel.

    Args:
        width: of the query, and channels of the map.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int = 8):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.kv_proj = nn.Linear(width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, features: Tensor, query: Tensor) -> Tensor:
        """features [N, D, H, W] and query [N, 1, D] -> [N, D, H, W]."""
        pixels = features.flatten(2).transpose(1, 2)
        q = self.q_proj(query).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv = self.kv_proj(pixels).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, kv[0], kv[1])
        weight = torch.sigmoid(self.proj(attended.transpose(1, 2).flatten(2)))
        return features * weight.transpose(1, 2)[..., None]
