import numpy as np
import pytest
import torch
import torchaudio

from cavmae.datasets.stream import features


def speech_like(samples: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / 16000
    tone = sum(torch.sin(2 * torch.pi * f * time) / f for f in (150.0, 450.0, 1350.0, 3900.0))
    noise = torch.randn(samples, generator=generator)
    return 0.3 * tone * 100 / 150 + 0.02 * noise + 0.01


@pytest.mark.parametrize(
    ("samples", "frames"), [(160_000, 998), (40_960, 254), (400, 1), (399, 0), (0, 0), (560, 2)]
)
def test_number_of_frames(samples: int, frames: int) -> None:
    assert features.fbank_frames(samples) == frames
    assert features.fbank(speech_like(samples)).shape == (frames, 128)


def test_fbank_is_torchaudio_with_the_reference_settings() -> None:
    waveform = speech_like(16000)
    expected = torchaudio.compliance.kaldi.fbank(
        waveform[None] - waveform.mean(), htk_compat=True, sample_frequency=16000,
        use_energy=False, window_type="hanning", num_mel_bins=128, dither=0.0, frame_shift=10,
    )  # fmt: skip
    torch.testing.assert_close(features.fbank(waveform), expected, rtol=0, atol=0)


def test_batched_fbank_equals_torchaudio_row_by_row() -> None:
    lengths = torch.tensor([32000, 20011, 400, 399])
    waveforms = torch.zeros(4, 32000)
    for row, length in enumerate(lengths.tolist()):
        waveforms[row, :length] = speech_like(length, seed=row)
    batch = features.fbank_batch(waveforms, lengths)
    for row, length in enumerate(lengths.tolist()):
        expected = features.fbank(waveforms[row, :length])
        count = len(expected)
        torch.testing.assert_close(batch[row, :count], expected, rtol=0, atol=1e-4)
        assert (batch[row, count:] == features.SILENCE).all()


def test_silence_is_the_value_of_digital_silence() -> None:
    fbank = features.fbank(torch.zeros(1600))
    torch.testing.assert_close(fbank, torch.full_like(fbank, features.SILENCE))


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_resampling_keeps_a_tone(rate: int) -> None:
    time = np.arange(rate) / rate
    tone = np.sin(2 * np.pi * 1000 * time).astype(np.float32)
    result = features.resample(tone, rate)
    assert abs(len(result) - 16000) <= 1
    expected = np.sin(2 * np.pi * 1000 * np.arange(len(result)) / 16000)
    np.testing.assert_allclose(result[200:-200], expected[200:-200], atol=0.02)


@pytest.mark.parametrize("rate", [11127, 22254, 44101, 47999])
def test_odd_rates_cost_no_more_than_others(rate: int) -> None:
    """The exact filters for 47,999 Hz would take 24 GB; the ratio is rounded instead."""
    seconds = 5
    time = np.arange(rate * seconds) / rate
    result = features.resample(np.sin(2 * np.pi * 300 * time).astype(np.float32), rate)
    assert len(result) == pytest.approx(16000 * seconds, abs=3)
    expected = np.sin(2 * np.pi * 300 * np.arange(len(result)) / 16000)
    assert np.corrcoef(result[200:-200], expected[200:-200])[0, 1] > 0.98


def test_int16_round_trip() -> None:
    waveform = np.array([0.0, 0.5, -1.0, 1.5, -2.0], dtype=np.float32)
    samples = features.to_int16(waveform)
    assert samples.tolist() == [0, 16384, -32768, 32767, -32768]
    np.testing.assert_allclose(features.to_float(samples)[:3], waveform[:3])
