"""Motion pathway of convolutions over time and space in turns.

Shapes: N clips, T grey frames of h x w pixels, C channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.motion.base import MotionPathway, with_differences
from cavmae.finetune.motion.settings import ConvMotionOptions
from cavmae.finetune.separators.layers import groups_of

FRAMES_AT_ONCE = 8  # in inference on the CPU


class TimeBlock(nn.Module):
    """Residual factorised 3-D convolution: over time, then over space.

    Args:
        channels: C.
        dilation: in time, of a kernel of 3 frames.
    """

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups_of(channels), channels)
        self.time = nn.Conv2d(
            channels, channels, (3, 1), padding=(dilation, 0), dilation=(dilation, 1)
        )
        self.space = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Residual update [N T, C, h, w] -> [N T, C, h, w].

        Args:
            frames: T.
        """
        channels, height, width = x.shape[1:]
        # One step a line: without gradients each frees what the one before has made.
        y = self.norm(x)
        y = functional.gelu(y)
        # With channels last, frames are rows of [N, C, T, h w] without a copy, and the convolution
        # over them takes a fifth to a half of the time on a CPU.
        y = y.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        y = y.reshape(-1, frames, height * width, channels).permute(0, 3, 1, 2)
        y = self.time(y)
        y = y.permute(0, 2, 3, 1).reshape(-1, height, width, channels).permute(0, 3, 1, 2)
        y = functional.gelu(y)
        y = self.space(y)
        return x + y.contiguous()


class ConvPathway(MotionPathway):
    """Factorised 3-D convolutional network.

    3-D convolutions are computed as 2-D ones with frames as channels or as rows, which is
    equivalent and several times as fast on a CPU. Blocks are dilated by 1, 2, 1, 2, ... frames.

    Args:
        options: of the entry.
    """

    def __init__(self, options: ConvMotionOptions):
        super().__init__()
        self.channels = channels = options.width
        first = max(8, channels // 2)
        self.stem = nn.Conv2d(3, first, 4, stride=2, padding=1)
        self.norm = nn.GroupNorm(groups_of(first), first)
        self.down = nn.Conv2d(first, channels, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(TimeBlock(channels, 1 + i % 2) for i in range(options.depth))
        self.last = nn.GroupNorm(groups_of(channels), channels)

    def forward(self, frames: Tensor) -> Tensor:
        """See :meth:`MotionPathway.forward`."""
        x = with_differences(frames, self.stem.weight.dtype).flatten(0, 1)  # [N T, 3, h, w]
        if x.is_cpu and not torch.is_grad_enabled():
            # The first layers see single frames, and their outputs are the largest of all.
            x = torch.cat([self._reduce(part) for part in x.split(FRAMES_AT_ONCE)])
        else:
            x = self._reduce(x)
        for block in self.blocks:
            x = block(x, frames.shape[1])
        return functional.gelu(self.last(x)).unflatten(0, frames.shape[:2])

    def _reduce(self, x: Tensor) -> Tensor:
        """Features of single frames: [M, 3, h, w] -> [M, C, h / 4, w / 4]."""
        features: Tensor = self.down(functional.gelu(self.norm(self.stem(x))))
        return features
