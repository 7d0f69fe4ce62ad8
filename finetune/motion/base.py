"""Interface of motion pathways: 25 grey frames a second to a map at 1/4 of their size.

Shapes: N clips, T grey frames of h x w pixels, C channels.
"""

import abc

import torch
from torch import Tensor, nn

GREY_MEAN, GREY_STD = 110.0, 60.0  # of grey values 0 to 255, roughly those of videos of people
DIFFERENCE_GAIN = 4.0  # of differences between frames, which are small compared with the frames


class MotionPathway(nn.Module, abc.ABC):
    """Spatio-temporal network over all grey frames, with a spatial stride of 4.

    It resolves lips, which a ViT with patches of 16 pixels at 3 key frames a second does not. The
    constructor takes the options of the entry.

    Attributes:
        channels: C.
    """

    channels: int

    @abc.abstractmethod
    def forward(self, frames: Tensor) -> Tensor:
        """Motion features of grey frames: [N, T, h, w] -> [N, T, C, h / 4, w / 4].

        Args:
            frames: uint8, or float of 0 to 255; any T from 1 on; h and w are multiples of 4.
        """


def with_differences(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """Input of a pathway: normalised frame, backward and forward difference.

    The three are a temporal kernel of 3 frames in another basis.

    Args:
        frames: uint8, or float of 0 to 255, [N, T, h, w]; before the first and after the last, the
            video is still.
        dtype: of the result.

    Returns:
        [N, T, 3, h, w].
    """
    x = (frames.to(dtype) - GREY_MEAN) / GREY_STD
    difference = DIFFERENCE_GAIN * x.diff(dim=1)
    still = torch.zeros_like(x[:, :1])
    backward = torch.cat([still, difference], dim=1)
    forward = torch.cat([difference, still], dim=1)
    return torch.stack([x, backward, forward], dim=2)
