"""Decoders: slots that look at pictures and sound, and voices that follow what moves.

Shapes: N clips, Q slots, L tokens, D width, T' frames of 40 ms.
"""

from torch import Tensor, nn
from torch.nn import functional

from cavmae.pretrain.blocks import NORM_EPS, Mlp


class PositionedAttention(nn.Module):
    """A pre-norm attention, with positions that are added to what asks and what is asked.

    Args:
        width: D.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(
        self,
        x: Tensor,
        place: Tensor | None,
        seen: Tensor | None = None,
        seen_place: Tensor | None = None,
        allowed: Tensor | None = None,
    ) -> Tensor:
        """x [N, Q, D] and what it saw.

        Args:
            place: added to what asks.
            seen: [N, L, D]; None: x itself.
            seen_place: added to what is asked.
            allowed: bool [N, Q, L], where it may look; None: everywhere.
        """
        own = self.norm(x)
        asking = own if place is None else own + place
        if seen is None:
            seen, asked = own, asking
        else:
            asked = seen if seen_place is None else seen + seen_place

        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        attended = functional.scaled_dot_product_attention(
            split(self.q(asking)),
            split(self.k(asked)),
            split(self.v(seen)),
            None if allowed is None else allowed[:, None],
        )
        found: Tensor = x + self.proj(attended.transpose(1, 2).flatten(2))
        return found


class SlotLayer(nn.Module):
    """Slots look at each other, at pictures where their masks were, at the sound; then an MLP.

    Args:
        width, heads: of the attentions.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.slots = PositionedAttention(width, heads)
        self.pictures = PositionedAttention(width, heads)
        self.sound = PositionedAttention(width, heads)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, 4 * width)

    def forward(
        self,
        x: Tensor,
        place: Tensor,
        pictures: Tensor,
        sound: Tensor,
        allowed: Tensor | None,
    ) -> Tensor:
        """[N, Q, D] -> [N, Q, D]."""
        x = self.pictures(x, place, pictures, allowed=allowed)
        x = self.sound(x, place, sound)
        x = self.slots(x, place)
        return x + self.mlp(self.norm(x))


class VoiceLayer(nn.Module):
    """Frames of all slots look at each other and at the mixture; then an MLP.

    That slots see each other's frames is what lets them settle whose voice it is.

    Args:
        width, heads: of the attentions.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.frames = PositionedAttention(width, heads)
        self.mixture = PositionedAttention(width, heads)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor, place: Tensor, mixture: Tensor, mixture_place: Tensor) -> Tensor:
        """x [N, Q * T', D], looking at the mixture [N, T', D] -> [N, Q * T', D]."""
        x = self.frames(x, place)
        x = self.mixture(x, place, mixture, mixture_place)
        return x + self.mlp(self.norm(x))


def mlp_head(width: int, hidden: int, out: int) -> nn.Sequential:
    """Three linear maps, as IQuery and Mask2Former turn a query into an embedding."""
    return nn.Sequential(
        nn.LayerNorm(width, eps=NORM_EPS), nn.Linear(width, hidden), nn.GELU(),
        nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, out),
    )  # fmt: skip
