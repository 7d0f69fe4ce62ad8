"""Linear interpolation over time as a product with a matrix.

PyTorch's own runs over batch and channels one after the other on a GPU: on an H100 it took 60 % of
a training step of the sound separator.
"""

import torch
from torch import Tensor


def interpolate_linearly(x: Tensor, count: int) -> Tensor:
    """Values at another number of evenly spaced times: [..., T] -> [..., count].

    As ``torch.nn.functional.interpolate`` with ``mode="linear"`` and ``align_corners=False``: a
    time is the centre of its share of the whole, and the ends are held. The precision is that of
    ``x``, under autocast, too.
    """
    length = x.shape[-1]
    if count == length:
        return x
    times = torch.arange(count, device=x.device, dtype=torch.float32)
    places = ((times + 0.5) * (length / count) - 0.5).clamp(0, length - 1)
    distances = (torch.arange(length, device=x.device)[:, None] - places).abs()
    with torch.autocast(x.device.type, enabled=False):
        return x @ (1 - distances).clamp(min=0).to(x.dtype)
