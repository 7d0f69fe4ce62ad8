"""Spectra of mixtures, and voices cut out of them by complex masks. All in float32.

At 16 kHz: FFT 512, Hann window of 400 samples, hop 160, as Looking to Listen (Ephrat et al., 2018).
Shapes: N mixtures, K voices, S samples, B = 256 bins (without Nyquist's), T = S / 160 frames.
"""

import torch
from torch import Tensor

from cavmae.datasets.stream.features import FFT, HOP, WINDOW

BINS = FFT // 2
POWER = 0.3  # of magnitudes, where spectra are compressed
SMALL = 1e-2  # added to |X|^2 of a wave of RMS 1, where its usual |X|^2 is about 150
LARGEST = 5.0  # part of a complex mask


def _window(device: torch.device) -> Tensor:
    return torch.hann_window(WINDOW, device=device)


def spectrum(waves: Tensor) -> Tensor:
    """Complex spectra of waves [..., S] with all bins and frames: [..., B + 1, T + 1]."""
    samples = waves.shape[-1]
    if waves.numel() == 0:  # which torch.stft does not take
        shape = *waves.shape[:-1], BINS + 1, samples // HOP + 1
        return torch.zeros(shape, dtype=torch.complex64, device=waves.device)
    flat = waves.reshape(-1, samples).float()
    found = torch.stft(flat, FFT, HOP, WINDOW, _window(waves.device), return_complex=True)
    return found.reshape(*waves.shape[:-1], *found.shape[-2:])


def wave(spectra: Tensor, samples: int) -> Tensor:
    """The inverse: [..., B + 1, T + 1] -> [..., samples]."""
    flat = spectra.reshape(-1, *spectra.shape[-2:])
    found = torch.istft(flat, FFT, HOP, WINDOW, _window(spectra.device), length=samples)
    return found.reshape(*spectra.shape[:-2], samples)


def compressed(spectra: Tensor) -> Tensor:
    """Spectra whose magnitudes are raised to the power of 0.3, their phases kept.

    The gradient is finite everywhere, as nothing is divided by less than a tenth.

    Args:
        spectra: complex [..., B, T] of waves of an RMS of about 1.

    Returns:
        real and imaginary part: float32 [..., 2, B, T].
    """
    parts = torch.stack([spectra.real, spectra.imag], dim=-3)
    energy = parts.square().sum(dim=-3, keepdim=True)
    return parts * (energy + SMALL) ** ((POWER - 1) / 2)


def bounded(raw: Tensor) -> Tensor:
    """A complex mask from -5 to 5 in both parts: 5 tanh(raw / 5)."""
    return LARGEST * torch.tanh(raw / LARGEST)


def masked_voices(mixture: Tensor, masks: Tensor, claims: Tensor) -> Tensor:
    """Spectra of voices and of the residual, which add up to the mixture.

    What masks leave of the mixture, or take twice, is shared out by claims: of two who speak each
    gets half of it, so that only the difference of their masks has to be learned, and somebody
    whose mouth is hidden is what the other leaves. (Sharing it out in proportion to energy,
    instead, has a dead end: where all masks are nearly 0 each gets the same, and no gradient.)

    Args:
        mixture: complex [N, B + 1, T + 1].
        masks: float [N, K, 2, B, T], real and imaginary parts. Nyquist's bin and the last frame
            take those beside them.
        claims: float [N, K + 1, T or 1], at least 0 and of a sum above 0, the residual's last.

    Returns:
        complex [N, K + 1, B + 1, T + 1], the residual last.
    """
    share = claims[:, :-1] / claims.sum(1, keepdim=True)
    left = -masks.float().sum(1, keepdim=True)
    left = torch.cat([left[:, :, :1] + 1, left[:, :, 1:]], dim=2)
    masks = _padded(masks.float() + share[:, :, None, None] * left)
    found = torch.complex(masks[:, :, 0], masks[:, :, 1]) * mixture[:, None]
    return torch.cat([found, mixture[:, None] - found.sum(dim=1, keepdim=True)], dim=1)


def _padded(masks: Tensor) -> Tensor:
    """One more bin and frame, copies of the last ones."""
    masks = torch.cat([masks, masks[..., -1:, :]], dim=-2)
    return torch.cat([masks, masks[..., -1:]], dim=-1)


def oracle_masks(mixture: Tensor, voices: Tensor) -> Tensor:
    """Ratio masks of the true voices, for comparison: |voice| over the sum of all.

    Args:
        mixture: complex [N, B + 1, T + 1].
        voices: complex [N, K, B + 1, T + 1], which add up to it.

    Returns:
        complex spectra [N, K, B + 1, T + 1] of the mixture so masked.
    """
    size = voices.abs()
    return mixture[:, None] * (size / (size.sum(dim=1, keepdim=True) + 1e-8))
