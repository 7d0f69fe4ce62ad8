"""Linear interpolation and averages of squares equal PyTorch's, for any size."""

import pytest
import torch
from torch.nn import functional

from cavmae.common.interpolation import average_squares, interpolate_linearly


@pytest.mark.parametrize(
    ("length", "count"), [(64, 160), (64, 5), (40, 64), (7, 7), (1, 9), (9, 1)]
)
def test_it_equals_pytorchs(length: int, count: int) -> None:
    x = torch.randn(3, 2, length)
    expected = functional.interpolate(x, count, mode="linear", align_corners=False)
    torch.testing.assert_close(interpolate_linearly(x, count), expected, rtol=1e-5, atol=1e-5)


def test_autocast_does_not_round_it() -> None:
    x = torch.randn(2, 3, 64)
    with torch.autocast("cpu", torch.bfloat16):
        moved = interpolate_linearly(x, 100)
    assert moved.dtype == torch.float32
    torch.testing.assert_close(moved, interpolate_linearly(x, 100))


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (9, 3)])
@pytest.mark.parametrize("side", [2, 3])
def test_averages_of_squares_equal_pytorchs_pooling(size: tuple[int, int], side: int) -> None:
    """Whole numbers, as pixels are, without any rounding."""
    x = torch.randint(0, 256, (3, 2, *size)).float()
    averages, expected = average_squares(x, side), functional.avg_pool2d(x, side)
    if side == 2:
        assert torch.equal(averages, expected)
    torch.testing.assert_close(averages, expected)
