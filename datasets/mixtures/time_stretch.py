"""Tempo of voices without their pitch, by a phase vocoder.

J. L. Flanagan, R. M. Golden, "Phase vocoder", Bell System Technical Journal 45 (1966).
"""

import math

import torch
from torch import Tensor
from torchaudio.functional import phase_vocoder

WINDOW = 768  # samples, 48 ms: resolves the harmonics of a low voice, and blurs clicks by less
HOP = WINDOW // 4


def stretch(waves: Tensor, length: int) -> Tensor:
    """Waves [M, S] at another tempo, [M, length], with their pitch.

    Sample n is of the time n S / length of ``waves``.
    """
    window = torch.hann_window(WINDOW, device=waves.device)
    spectra = torch.stft(waves, WINDOW, HOP, window=window, return_complex=True)
    advance = torch.linspace(0, math.pi * HOP, WINDOW // 2 + 1, device=waves.device)[:, None]
    spectra = phase_vocoder(spectra, waves.shape[1] / length, advance)
    return torch.istft(spectra, WINDOW, HOP, window=window, length=length)
