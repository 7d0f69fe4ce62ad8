"""Codecs of voices: spectrum above the limit, signal-to-noise ratio, share of voices."""

import dataclasses

import pytest
import torch
from torch import Tensor

from cavmae.datasets.mixtures.sound_settings import SoundSettings
from cavmae.datasets.mixtures.voice_codecs import (
    BITS,
    LIMITS,
    SLOPES,
    apply_codecs,
    draw_codecs,
    limit_band,
    quantise,
)

SAMPLES = 40_960


def noise(count: int) -> Tensor:
    return torch.randn(count, SAMPLES, generator=torch.Generator().manual_seed(0))


def level_db(waves: Tensor, low: float, high: float) -> Tensor:
    """Power [M] between two frequencies, in dB."""
    spectra = torch.fft.rfft(waves * torch.hann_window(SAMPLES)).abs().square()
    frequencies = torch.fft.rfftfreq(SAMPLES, 1 / 16_000)
    return 10 * spectra[:, (frequencies >= low) & (frequencies < high)].mean(1).log10()


def test_the_spectrum_falls_above_the_limit() -> None:
    """Half an octave above by half the slope; below nothing changes."""
    waves, limits = noise(4), torch.tensor([3400.0, 3400.0, 5000.0, 5000.0])
    slopes = torch.tensor([24.0, 96.0, 24.0, 96.0])
    limited = limit_band(waves, limits, slopes)
    for wave, result, limit, slope in zip(waves, limited, limits, slopes, strict=True):
        edge = float(limit)
        for low, high, expected in (
            (100.0, edge - 100, 0.0),
            (2**0.49 * edge, 2**0.51 * edge, -float(slope) / 2),
        ):
            change = level_db(result[None], low, high) - level_db(wave[None], low, high)
            assert float(change) == pytest.approx(expected, abs=0.5)


def test_quantisation_has_the_ratio_of_its_bits() -> None:
    """6 dB a bit, 38 dB for 8 bits (G.711); the same at any level."""
    bits = torch.arange(5, 9)
    waves = noise(4) / 4
    ratios = []
    for scale in (1.0, 0.01):
        error = quantise(waves * scale, bits) - waves * scale
        ratios.append(10 * ((waves * scale).square().mean(1) / error.square().mean(1)).log10())
    torch.testing.assert_close(ratios[0], ratios[1], atol=0.1, rtol=0)
    assert float(ratios[0][3]) == pytest.approx(38, abs=2)
    assert ((ratios[0].diff() - 6).abs() < 1.5).all()
    assert quantise(torch.zeros(1, 8), bits[:1]).abs().max() == 0


def test_a_share_of_voices_passes_a_codec() -> None:
    settings = SoundSettings(codec_prob=0.5)
    codecs = draw_codecs(settings, 100, 2, torch.Generator().manual_seed(0))
    assert 0.4 < codecs.used.float().mean() < 0.6
    assert set(codecs.limits.flatten().tolist()) == set(LIMITS)
    assert set(codecs.bits.flatten().tolist()) == set(range(BITS[0], BITS[1] + 1))
    assert SLOPES[0] <= codecs.slopes.min() and codecs.slopes.max() <= SLOPES[1]
    rows = torch.tensor([0, 3, 5, 8, 11, 13, 14, 19])
    waves = noise(8)
    changed = (apply_codecs(waves.clone(), codecs, rows) != waves).any(1)
    assert torch.equal(changed, codecs.used.flatten()[rows])
    assert changed.any() and not changed.all()
    off = draw_codecs(
        dataclasses.replace(settings, codec_prob=0.0), 9, 2, torch.Generator().manual_seed(0)
    )
    assert not off.used.any()
