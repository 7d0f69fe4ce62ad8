"""Lateral connection from Fast to Slow (SlowFast networks, Feichtenhofer et al., ICCV 2019).

A convolution over time with a stride, to twice the channels, as in the paper. Difference: key
frames are so far apart that a kernel of 5 frames with a stride to them would pass most frames over.
The stride is shorter than the kernel, and the mean over the rest of a key frame's time follows.

Shapes: N clips, T frames of Fast, F key frames, C channels, h x w pixels.
"""

from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.separators.layers import groups_of

CHANNEL_RATIO = 2


class FastToSlow(nn.Module):
    """Convolution over the frames of Fast, at the rate of key frames.

    Args:
        channels: C.
        kernel: frames.
        ratio: T / F.

    Attributes:
        channels: of the output.
    """

    def __init__(self, channels: int, kernel: int, ratio: int):
        super().__init__()
        self.channels = CHANNEL_RATIO * channels
        stride = next(s for s in range(kernel - 1, 0, -1) if ratio % s == 0)
        # Each output covers its own frames and as many before as after, or one more after.
        before = (kernel - stride) // 2
        self.padding = before, kernel - stride - before
        self.steps = ratio // stride
        self.conv = nn.Conv2d(channels, self.channels, (kernel, 1), (stride, 1))
        self.norm = nn.GroupNorm(groups_of(self.channels), self.channels)

    def forward(self, motion: Tensor) -> Tensor:
        """[N, T, C, h, w] -> [N, F, 2 C, h, w]."""
        size = motion.shape[-2:]
        x = motion.flatten(3).transpose(1, 2)  # [N, C, T, h w]
        x = self.conv(functional.pad(x, (0, 0, *self.padding))).transpose(1, 2)
        n, steps = x.shape[:2]
        # Normalised step by step, so that each sees no other time but by the convolution.
        x = functional.relu(self.norm(x.flatten(0, 1))).unflatten(0, (n, steps))
        return x.unflatten(1, (-1, self.steps)).mean(2).unflatten(3, size)
