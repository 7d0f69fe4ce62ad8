"""A map of features at a quarter of the frame's size, out of tokens, pixels and motion.

Tokens of a plain ViT say what is where, patch by patch (a simple pyramid, Li et al., ECCV 2022);
pixels say where exactly it ends; and what moves together is one thing: laterals from the fast
pathway to the slow one, as in audiovisual SlowFast networks.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.speaker.motion import groups_of
from cavmae.pretrain.positions import Grid

REACHES = (1, 2, 4, 1, 2, 4)  # dilations at the coarsest level: half a picture of 14 patches


class Merge(nn.Module):
    """A convolution of maps laid side by side, normalised."""

    def __init__(self, before: int, after: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, stride=stride, padding=1)
        self.norm = nn.GroupNorm(groups_of(after), after)

    def forward(self, *maps: Tensor) -> Tensor:
        """Maps [M, C_i, H, W] of one size -> [M, after, H, W], or less by the stride."""
        return functional.gelu(self.norm(self.conv(torch.cat(maps, dim=1))))


class Context(nn.Module):
    """A residual pair of convolutions, the first of which sees far.

    Args:
        channels: before and after.
        reach: dilation of the first.
    """

    def __init__(self, channels: int, reach: int):
        super().__init__()
        c = channels
        self.norm = nn.GroupNorm(groups_of(c), c)
        self.far = nn.Conv2d(c, c, 3, padding=reach, dilation=reach)
        self.near = nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[M, C, H, W] -> [M, C, H, W]."""
        found: Tensor = x + self.near(functional.gelu(self.far(self.norm(x))))
        return found


class PixelDecoder(nn.Module):
    """Levels at 1/16, 1/8 and 1/4 of the frame, from the coarsest to the finest.

    Args:
        width: of a token.
        motion: channels of the motion map.
        channels: of the map that comes out.
        grid: rows and columns of tokens.
    """

    def __init__(self, width: int, motion: int, channels: int, grid: Grid):
        super().__init__()
        self.grid = grid
        c = channels
        self.stem = nn.Conv2d(3, c, 7, stride=4, padding=3)
        self.stem_norm = nn.GroupNorm(groups_of(c), c)
        self.down8 = Merge(c, 2 * c, stride=2)
        self.down16 = Merge(2 * c + motion, 4 * c, stride=2)
        self.tokens = nn.Conv2d(width, 4 * c, 1)
        self.merge16 = Merge(8 * c, 4 * c)
        self.context = nn.Sequential(*(Context(4 * c, reach) for reach in REACHES))
        self.merge8 = Merge(6 * c + motion, 2 * c)
        self.merge4 = Merge(3 * c, c)
        self.out = nn.Conv2d(c, c, 1)
        # What slots are multiplied with has a size of 1 from the first step on.
        self.out_norm = nn.GroupNorm(1, c)

    def forward(self, tokens: Tensor, frames: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
        """The map of each frame, and what stands behind it.

        Args:
            tokens: [M, rows * columns, width].
            frames: [M, 3, 16 rows, 16 columns], normalised.
            motion: [M, motion, h, w], of the moment of each frame.

        Returns:
            [M, channels, 4 rows, 4 columns], and the coarsest level: [M, rows * columns,
            4 channels].
        """
        rows, columns = self.grid
        eighth = 2 * rows, 2 * columns
        if motion.shape[-2:] != eighth:
            # In fp32: the CPU cannot interpolate bf16 without aliasing.
            small = functional.interpolate(motion.float(), eighth, mode="bilinear", antialias=True)
            motion = small.to(motion.dtype)
        fine = functional.gelu(self.stem_norm(self.stem(frames)))
        middle = self.down8(fine)
        coarse = self.down16(torch.cat([middle, motion], dim=1))
        told = self.tokens(tokens.transpose(1, 2).unflatten(2, self.grid))
        whole = self.context(self.merge16(coarse, told))
        x = self.merge8(_twice(whole), middle, motion)
        return self.out_norm(self.out(self.merge4(_twice(x), fine))), whole.flatten(2).mT


def _twice(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")
