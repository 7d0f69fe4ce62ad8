"""Motion pathway of X3D blocks (Feichtenhofer, X3D, CVPR 2020, arXiv 2004.04730).

The stem and the first stage of X3D, which end at 1/4 of the frame: later stages would lose lips.
Two differences from the paper: the input has the frame and its differences to its neighbours in
place of three colors, and GroupNorm of each frame stands in for BatchNorm. Batches of a few clips,
whose frames are nearly equal, have no useful statistics, and a clip's motion must not depend on the
other clips of its batch.

Maps are [N, C, T, h, w] in the memory format ``channels_last_3d``. In it a channelwise convolution
takes a fifth of the time on a CPU forward, and less than half backward. Measured beside it: sums of
2-D convolutions of each temporal tap, and of shifted products, which are slower in either format.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.separators.layers import groups_of
from cavmae.finetune.speaker.motion.base import MotionPathway, with_differences
from cavmae.finetune.speaker.motion.settings import X3DOptions

SQUEEZE_RATIO = 1 / 16
SQUEEZE_MULTIPLE = 8  # of squeezed channels, and their least number


def squeezed_channels(channels: int) -> int:
    """Width of a squeeze-excitation: 1/16, to the nearest 8, at most a tenth below."""
    exact = channels * SQUEEZE_RATIO
    step = SQUEEZE_MULTIPLE
    rounded = max(step, int(exact + step / 2) // step * step)
    return rounded if rounded >= 0.9 * exact else rounded + step


class FrameNorm(nn.GroupNorm):
    """GroupNorm of each frame.

    Args:
        channels: C.
    """

    def __init__(self, channels: int):
        super().__init__(groups_of(channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, T, h, w] -> [N, C, T, h, w]."""
        frames = super().forward(x.transpose(1, 2).flatten(0, 1))
        return frames.unflatten(0, (len(x), -1)).transpose(1, 2)


class SqueezeExcitation(nn.Module):
    """Gates of channels from their means over the clip (Hu et al., CVPR 2018).

    Args:
        channels: C.
    """

    def __init__(self, channels: int):
        super().__init__()
        squeezed = squeezed_channels(channels)
        self.squeeze = nn.Linear(channels, squeezed)
        self.excite = nn.Linear(squeezed, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, T, h, w] -> [N, C, T, h, w]."""
        gates = self.excite(self.squeeze(x.mean((2, 3, 4))).relu()).sigmoid()
        return x * gates[:, :, None, None, None]


class X3DStem(nn.Module):
    """Spatial convolution with a stride of 2, then a channelwise temporal one.

    Args:
        in_channels: of the input.
        width: channels of the output.
    """

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.spatial = nn.Conv3d(
            in_channels, width, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), bias=False
        )
        self.temporal = nn.Conv3d(
            width, width, (5, 1, 1), padding=(2, 0, 0), groups=width, bias=False
        )
        self.norm = FrameNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, T, h, w] -> [N, width, T, h / 2, w / 2], sizes rounded up."""
        return functional.relu(self.norm(self.temporal(self.spatial(x))))


class X3DBlock(nn.Module):
    """Inverted bottleneck: pointwise, channelwise 3 x 3 x 3 and pointwise convolution.

    Args:
        in_channels: of the input.
        width: channels of the output.
        hidden: channels of the bottleneck.
        stride: spatial, of the channelwise convolution.
        excitation: whether squeeze-excitation follows it.
    """

    def __init__(self, in_channels: int, width: int, hidden: int, stride: int, excitation: bool):
        super().__init__()
        self.expand = nn.Conv3d(in_channels, hidden, 1, bias=False)
        self.expand_norm = FrameNorm(hidden)
        self.channelwise = nn.Conv3d(
            hidden, hidden, 3, stride=(1, stride, stride), padding=1, groups=hidden, bias=False
        )
        self.channelwise_norm = FrameNorm(hidden)
        self.excitation = SqueezeExcitation(hidden) if excitation else nn.Identity()
        self.project = nn.Conv3d(hidden, width, 1, bias=False)
        self.project_norm = FrameNorm(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv3d(in_channels, width, 1, stride=(1, stride, stride), bias=False),
                FrameNorm(width),
            )

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, T, h, w] -> [N, width, T, h / stride, w / stride], sizes rounded up."""
        y = functional.relu(self.expand_norm(self.expand(x)))
        y = self.excitation(self.channelwise_norm(self.channelwise(y)))
        y = self.project_norm(self.project(functional.silu(y)))
        return functional.relu(y + self.shortcut(x))


class X3DPathway(MotionPathway):
    """Stem and a stage of :class:`X3DBlock`, every other of which has a squeeze-excitation.

    Args:
        options: of the entry.
    """

    def __init__(self, options: X3DOptions):
        super().__init__()
        self.channels = width = options.width
        self.frame_stride = options.frame_stride
        hidden = int(options.bottleneck * width)
        self.stem = X3DStem(3, width)
        self.blocks = nn.Sequential(*(
            X3DBlock(width, width, hidden, 1 if i else 2, i % 2 == 0) for i in range(options.depth)
        ))  # fmt: skip

    def forward(self, frames: Tensor) -> Tensor:
        """See :meth:`MotionPathway.forward`."""
        x = with_differences(frames[:, :: self.frame_stride], self.stem.spatial.weight.dtype)
        x = x.transpose(1, 2).contiguous(memory_format=torch.channels_last_3d)
        features: Tensor = self.blocks(self.stem(x)).transpose(1, 2)  # [N, T', C, h / 4, w / 4]
        if self.frame_stride == 1:
            return features
        return features.repeat_interleave(self.frame_stride, dim=1)[:, : frames.shape[1]]
