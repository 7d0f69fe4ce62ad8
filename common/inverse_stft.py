"""Inverse short-time Fourier transform that never waits for a GPU.

``torch.istft`` reads back whether its windows add up to nothing anywhere: the program waits for
all that the GPU has still to do, and the step cannot be recorded as a graph. Shapes: B = fft / 2 +
1 bins, T frames, W samples of a window.
"""

import torch
from torch import Tensor
from torch.nn import functional


def inverse_stft(spectra: Tensor, fft: int, hop: int, window: Tensor, samples: int) -> Tensor:
    """Waveforms [..., samples] of spectra of ``torch.stft`` (``center=True``), as torch.istft's.

    Args:
        spectra: complex [..., B, T].
        fft: samples of the transform.
        hop: samples from a frame to the next.
        window: [W], of an even number of at most ``fft`` samples.
        samples: at most (T - 1) ``hop`` + W / 2, which the frames cover.
    """
    width = len(window)
    margin = (fft - width) // 2
    frames = torch.fft.irfft(spectra.mT, fft)[..., margin : margin + width] * window  # [..., T, W]
    squares = window.square().expand(spectra.shape[-1], -1)
    part = slice(width // 2, width // 2 + samples)
    return _overlap_added(frames, hop)[..., part] / _overlap_added(squares, hop)[part]


def _overlap_added(frames: Tensor, hop: int) -> Tensor:
    """Sum of frames [..., T, W], each ``hop`` samples behind the one before: [..., samples]."""
    parts = -(-frames.shape[-1] // hop)
    frames = functional.pad(frames, (0, parts * hop - frames.shape[-1]))
    total = frames.new_zeros(())
    for part, piece in enumerate(frames.unflatten(-1, (parts, hop)).unbind(-2)):
        total = total + functional.pad(piece, (0, 0, part, parts - 1 - part))
    return total.flatten(-2)
