"""Layers that separators, fusions and the speaker model share."""

from typing import cast

import torch
from torch import Tensor, nn

from cavmae.common.interpolation import interpolate_linearly
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.datasets.stream.rates import VIDEO_RATE

DILATIONS = (1, 2, 4, 8)
VIDEO_FRAME = SAMPLE_RATE // VIDEO_RATE  # samples


def groups_of(channels: int) -> int:
    """Number of groups for GroupNorm: of 8 channels each, or somewhat more."""
    return next(count for count in range(max(1, channels // 8), 0, -1) if channels % count == 0)


def activated(x: Tensor, norm: nn.Module) -> Tensor:
    """GELU of a norm, of the type of its input: autocast lets norms give 32 bits on a GPU."""
    return nn.functional.gelu(norm(x)).to(x.dtype)


def at_frame_rate(voices: Tensor, frames: int) -> Tensor:
    """Embeddings interpolated to the frame rate of a map: [N, K, T, D] -> [N, K, D, T']."""
    return interpolate_linearly(voices.transpose(2, 3), frames)


def at_video_rate(features: Tensor, hop: int) -> Tensor:
    """Means over video frames of 40 ms: [N, T', D] -> [N, T, D].

    Args:
        features: of STFT frames.
        hop: samples from a frame to the next.
    """
    frames = features.shape[1] * hop // VIDEO_FRAME
    return nn.functional.adaptive_avg_pool1d(features.transpose(1, 2), frames).transpose(1, 2)


class RotaryPositions(nn.Module):
    """Rotary positions (RoFormer, arXiv 2104.09864) of interleaved pairs of features.

    Args:
        width: of a head, an even number.
        theta: base of the frequencies.
    """

    def __init__(self, width: int, theta: float = 1e4):
        super().__init__()
        frequencies = theta ** -(torch.arange(0, width, 2) / width)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Queries or keys, rotated by their position: [..., T', width] of the same shape."""
        frequencies = cast(Tensor, self.frequencies)
        positions = torch.arange(x.shape[-2], device=x.device, dtype=frequencies.dtype)
        angles = positions[:, None] * frequencies
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        pairs = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1)
        return pairs.flatten(-2)


class DilatedConvs(nn.ModuleList):
    """Residual dilated convolutions over time.

    Args:
        width: D.
        layers: number of convolutions.
    """

    def __init__(self, width: int, layers: int):
        super().__init__()
        for layer in range(layers):
            dilation = DILATIONS[layer % len(DILATIONS)]
            self.append(
                nn.Sequential(
                    nn.GroupNorm(groups_of(width), width), nn.GELU(),
                    nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation),
                )
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, D, T], of the same shape."""
        for conv in self:
            x = x + conv(x)
        return x
