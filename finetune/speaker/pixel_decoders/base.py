"""Interface of pixel decoders: tokens, pixels and motion to a map at 1/4 of the frame.

Shapes: M frames of all clips, H x W and h x w pixels of maps.
"""

import abc

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.separators.layers import groups_of
from cavmae.pretrain.positions import Grid


class PixelDecoder(nn.Module, abc.ABC):
    """Multi-scale decoder of the tokens of a plain ViT, beside pixels and motion.

    The constructor of an entry takes its options, the width of a token, the channels of the motion
    map, those of the output, and the grid of tokens.

    Args:
        grid: rows and columns of tokens.
    """

    def __init__(self, grid: Grid):
        super().__init__()
        self.grid = grid

    @abc.abstractmethod
    def decode(self, tokens: Tensor, frames: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
        """Feature map of each frame, and its coarsest level.

        Mask logits are products with the feature map, so its scale is to be 1 from the first step.

        Args:
            tokens: [M, width, rows, columns].
            frames: [M, 3, 16 rows, 16 columns], normalised.
            motion: [M, motion, 2 rows, 2 columns].

        Returns:
            [M, channels, 4 rows, 4 columns]; and [M, 4 channels, rows, columns].
        """

    def forward(self, tokens: Tensor, frames: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
        """Feature map of each frame, and its coarsest level as tokens.

        Args:
            tokens: [M, rows * columns, width].
            frames: [M, 3, 16 rows, 16 columns], normalised.
            motion: [M, motion, h, w], around each frame's time, of any size.

        Returns:
            [M, channels, 4 rows, 4 columns]; and [M, rows * columns, 4 channels].
        """
        rows, columns = self.grid
        eighth = 2 * rows, 2 * columns
        if motion.shape[-2:] != eighth:
            # In fp32: the CPU has no antialiased interpolation of bf16.
            small = functional.interpolate(motion.float(), eighth, mode="bilinear", antialias=True)
            motion = small.to(motion.dtype)
        token_map = tokens.transpose(1, 2).unflatten(2, self.grid)
        fine, coarse = self.decode(token_map, frames, motion)
        return fine, coarse.flatten(2).mT


class Merge(nn.Module):
    """Normalised convolution of concatenated maps."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.norm = nn.GroupNorm(groups_of(out_channels), out_channels)

    def forward(self, *maps: Tensor) -> Tensor:
        """Maps [M, C_i, H, W] -> [M, out_channels, H / stride, W / stride]."""
        return functional.gelu(self.norm(self.conv(torch.cat(maps, dim=1))))


def upsample(x: Tensor) -> Tensor:
    """Map at twice the resolution, by nearest neighbours: [M, C, H, W] -> [M, C, 2 H, 2 W]."""
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")
