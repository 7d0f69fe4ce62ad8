"""The phase vocoder: torchaudio's, and the same voice whatever the rounding of a device."""

import math

import torch
from torchaudio.functional import phase_vocoder

from cavmae.datasets.mixtures.time_stretch import HOP, WINDOW, stretch, stretch_spectra


def test_spectra_equal_torchaudios() -> None:
    rng = torch.Generator().manual_seed(0)
    shape = 2, WINDOW // 2 + 1, 41
    spectra = torch.randn(shape, generator=rng, dtype=torch.complex128)
    advance = torch.linspace(0, math.pi * HOP, shape[1], dtype=torch.float64)[:, None]
    for rate in (0.75, 1.25):  # exact as floats
        length = 30 * HOP
        ours = stretch_spectra(spectra, round(length * rate), length)
        expected = phase_vocoder(spectra, rate, advance)[..., :30]
        torch.testing.assert_close(ours[..., :30], expected)


def test_rounding_changes_no_voice_after_digital_silence() -> None:
    """A stand-in for two devices: single and double precision."""
    rng = torch.Generator().manual_seed(0)
    time = torch.arange(24_000, dtype=torch.float64) / 16_000
    waves = sum((2 * torch.pi * 140 * k * time).sin() / k for k in range(1, 30)) * 3000
    waves = waves + 30 * torch.randn(24_000, generator=rng, dtype=torch.float64)
    waves[:8000] = 0
    # Resampling leaves rounding errors in the silence.
    double = torch.fft.irfft(torch.fft.rfft(waves), 24_000)[None]
    single = torch.fft.irfft(torch.fft.rfft(waves.float()), 24_000)[None]
    for length in (20_000, 30_000):
        expected = stretch(double, length)
        difference = (stretch(single, length).double() - expected).norm() / expected.norm()
        assert difference < 0.05
