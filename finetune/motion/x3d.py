"""Motion pathway of X3D blocks (Feichtenhofer, X3D, CVPR 2020, arXiv 2004.04730).

The stem and the first stage of X3D, which end at 1/4 of the frame: later stages would lose lips.
Two differences from the paper: the input has the frame and its differences to its neighbours in
place of three colors, and GroupNorm of each frame stands in for BatchNorm. Batches of a few clips,
whose frames are nearly equal, have no useful statistics, and a clip's motion must not depend on the
other clips of its batch.

Maps are [N, T, h, w, C], channels last, where 2-D channelwise convolutions are fast on a CPU. 3-D
ones are sums of 2-D ones for each frame of the kernel: with gradients, that takes half the time of
PyTorch's 3-D convolution in its better memory format.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.motion.base import MotionPathway, with_differences
from cavmae.finetune.motion.settings import X3DOptions
from cavmae.finetune.separators.layers import groups_of

SQUEEZE_RATIO = 1 / 16


def rounded_channels(channels: float) -> int:
    """Nearest multiple of 8, at least 8 and at most a tenth below, as X3D rounds widths."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


class FrameNorm(nn.GroupNorm):
    """GroupNorm of each frame.

    Args:
        channels: C.
    """

    def __init__(self, channels: int):
        super().__init__(groups_of(channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, h, w, C] -> [N, T, h, w, C]."""
        frames = super().forward(x.flatten(0, 1).movedim(-1, 1))
        return frames.movedim(1, -1).unflatten(0, x.shape[:2])


class ChannelwiseConv(nn.Conv3d):
    """Channelwise 3 x 3 x 3 convolution.

    Args:
        channels: C.
        spatial_stride: of rows and columns.
    """

    def __init__(self, channels: int, spatial_stride: int):
        stride = (1, spatial_stride, spatial_stride)
        super().__init__(
            channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, h, w, C] -> [N, T, h / stride, w / stride, C], sizes rounded up."""
        frames = x.flatten(0, 1).movedim(-1, 1)
        previous, total, following = (
            functional.conv2d(frames, weight, None, self.stride[1:], 1, 1, self.groups)
            .movedim(1, -1)
            .unflatten(0, x.shape[:2])
            for weight in self.weight.unbind(2)
        )
        total[:, 1:] += previous[:, :-1]
        total[:, :-1] += following[:, 1:]
        return total


class SqueezeExcitation(nn.Module):
    """Gates of channels from their means over the clip (Hu et al., CVPR 2018).

    Args:
        channels: C.
    """

    def __init__(self, channels: int):
        super().__init__()
        squeezed = rounded_channels(channels * SQUEEZE_RATIO)
        self.squeeze = nn.Linear(channels, squeezed)
        self.excite = nn.Linear(squeezed, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, h, w, C] -> [N, T, h, w, C]."""
        gates = self.excite(self.squeeze(x.mean((1, 2, 3))).relu()).sigmoid()
        return x * gates[:, None, None, None]


class X3DStem(nn.Module):
    """Spatial convolution with a stride of 2, then a channelwise one over 5 frames.

    Args:
        in_channels: of the input.
        width: channels of the output.
    """

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.spatial = nn.Conv2d(in_channels, width, 3, stride=2, padding=1, bias=False)
        # Of frames as rows, and pixels as columns.
        self.temporal = nn.Conv2d(width, width, (5, 1), padding=(2, 0), groups=width, bias=False)
        self.norm = FrameNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, h, w, in_channels] -> [N, T, h / 2, w / 2, width], sizes rounded up."""
        frames = self.spatial(x.flatten(0, 1).movedim(-1, 1)).movedim(1, -1)
        maps = frames.unflatten(0, x.shape[:2])
        y = (
            self.temporal(maps.flatten(2, 3).movedim(-1, 1))
            .movedim(1, -1)
            .unflatten(2, maps.shape[2:4])
        )
        return functional.relu(self.norm(y))


class X3DBlock(nn.Module):
    """Inverted bottleneck: pointwise, channelwise 3 x 3 x 3 and pointwise convolution.

    Args:
        in_channels: of the input.
        width: channels of the output.
        hidden: channels of the bottleneck.
        stride: of rows and columns in the channelwise convolution.
        excitation: whether squeeze-excitation follows it.
    """

    def __init__(self, in_channels: int, width: int, hidden: int, stride: int, excitation: bool):
        super().__init__()
        self.stride = stride
        self.expand = nn.Linear(in_channels, hidden, bias=False)
        self.expand_norm = FrameNorm(hidden)
        self.channelwise = ChannelwiseConv(hidden, stride)
        self.channelwise_norm = FrameNorm(hidden)
        self.excitation = SqueezeExcitation(hidden) if excitation else nn.Identity()
        self.project = nn.Linear(hidden, width, bias=False)
        self.project_norm = FrameNorm(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != width:
            self.shortcut = nn.Sequential(
                nn.Linear(in_channels, width, bias=False), FrameNorm(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, h, w, in_channels] -> [N, T, h / stride, w / stride, width], rounded up."""
        y = functional.relu(self.expand_norm(self.expand(x)))
        y = self.excitation(self.channelwise_norm(self.channelwise(y)))
        y = self.project_norm(self.project(functional.silu(y)))
        return functional.relu(y + self.shortcut(x[:, :, :: self.stride, :: self.stride]))


class X3DPathway(MotionPathway):
    """Stem and a stage of :class:`X3DBlock`, every other of which has a squeeze-excitation.

    Other than in the paper, the channels of a bottleneck are a multiple of 8: norms are three times
    as fast for it.

    Args:
        options: of the entry.
    """

    def __init__(self, options: X3DOptions):
        super().__init__()
        self.channels = width = options.width
        self.frame_stride = options.frame_stride
        hidden = rounded_channels(options.bottleneck * width)
        self.stem = X3DStem(3, width)
        self.blocks = nn.Sequential(*(
            X3DBlock(width, width, hidden, 1 if i else 2, i % 2 == 0) for i in range(options.depth)
        ))  # fmt: skip

    def forward(self, frames: Tensor) -> Tensor:
        """See :meth:`MotionPathway.forward`."""
        x = with_differences(frames[:, :: self.frame_stride], self.stem.spatial.weight.dtype)
        # Channelwise convolutions in bf16 take five times as long on a CPU, norms as well.
        with torch.autocast("cpu", enabled=False):
            maps: Tensor = self.blocks(self.stem(x.movedim(2, -1).contiguous()))
        features = maps.movedim(-1, 2)
        if self.frame_stride == 1:
            return features
        return features.repeat_interleave(self.frame_stride, dim=1)[:, : frames.shape[1]]
