"""The inverse STFT equals torch.istft's, with its gradient."""

import pytest
import torch

from cavmae.common.inverse_stft import inverse_stft


@pytest.mark.parametrize(
    ("fft", "width", "hop"), [(512, 400, 160), (512, 512, 256), (768, 768, 192)]
)
@pytest.mark.parametrize("samples", [10_240, 10_007])
def test_it_equals_pytorchs(fft: int, width: int, hop: int, samples: int) -> None:
    torch.manual_seed(0)
    window = torch.hann_window(width)
    spectra = torch.stft(torch.randn(3, samples), fft, hop, width, window, return_complex=True)
    spectra = spectra * torch.rand(spectra.shape)  # no longer of any waveform
    spectra.requires_grad_()
    expected = torch.istft(spectra, fft, hop, width, window, length=samples)
    waves = inverse_stft(spectra.unflatten(0, (3, 1)), fft, hop, window, samples)[:, 0]
    torch.testing.assert_close(waves, expected, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(x.square().sum(), spectra)[0] for x in (expected, waves)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)
