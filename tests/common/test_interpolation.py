"""Linear interpolation equals PyTorch's, for any number of times."""

import pytest
import torch
from torch.nn import functional

from cavmae.common.interpolation import interpolate_linearly


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
