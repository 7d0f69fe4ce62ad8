"""Positional embeddings: fixed sin-cos for any grid, learned ones interpolated.

Sin-cos positions are those of MAE (He et al., CVPR 2022, arXiv 2111.06377), which CAV-MAE uses.
"""

import torch
from torch import Tensor

from cavmae.common.interpolation import interpolate_linearly

Grid = tuple[int, int]  # rows, columns


def sin_cos(width: int, places: Tensor) -> Tensor:
    """Sines, then cosines, of geometrically falling frequencies: float64 [N, width]."""
    rates = 10_000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = places[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sin_cos_positions(width: int, grid: Grid) -> Tensor:
    """Fixed positional embeddings of a grid of patches, row by row.

    Args:
        width: of a token, a multiple of 4.
        grid: rows (mel bins, image height) and columns (time, image width) of patches.

    Returns:
        float32 [1, rows * columns, width]: the first half tells the column, the second the row.

    Raises:
        ValueError: a width that is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"Sin-cos positions need a width that is a multiple of 4, not {width}.")
    rows, columns = grid
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)
    column = torch.arange(columns, dtype=torch.float64).repeat(rows)
    both = torch.cat([sin_cos(width // 2, column), sin_cos(width // 2, row)], dim=1)
    return both.float()[None]


def interpolate_times(positions: Tensor, count: int) -> Tensor:
    """Learned positions of frames moved to another number of frames by linear interpolation.

    Args:
        positions: [1, F, width], of frames that are evenly spaced over a clip.
        count: of frames then.

    Returns:
        [1, count, width]; the same tensor if the number stays.
    """
    if positions.shape[1] == count:
        return positions
    moved = interpolate_linearly(positions.float().mT, count)
    return moved.mT.to(positions.dtype)


def interpolate_positions(positions: Tensor, grid: Grid, target: Grid) -> Tensor:
    """Learned positional embeddings moved to another grid by bicubic interpolation.

    Args:
        positions: [1, rows * columns, width].
        grid, target: rows and columns now and then.

    Returns:
        [1, target rows * target columns, width]; the same tensor if the grid stays.

    Raises:
        ValueError: the grid is not that of the positions.
    """
    if grid[0] * grid[1] != positions.shape[1]:
        raise ValueError(f"{positions.shape[1]} positions are not a grid of {grid[0]}x{grid[1]}.")
    if grid == target:
        return positions
    square = positions.reshape(1, *grid, -1).permute(0, 3, 1, 2)
    moved = torch.nn.functional.interpolate(
        square.float(), size=target, mode="bicubic", align_corners=False, antialias=True
    )
    return moved.permute(0, 2, 3, 1).reshape(1, target[0] * target[1], -1).to(positions.dtype)
