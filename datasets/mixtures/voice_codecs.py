"""Codecs and telephones: coarse quantisation by the mu-law (ITU-T G.711) and a band limit.

Shapes: N mixtures, V voices, M rendered recordings, S samples.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cavmae.datasets.mixtures.sound_filters import on_device
from cavmae.datasets.mixtures.sound_settings import SoundSettings
from cavmae.datasets.stream.features import SAMPLE_RATE

LIMITS = (3400.0, 5000.0, 7000.0)  # Hz: telephones, old recordings, wide-band codecs
SLOPES = 24.0, 96.0  # dB an octave, above the limit
BITS = 5, 8
MU = 255.0
PADDING = 320  # samples behind a voice, for the filter's wrap-around: it rings for 10 ms


class CodecDraw(NamedTuple):
    """Codecs of voices, on the CPU.

    Attributes:
        limits: [N, V], end of the pass band in Hz.
        slopes: [N, V], in dB an octave.
        bits: int64 [N, V], of a sample.
        used: bool [N, V], whether there is any codec.
    """

    limits: Tensor
    slopes: Tensor
    bits: Tensor
    used: Tensor


def draw_codecs(settings: SoundSettings, n: int, v: int, rng: torch.Generator) -> CodecDraw:
    """Codecs of voices, each drawn on its own."""
    used = torch.rand(n, v, generator=rng) < settings.codec_prob
    limits = torch.tensor(LIMITS)[torch.randint(len(LIMITS), (n, v), generator=rng)]
    slopes = SLOPES[0] + (SLOPES[1] - SLOPES[0]) * torch.rand(n, v, generator=rng)
    bits = torch.randint(BITS[0], BITS[1] + 1, (n, v), generator=rng)
    return CodecDraw(limits, slopes, bits, used)


def apply_codecs(waves: Tensor, codecs: CodecDraw, rows: Tensor) -> Tensor:
    """Waves [M, S] as their codecs leave them.

    Args:
        waves: [M, S].
        codecs: of all voices.
        rows: int64 [M] on the CPU, voice of each wave among the flattened ones of ``codecs``.
    """
    chosen = codecs.used.flatten()[rows].nonzero()[:, 0]
    if not len(chosen):
        return waves
    limits, slopes, bits = (
        on_device(value.flatten()[rows[chosen]], waves.device) for value in codecs[:3]
    )
    chosen = on_device(chosen, waves.device)
    # The limit comes last: a telephone has no noise of quantisation above it.
    waves[chosen] = limit_band(quantise(waves[chosen], bits), limits, slopes)
    return waves


def quantise(waves: Tensor, bits: Tensor) -> Tensor:
    """Waves [M, S] in ``bits`` [M] of the mu-law, full scale at the peak of each; silence stays."""
    peaks = waves.abs().amax(1, keepdim=True).clamp(min=1e-8)
    levels = (2.0 ** (bits[:, None] - 1)) - 1
    compressed = (MU * waves.abs() / peaks).log1p() / math.log1p(MU)
    magnitude = ((compressed * levels).round() / levels * math.log1p(MU)).expm1() / MU
    return waves.sign() * magnitude * peaks


def limit_band(waves: Tensor, limits: Tensor, slopes: Tensor) -> Tensor:
    """Waves [M, S] attenuated above ``limits`` [M] in Hz by ``slopes`` [M] in dB an octave."""
    length = waves.shape[1] + PADDING
    frequencies = torch.fft.rfftfreq(length, 1 / SAMPLE_RATE, device=waves.device)
    octaves = (frequencies / limits[:, None]).clamp(min=1).log2()
    spectra = torch.fft.rfft(waves, length) * 10 ** (-slopes[:, None] * octaves / 20)
    return torch.fft.irfft(spectra, length)[:, : waves.shape[1]]
