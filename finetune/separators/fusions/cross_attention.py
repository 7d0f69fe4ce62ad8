"""Cross-attention of a map to the embeddings of voices, which f2f and f2b fusions share.

A style-transfer U-Net of the Grad-TTS family attends from a 2-D map to a 1-D sequence in two ways.
In f2f a frame is a query, whose features and values differ by frequency; in f2b every bin is one.
Both are the same operator: f2b is f2f on a map of a single band, in which every bin is a frame.

Time enters by rotary positions (Su et al., arXiv 2104.09864) in half of the channels, so that only
the distance of a query and a key counts; with equal times the order of a sequence does not. The
null key has no place in time, and is zero there.

Shapes: N mixtures, K voices, C channels of the map, G bands, L queries, T frames of 40 ms, D width
of a voice's embedding, h heads, a width of a head for each band, P outputs.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

FASTEST, SLOWEST = math.pi / 2, math.pi / 64  # radians in 40 ms of rotary positions
# Logit of a query for its own time before training, of the null key about 0. With 8 rates 1 % of
# the weights are then more than 16 frames away (computed; with 8.0 and 4 rates 10 %).
FOCUS = 10.0


class CrossAttention(nn.Module):
    """Attention of a map's queries to the embedding of each voice, as a gated update of the map.

    The update is g * LayerNorm(W_O Z), g learned from 0 (ReZero, Bachlechner et al., UAI 2021,
    arXiv 2003.04887). A learned null key and value is appended, which a query attends to where
    nothing is visible.

    Args:
        channels: C.
        width: D.
        heads: h.
        head_width: a, a multiple of 4.
        bands: G.
    """

    def __init__(self, channels: int, width: int, heads: int, head_width: int, bands: int):
        super().__init__()
        self.heads, self.bands = heads, bands
        row = bands * head_width
        self.query = nn.Conv2d(channels, heads * head_width, 1)
        self.key = nn.Linear(width, heads * row)
        self.value = nn.Linear(width, heads * row)
        self.null_key = nn.Parameter(torch.zeros(heads, bands, head_width // 2))
        self.null_value = nn.Parameter(torch.randn(heads, bands, head_width) * 0.02)
        self.out = nn.Linear(heads * head_width, channels)
        self.norm = nn.LayerNorm(channels)
        self.gate = nn.Parameter(torch.zeros(1))
        pairs = row // 4
        rates = FASTEST * (SLOWEST / FASTEST) ** (torch.arange(pairs) / max(1, pairs - 1))
        # Each band has slow and fast rates.
        self.register_buffer("rates", rates.view(-1, bands).T.contiguous(), persistent=False)
        # Equal biases of queries and keys, rotated by their times, make a query start with a focus
        # on its own time; from an even distribution over all frames it would have to be learned.
        bias = (2 * FOCUS / row**0.5) ** 0.5
        with torch.no_grad():
            for layer in (self.query, self.key):
                biases = layer.get_parameter("bias").zero_()
                biases.view(-1, 2, head_width // 2)[:, 0] = bias

    def forward(
        self, x_ncgl: Tensor, times: Tensor, voices: Tensor, visible: Tensor | None = None
    ) -> Tensor:
        """Update of the map for each voice: [N, C, G, L] -> [N, K, C, G, L].

        Args:
            x_ncgl: map, projected once for all voices.
            times: [L], of the queries, in frames of 40 ms; frame t of the embeddings is at t + 0.5.
            voices: [N, K, T, D].
            visible: bool [N, K, T], frames that may be attended to; None: all.
        """
        query = self.query(x_ncgl).unflatten(1, (self.heads, -1)).permute(0, 1, 4, 3, 2)
        query = self._rotated(query, times).flatten(3)  # [N, h, L, G a]
        key_times = torch.arange(voices.shape[2], device=times.device) + 0.5
        key = self._rotated(self._by_head(self.key(voices)), key_times).flatten(4)
        value = self._by_head(self.value(voices)).flatten(4)  # [N, K, h, T, G a]
        null_key = functional.pad(self.null_key, (self.null_key.shape[-1], 0))
        key, value = _appended(key, null_key), _appended(value, self.null_value)
        mask = None if visible is None else functional.pad(visible, (0, 1), value=True)
        attended = []
        # Voices in turn: in one batch the queries, the largest tensor, were repeated for each.
        for voice in range(voices.shape[1]):
            allowed = None if mask is None else mask[:, voice, None, None]  # [N, 1, 1, T + 1]
            attended.append(
                functional.scaled_dot_product_attention(
                    query, key[:, voice], value[:, voice], allowed
                )
            )
        z = torch.stack(attended, dim=1).unflatten(-1, (self.bands, -1))  # [N, K, h, L, G, a]
        z = z.permute(0, 1, 4, 3, 2, 5).flatten(4)  # [N, K, G, L, h a]
        update: Tensor = self.gate * self.norm(self.out(z))
        return update.movedim(-1, 2)

    def _by_head(self, sequence: Tensor) -> Tensor:
        """[N, K, T, h G a] -> [N, K, h, T, G, a]."""
        return sequence.unflatten(-1, (self.heads, self.bands, -1)).transpose(2, 3)

    def _rotated(self, x: Tensor, times: Tensor) -> Tensor:
        """Queries or keys [..., L, G, a], the first half of their channels turned by their time."""
        rates = cast(Tensor, self.rates)
        angles = times.float()[:, None, None] * rates.float()  # [L, G, a / 4]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        pairs = rates.shape[1]
        first, second, rest = x.split([pairs, pairs, 2 * pairs], dim=-1)
        turned = first * cos - second * sin, first * sin + second * cos
        return torch.cat([*turned, rest], dim=-1)


def _appended(sequence: Tensor, null: Tensor) -> Tensor:
    """Sequence [N, K, h, T, G a] with the null [h, G, a] at its end: [N, K, h, T + 1, G a]."""
    rows = null.flatten(1)[:, None].to(sequence.dtype)
    return torch.cat([sequence, rows.expand(*sequence.shape[:2], -1, -1, -1)], dim=3)


def query_times(queries: int, frames: int, device: torch.device) -> Tensor:
    """Times [L] of the centers of ``queries`` spread over ``frames`` of 40 ms, in such frames."""
    return (torch.arange(queries, device=device) + 0.5) * (frames / queries)


class UpdatedMapHead(nn.Module):
    """Two layers on the sum of a map and an update for each voice.

    The first layer is linear: that of the map is computed once for all voices, that of the update
    at the update's own resolution.

    Args:
        channels: C.
        outputs: P.
    """

    def __init__(self, channels: int, outputs: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 1)
        self.last = nn.Conv2d(channels, outputs, 1)

    def forward(self, x_ncbt: Tensor, update: Tensor) -> Tensor:
        """Outputs [N, K, P, B, T'].

        Args:
            x_ncbt: map [N, C, B, T'].
            update: [N, K, C, b, t], interpolated to the bins and frames of the map.
        """
        hidden = functional.conv2d(update.flatten(0, 1), self.first.weight)
        if hidden.shape[-2:] != x_ncbt.shape[-2:]:
            hidden = functional.interpolate(
                hidden, x_ncbt.shape[-2:], mode="bilinear", align_corners=False
            )
        hidden = hidden.unflatten(0, update.shape[:2]) + self.first(x_ncbt)[:, None]
        outputs: Tensor = self.last(functional.gelu(hidden.flatten(0, 1)))
        return outputs.unflatten(0, update.shape[:2])
