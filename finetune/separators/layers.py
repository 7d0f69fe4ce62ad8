"""Layers that separators, fusions and the speaker model share."""

from torch import Tensor, nn

DILATIONS = (1, 2, 4, 8)


def groups_of(channels: int) -> int:
    """Number of groups for GroupNorm: of 8 channels each, or somewhat more."""
    return next(count for count in range(max(1, channels // 8), 0, -1) if channels % count == 0)


def at_frame_rate(voices: Tensor, frames: int) -> Tensor:
    """Embeddings interpolated to the frame rate of a map: [N, K, T, D] -> [N, K, D, T']."""
    flat = voices.flatten(0, 1).transpose(1, 2)
    resampled = nn.functional.interpolate(flat, frames, mode="linear", align_corners=False)
    return resampled.unflatten(0, voices.shape[:2])


def dilated_convs(width: int, layers: int) -> nn.ModuleList:
    """Residual dilated convolutions over time, each of [N, width, T] to the same shape."""
    convs = nn.ModuleList()
    for layer in range(layers):
        dilation = DILATIONS[layer % len(DILATIONS)]
        convs.append(
            nn.Sequential(
                nn.GroupNorm(groups_of(width), width), nn.GELU(),
                nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation),
            )
        )  # fmt: skip
    return convs
