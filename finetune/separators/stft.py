"""STFT of mixtures and complex masks of voices, in float32.

The standard one, in which losses compare voices, has at 16 kHz an FFT of 512, a Hann window of 400
samples and a hop of 160, as in Looking to Listen (Ephrat et al., SIGGRAPH 2018).
Shapes: N mixtures, K voices, S samples, B bins (without the Nyquist bin; standard: 256), T' = S /
hop frames.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cavmae.common.inverse_stft import inverse_stft
from cavmae.datasets.stream.features import FFT, HOP, WINDOW


class STFT(NamedTuple):
    """Resolution of a short-time Fourier transform with a Hann window.

    Attributes:
        fft: samples of the transform.
        window: samples of the window, at most ``fft``.
        hop: samples from a frame to the next.
    """

    fft: int = FFT
    window: int = WINDOW
    hop: int = HOP

    @property
    def bins(self) -> int:
        """B, the number of bins without the Nyquist bin."""
        return self.fft // 2


STANDARD = STFT()
BINS = STANDARD.bins
POWER = 0.3  # exponent of magnitudes in compressed spectra
SMALL = 1e-2  # added to |X|^2, which is about 150 for a waveform of RMS 1
MASK_LIMIT = 5.0  # of the real and imaginary part of a mask


def spectrum(waves: Tensor, stft: STFT = STANDARD) -> Tensor:
    """STFT of waveforms [..., S]: complex64 [..., B + 1, T' + 1]."""
    samples = waves.shape[-1]
    if waves.numel() == 0:  # torch.stft rejects empty tensors
        shape = *waves.shape[:-1], stft.bins + 1, samples // stft.hop + 1
        return torch.zeros(shape, dtype=torch.complex64, device=waves.device)
    window = torch.hann_window(stft.window, device=waves.device)
    flat = waves.reshape(-1, samples).float()
    spectra = torch.stft(flat, stft.fft, stft.hop, stft.window, window, return_complex=True)
    return spectra.reshape(*waves.shape[:-1], *spectra.shape[-2:])


def wave(spectra: Tensor, samples: int, stft: STFT = STANDARD) -> Tensor:
    """Inverse STFT: [..., B + 1, T' + 1] -> [..., samples]."""
    window = torch.hann_window(stft.window, device=spectra.device)
    return inverse_stft(spectra, stft.fft, stft.hop, window, samples)


def compressed(spectra: Tensor) -> Tensor:
    """Power-law compressed spectra: magnitudes to the power of 0.3, phases unchanged.

    The gradient is finite everywhere, since no divisor is below a tenth.

    Args:
        spectra: complex [..., B, T'], of waveforms of an RMS of about 1.

    Returns:
        real and imaginary part, float32 [..., 2, B, T'].
    """
    parts = torch.stack([spectra.real, spectra.imag], dim=-3)
    energy = parts.square().sum(dim=-3, keepdim=True)
    return parts * (energy + SMALL) ** ((POWER - 1) / 2)


def bounded(raw: Tensor) -> Tensor:
    """Complex mask with both parts limited to -5 to 5: 5 tanh(raw / 5)."""
    return MASK_LIMIT * torch.tanh(raw / MASK_LIMIT)


def masked_voices(mixture: Tensor, masks: Tensor, activity: Tensor) -> Tensor:
    """Spectra of voices and of the residual, whose sum is the mixture.

    What the masks leave of the mixture, or take twice, is distributed in proportion to activity.
    Two active speakers get half each, so that only the difference of their masks has to be learned,
    and a speaker with a hidden mouth gets what the other one leaves. (A distribution by energy has
    a dead end: if all masks are near 0, all get the same, without gradient.)

    Args:
        mixture: complex [N, B + 1, T' + 1].
        masks: float [N, K, 2, B, T'], real and imaginary parts. The Nyquist bin and the last frame
            copy their neighbours.
        activity: float [N, K + 1, T' or 1], at least 0, with a sum above 0, the residual last.

    Returns:
        complex [N, K + 1, B + 1, T' + 1], the residual last.
    """
    share = activity[:, :-1] / activity.sum(1, keepdim=True)
    # 1 minus the sum of all masks, as real and imaginary part: [N, 1, 2, B, T'].
    rest = -masks.float().sum(1, keepdim=True)
    rest = torch.cat([rest[:, :, :1] + 1, rest[:, :, 1:]], dim=2)
    masks = with_last(masks.float() + share[:, :, None, None] * rest)
    voices = torch.complex(masks[:, :, 0], masks[:, :, 1]) * mixture[:, None]
    return torch.cat([voices, mixture[:, None] - voices.sum(dim=1, keepdim=True)], dim=1)


def with_last(masks: Tensor) -> Tensor:
    """Repeat the last bin and the last frame: [..., B, T'] -> [..., B + 1, T' + 1]."""
    masks = torch.cat([masks, masks[..., -1:, :]], dim=-2)
    return torch.cat([masks, masks[..., -1:]], dim=-1)


def oracle_masks(mixture: Tensor, voices: Tensor) -> Tensor:
    """Spectra under oracle ratio masks, |voice| over the sum of all |voice|.

    Args:
        mixture: complex [N, B + 1, T' + 1].
        voices: complex [N, K, B + 1, T' + 1], whose sum is the mixture.

    Returns:
        the masked mixture, complex [N, K, B + 1, T' + 1].
    """
    magnitude = voices.abs()
    return mixture[:, None] * (magnitude / (magnitude.sum(dim=1, keepdim=True) + 1e-8))
