"""Transformer decoder layers of slots on video and audio.

Shapes: N clips, Q slots, L tokens, D width.
"""

from torch import Tensor, nn
from torch.nn import functional

from cavmae.pretrain.blocks import NORM_EPS, Mlp


class PositionedAttention(nn.Module):
    """Pre-norm attention with positions added to queries and keys, but not to values.

    Args:
        width: D.
        heads: attention heads.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(
        self,
        x: Tensor,
        pos: Tensor | None,
        context: Tensor | None = None,
        context_pos: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Residual attention [N, Q, D] of x [N, Q, D] to a context.

        Args:
            pos: positions of x, added to the queries.
            context: [N, L, D]; None: self-attention.
            context_pos: positions of the context, added to the keys.
            attn_mask: bool [N, Q, L], True where a query may attend; None: everywhere.
        """
        normed = self.norm(x)
        query = normed if pos is None else normed + pos
        if context is None:
            context, key = normed, query
        else:
            key = context if context_pos is None else context + context_pos

        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [N, heads, Q or L, ...]

        attended = functional.scaled_dot_product_attention(
            split(self.q(query)),
            split(self.k(key)),
            split(self.v(context)),
            None if attn_mask is None else attn_mask[:, None],
        )
        updated: Tensor = x + self.proj(attended.transpose(1, 2).flatten(2))
        return updated


class SlotLayer(nn.Module):
    """Attention of slots to video under their masks, to audio and to each other; then an MLP.

    Args:
        width: D.
        heads: attention heads.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.slot_attn = PositionedAttention(width, heads)
        self.video_attn = PositionedAttention(width, heads)
        self.audio_attn = PositionedAttention(width, heads)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, 4 * width)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        video: Tensor,
        audio: Tensor,
        attn_mask: Tensor | None,
    ) -> Tensor:
        """Slots x [N, Q, D] -> [N, Q, D].

        Args:
            pos: [N, Q, D].
            video: [N, F L, D], tokens of key frames with their positions.
            audio: [N, La, D], tokens of audio.
            attn_mask: bool [N, Q, F L], tokens that each slot may attend to.
        """
        x = self.video_attn(x, pos, video, attn_mask=attn_mask)
        x = self.audio_attn(x, pos, audio)
        x = self.slot_attn(x, pos)
        return x + self.mlp(self.norm(x))


def mlp_head(width: int, hidden: int, out: int) -> nn.Sequential:
    """Head of three linear layers on a normalised query, as in IQuery and Mask2Former."""
    return nn.Sequential(
        nn.LayerNorm(width, eps=NORM_EPS), nn.Linear(width, hidden), nn.GELU(),
        nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, out),
    )  # fmt: skip
