"""Interface of temporal attentions, and what all of them share.

Shapes: N clips, F frames, K tokens of a frame, D width of a token.
"""

import abc
from collections.abc import Iterator

from torch import Tensor, nn

from cavmae.pretrain.blocks import Attention
from cavmae.pretrain.temporal.settings import TemporalOptions


class TemporalAttention(Attention, abc.ABC):
    """Self-attention of a block among the tokens of a clip's frames.

    With one frame each is :class:`~cavmae.pretrain.blocks.Attention` to the bit. ``qkv`` and
    ``proj`` are shared by all, so that weights of one start every other one; what an entry has
    besides is its own and keeps the initial values that its constructor gives it.

    Args:
        options: of the entry.
        width: of a token.
        heads: among which the width is divided.
    """

    def __init__(self, options: TemporalOptions, width: int, heads: int):
        super().__init__(width, heads)

    def forward(self, x: Tensor, frames: int = 1) -> Tensor:
        """x: [N, F * K, D], frame after frame -> [N, F * K, D].

        Args:
            frames: F; audio, or audio and video together, are one frame.
        """
        return super().forward(x) if frames == 1 else self.mix_frames(x, frames)

    @abc.abstractmethod
    def mix_frames(self, x: Tensor, frames: int) -> Tensor:
        """Attention with at least two frames; shapes as in :meth:`forward`."""

    def temporal_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that only serve several frames: all but ``qkv`` and ``proj``."""
        shared = {id(p) for part in (self.qkv, self.proj) for p in part.parameters()}
        for name, parameter in self.named_parameters():
            if id(parameter) not in shared:
                yield name, parameter


def temporal_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of a model by name that only serve several frames."""
    return {
        f"{place}.{name}": parameter
        for place, module in model.named_modules()
        if isinstance(module, TemporalAttention)
        for name, parameter in module.temporal_parameters()
    }
