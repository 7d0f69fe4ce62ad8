"""Random masks of patches: unstructured, or whole times and frequencies of audio.

Masking by the argsort of uniform noise as in MAE; the structured modes are those of CAV-MAE (Gong
et al., ICLR 2023): their bands are hidden first, chance decides about the rest, so that every
sample of a batch keeps equally many tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cavmae.pretrain.positions import Grid
from cavmae.pretrain.settings import MaskMode

# Of the ratio, that each of both axes gets in the mode "tf".
BOTH_AXES = 0.7


class Masking(NamedTuple):
    """Masks of a batch.

    Attributes:
        keep: int64 [N, kept]: numbers of the visible patches, in the order of their tokens.
        hidden: int64 [N, L - kept]: numbers of the masked ones.
        restore: int64 [N, L]: where each patch is in (visible, masked).
        mask: float32 [N, L]: 1 where a patch is masked.
    """

    ids_keep: Tensor
    ids_masked: Tensor
    ids_restore: Tensor
    mask: Tensor


def num_visible(patches: int, ratio: float) -> int:
    """Number of visible patches at a mask ratio.

    Raises:
        ValueError: a ratio outside [0, 1), or one that leaves nothing to see.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"A mask ratio of {ratio} is not in [0, 1).")
    count = int(patches * (1 - ratio))
    if count < 1:
        raise ValueError(f"A mask ratio of {ratio} leaves none of {patches} patches visible.")
    return count


def structured_noise(noise: Tensor, grid: Grid, ratio: float, mode: MaskMode) -> Tensor:
    """Noise whose order masks whole columns (times) or rows (frequencies) first.

    Args:
        noise: uniform in [0, 1), [N, rows * columns].
        grid: rows (mel) and columns (time) of patches.
        ratio: of patches to be masked.
        mode: ``time`` and ``freq`` hide that share of the columns or rows, ``tf`` 0.7 of it of
            both.

    Returns:
        [N, rows * columns]: the noise, with 1 added where a band is hidden.
    """
    if mode == "unstructured":
        return noise
    rows, columns = grid
    share = ratio * (BOTH_AXES if mode == "tf" else 1.0)
    band = torch.zeros(noise.shape[0], rows, columns, dtype=torch.bool, device=noise.device)
    if mode in ("time", "tf"):
        chosen = torch.rand(noise.shape[0], columns, device=noise.device).argsort(1)
        band |= (chosen < int(columns * share))[:, None, :]
    if mode in ("freq", "tf"):
        chosen = torch.rand(noise.shape[0], rows, device=noise.device).argsort(1)
        band |= (chosen < int(rows * share))[:, :, None]
    return noise + band.flatten(1)


def mask_from_noise(noise: Tensor, ratio: float) -> Masking:
    """Masks of the patches with the largest noise.

    Args:
        noise: [N, L].
        ratio: share of patches to be masked.
    """
    count = num_visible(noise.shape[1], ratio)
    order = noise.argsort(dim=1)
    restore = order.argsort(dim=1)
    return Masking(order[:, :count], order[:, count:], restore, (restore >= count).float())


def window_side(grid: Grid, share: float) -> Grid:
    """Rows and columns of a window of this share of each side: at least one."""
    rows, columns = grid
    return max(1, round(rows * share)), max(1, round(columns * share))


def random_windows(count: int, grid: Grid, share: float, device: torch.device) -> Tensor:
    """Patches inside a window of the grid, put at random: int64 [count, K], row by row.

    Args:
        grid: rows and columns of patches.
        share: of each side of the grid that the window has.
    """
    height, width = window_side(grid, share)
    top = torch.randint(grid[0] - height + 1, (count, 1, 1), device=device)
    left = torch.randint(grid[1] - width + 1, (count, 1, 1), device=device)
    rows = top + torch.arange(height, device=device)[:, None]
    return (rows * grid[1] + left + torch.arange(width, device=device)).flatten(1)
