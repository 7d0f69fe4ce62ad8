"""Tempo of voices without their pitch, by a phase vocoder.

J. L. Flanagan, R. M. Golden, "Phase vocoder", Bell System Technical Journal 45 (1966). It equals
torchaudio's, but for two things that make a seed's voices the same on every device:

- Positions are whole numbers. As floats, those on a frame fall on either side of it, by rounding,
  and all later phases are shifted: two precisions differed by 65 % at a rate of 1.2.
- Noise of a step of 16 bits is added. The phase of digital silence would be that of rounding
  errors, and shift all that follows by as much as 140 %.
"""

import torch
from torch import Tensor

from cavmae.common.inverse_stft import inverse_stft

WINDOW = 768  # samples, 48 ms: resolves the harmonics of a low voice, and blurs clicks by less
HOP = WINDOW // 4
DITHER_SEED = 0


def stretch(waves: Tensor, length: int) -> Tensor:
    """Waves [M, S] in steps of 16 bits at another tempo, [M, length], with their pitch.

    Sample n is of the time n S / length of ``waves``.
    """
    rng = torch.Generator().manual_seed(DITHER_SEED)
    dither = torch.randn(waves.shape[1], generator=rng).to(waves)
    window = torch.hann_window(WINDOW, dtype=waves.dtype, device=waves.device)
    spectra = torch.stft(waves + dither, WINDOW, HOP, window=window, return_complex=True)
    spectra = stretch_spectra(spectra, waves.shape[1], length)
    return inverse_stft(spectra, WINDOW, HOP, window, length)


def stretch_spectra(spectra: Tensor, samples: int, length: int) -> Tensor:
    """Frames [M, bins, T] of a short-time spectrum, moved to another tempo.

    Args:
        spectra: of ``samples`` samples.
        samples: S.
        length: samples of the result.
    """
    spectra = torch.nn.functional.pad(spectra, (0, 1))
    places = torch.arange(length // HOP + 1, device=spectra.device) * samples
    frames, parts = places // length, places % length / length
    first, second = spectra[..., frames], spectra[..., frames + 1]
    advance = (second * first.conj()).angle()
    phase = torch.cat([first[..., :1].angle(), advance[..., :-1]], -1).cumsum(-1)
    magnitude = first.abs().lerp(second.abs(), parts.to(phase.dtype))
    return torch.polar(magnitude, phase)
