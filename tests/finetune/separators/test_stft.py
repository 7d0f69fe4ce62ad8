"""STFT round trip, compression, and masks whose voices add up to the mixture."""

import numpy as np
import pytest
import torch

from cavmae.finetune.separators.stft import (
    BINS,
    bounded,
    compressed,
    masked_voices,
    oracle_masks,
    spectrum,
    wave,
)

SAMPLES = 40_960


def test_round_trip() -> None:
    waves = torch.randn(2, 3, SAMPLES)
    spectra = spectrum(waves)
    assert spectra.shape == (2, 3, BINS + 1, SAMPLES // 160 + 1)
    torch.testing.assert_close(wave(spectra, SAMPLES), waves, atol=1e-4, rtol=1e-4)


def test_a_frame_is_a_windowed_fourier_transform() -> None:
    """Frame t is centred on sample 160 t: against numpy's."""
    x = torch.randn(4_000)
    window = np.hanning(401)[:400]  # periodic
    for frame in (5, 12):
        middle = 160 * frame
        cut = x[middle - 200 : middle + 200].numpy() * window
        padded = np.zeros(512)
        padded[56:456] = cut
        expected = np.fft.rfft(padded)
        np.testing.assert_allclose(spectrum(x)[:, frame].numpy(), expected, atol=1e-3)


def test_compression_keeps_phases_and_takes_a_power() -> None:
    x = torch.tensor([[[3 + 4j, -30 + 40j]]], dtype=torch.complex64) * 10
    real, imaginary = compressed(x)[0, :, 0]
    torch.testing.assert_close(torch.complex(real, imaginary).angle(), x[0, 0].angle())
    torch.testing.assert_close(
        torch.complex(real, imaginary).abs(), x[0, 0].abs() ** 0.3, rtol=1e-3, atol=1e-3
    )


def test_compression_has_a_finite_gradient_at_nothing() -> None:
    x = torch.zeros(1, 1, 8, dtype=torch.complex64, requires_grad=True)
    compressed(x).sum().backward()
    assert torch.isfinite(torch.view_as_real(x.grad)).all()


def test_masks_reach_below_nought_and_not_beyond_five() -> None:
    bounded_masks = bounded(torch.tensor([-1e4, -0.1, 0.0, 0.1, 1e4]))
    assert bounded_masks[0] == -5
    assert bounded_masks[-1] == 5
    torch.testing.assert_close(
        bounded_masks[1:4], torch.tensor([-0.1, 0.0, 0.1]), atol=1e-3, rtol=0
    )


RESIDUAL_ONLY = torch.tensor([[0.0, 0.0, 0.0, 1.0]])[..., None]


@pytest.mark.parametrize("scale", [0.0, 0.01, 3.0])
@pytest.mark.parametrize(
    "activity", [[0, 0, 0, 0, 0.05], [1, 0.5, 0, 0, 0.05], [0.9, 0.9, 1, 0, 1]]
)
def test_voices_add_up_to_the_mixture(scale: float, activity: list[float]) -> None:
    mixture = torch.randn(2, SAMPLES)
    masks = scale * torch.randn(2, 4, 2, BINS, SAMPLES // 160)
    shares = torch.tensor([activity] * 2, dtype=torch.float32)[..., None]
    voices = wave(masked_voices(spectrum(mixture), masks, shares), SAMPLES)
    torch.testing.assert_close(voices.sum(1), mixture, atol=5e-4, rtol=1e-3)


def test_without_activity_voices_are_as_their_masks_say() -> None:
    mixture = torch.randn(1, SAMPLES)
    masks = torch.zeros(1, 3, 2, BINS, SAMPLES // 160)
    masks[:, 0, 0] = 0.3
    voices = wave(masked_voices(spectrum(mixture), masks, RESIDUAL_ONLY), SAMPLES)
    assert voices.shape == (1, 4, SAMPLES)
    torch.testing.assert_close(voices[:, 0], 0.3 * mixture, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(voices[:, 3], 0.7 * mixture, atol=1e-3, rtol=1e-3)
    assert voices[:, 1:3].abs().max() == 0


def test_what_masks_leave_goes_to_active_voices() -> None:
    mixture = torch.randn(1, SAMPLES)
    masks = torch.zeros(1, 3, 2, BINS, SAMPLES // 160)
    masks[:, 0, 0], masks[:, 1, 0], masks[:, 1, 1] = 0.6, 0.2, 0.4
    activity = torch.tensor([[1.0, 1.0, 0.0, 2.0]])[..., None]
    gains = masked_voices(spectrum(mixture), masks, activity)[0] / spectrum(mixture)
    # 0.2 and -0.4 i are left: a quarter each to the active voices, half to the residual.
    expected = torch.tensor([0.65 - 0.1j, 0.25 + 0.3j, 0.0, 0.1 - 0.2j])
    torch.testing.assert_close(
        gains, expected[:, None, None].expand_as(gains), atol=1e-3, rtol=1e-3
    )
    # Of two alone only the difference of their masks counts.
    pair_activity = torch.tensor([[1.0, 1.0, 0.0, 0.0]])[..., None]
    other = masks.clone()
    other[:, :2] += 0.7
    torch.testing.assert_close(
        masked_voices(spectrum(mixture), masks, pair_activity),
        masked_voices(spectrum(mixture), other, pair_activity), atol=1e-3, rtol=1e-3,
    )  # fmt: skip


def test_activity_counts_in_its_own_frames() -> None:
    mixture = spectrum(torch.randn(1, SAMPLES))
    masks = torch.zeros(1, 1, 2, BINS, SAMPLES // 160)
    activity = torch.zeros(1, 2, SAMPLES // 160)
    half = SAMPLES // 320
    activity[:, 0, :half] = activity[:, 1, half:] = 1
    voice, residual = masked_voices(mixture, masks, activity)[0]
    torch.testing.assert_close(voice[:, :half], mixture[0, :, :half])
    torch.testing.assert_close(residual[:, half:], mixture[0, :, half:])
    assert voice[:, half:].abs().max() == residual[:, :half].abs().max() == 0


def test_masks_of_nothing_still_get_a_gradient() -> None:
    mixture = spectrum(torch.randn(1, SAMPLES))
    masks = torch.zeros(1, 2, 2, BINS, SAMPLES // 160, requires_grad=True)
    own = compressed(masked_voices(mixture, masks, torch.ones(1, 3, 1))[:, 0, :-1, :-1])
    (own - compressed(mixture[:, :-1, :-1])).abs().mean().backward()
    assert masks.grad[:, 0].abs().mean() > 0


def test_oracle_masks_of_voices_apart_in_pitch_give_them_back() -> None:
    time = torch.arange(SAMPLES) / 16_000
    voices = torch.stack([torch.sin(2 * torch.pi * f * time) for f in (300.0, 2_500.0)])[None]
    spectra = oracle_masks(spectrum(voices.sum(1)), spectrum(voices))
    inner = slice(800, -800)  # at its ends a tone is a click
    torch.testing.assert_close(
        wave(spectra, SAMPLES)[..., inner], voices[..., inner], atol=0.05, rtol=0
    )
