"""Pixel decoder with a pyramid of convolutions, merged from coarse to fine.

Tokens of a plain ViT give semantics patch by patch (as the simple feature pyramid of ViTDet, Li et
al., ECCV 2022), pixels give exact contours, and lateral connections from the motion pathway (as in
audiovisual SlowFast networks) group what moves together.

Shapes: M frames of all clips, H x W and h x w pixels of maps.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.separators.layers import groups_of
from cavmae.finetune.speaker.pixel_decoders.base import Merge, PixelDecoder, upsample
from cavmae.finetune.speaker.pixel_decoders.settings import PyramidOptions
from cavmae.pretrain.positions import Grid

# At the coarsest level, where they reach over half a frame of 14 patches.
DILATIONS = (1, 2, 4, 1, 2, 4)


class Context(nn.Module):
    """Residual block of a dilated and a pointwise convolution.

    Args:
        channels: of input and output.
        dilation: of the first convolution.
    """

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        c = channels
        self.norm = nn.GroupNorm(groups_of(c), c)
        self.dilated = nn.Conv2d(c, c, 3, padding=dilation, dilation=dilation)
        self.pointwise = nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[M, C, H, W] -> [M, C, H, W]."""
        output: Tensor = x + self.pointwise(functional.gelu(self.dilated(self.norm(x))))
        return output


class PyramidDecoder(PixelDecoder):
    """Feature pyramid at 1/16, 1/8 and 1/4 of the frame, merged from coarse to fine.

    Args:
        options: of the entry.
        width: of a token.
        motion: channels of the motion map.
        channels: of the output.
        grid: rows and columns of tokens.
    """

    def __init__(self, options: PyramidOptions, width: int, motion: int, channels: int, grid: Grid):
        super().__init__(grid)
        c = channels
        self.stem = nn.Conv2d(3, c, 7, stride=4, padding=3)
        self.stem_norm = nn.GroupNorm(groups_of(c), c)
        self.down8 = Merge(c, 2 * c, stride=2)
        self.down16 = Merge(2 * c + motion, 4 * c, stride=2)
        self.token_proj = nn.Conv2d(width, 4 * c, 1)
        self.merge16 = Merge(8 * c, 4 * c)
        self.context = nn.Sequential(*(Context(4 * c, dilation) for dilation in DILATIONS))
        self.merge8 = Merge(6 * c + motion, 2 * c)
        self.merge4 = Merge(3 * c, c)
        self.out = nn.Conv2d(c, c, 1)
        # Mask logits are products with this map, so its scale is 1 from the first step.
        self.out_norm = nn.GroupNorm(1, c)

    def decode(self, tokens: Tensor, frames: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`PixelDecoder.decode`."""
        fine = functional.gelu(self.stem_norm(self.stem(frames)))
        middle = self.down8(fine)
        coarse = self.down16(torch.cat([middle, motion], dim=1))
        whole = self.context(self.merge16(coarse, self.token_proj(tokens)))
        x = self.merge8(upsample(whole), middle, motion)
        return self.out_norm(self.out(self.merge4(upsample(x), fine))), whole
