"""Audio features: 16 kHz waveforms and the log-mel filter banks of CAV-MAE.

The filter bank is Kaldi's with the settings of the CAV-MAE reference (Gong et al., ICLR 2023,
arXiv 2210.07839): the waveform's mean removed, Hanning window (the paper says Hamming, the
published weights were trained with Hanning), 25 ms frames every 10 ms, 128 mel bins, no dither.
"""

import functools
from fractions import Fraction

import numpy as np
import torch
import torchaudio
from torch import Tensor

from cavmae.datasets.stream.rates import MEL_BINS as MEL_BINS
from cavmae.datasets.stream.rates import SAMPLE_RATE as SAMPLE_RATE

WINDOW = 400  # samples: 25 ms
HOP = 160  # samples: 10 ms
FFT = 512
PREEMPHASIS = 0.97
FBANK_RATE = SAMPLE_RATE // HOP  # fbank frames a second
# Kaldi's log-mel value of digital silence: the log of float32's epsilon.
SILENCE = float(np.log(np.finfo(np.float32).eps))
# Mean and standard deviation of AudioSet's fbanks, which the published weights were trained with.
# For other data sets `cavmae check` measures them.
AUDIOSET_MEAN, AUDIOSET_STD = -5.081, 4.4849


def fbank_frames(samples: int) -> int:
    """Number of fbank frames of a 16 kHz waveform of ``samples`` samples (998 for 10 s)."""
    return 0 if samples < WINDOW else 1 + (samples - WINDOW) // HOP


def fbank(waveform: Tensor) -> Tensor:
    """Log-mel filter banks of one waveform.

    Args:
        waveform: float [samples] at 16 kHz, in [-1, 1].

    Returns:
        float32 [frames, 128], not normalised; ``frames`` is :func:`fbank_frames` of the length.
    """
    if fbank_frames(waveform.shape[-1]) == 0:
        return torch.empty(0, MEL_BINS)
    result: Tensor = torchaudio.compliance.kaldi.fbank(
        (waveform - waveform.mean()).unsqueeze(0),
        sample_frequency=SAMPLE_RATE,
        htk_compat=True,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=MEL_BINS,
        dither=0.0,
        frame_shift=1000 * HOP / SAMPLE_RATE,
        frame_length=1000 * WINDOW / SAMPLE_RATE,
    )
    return result


@functools.cache
def _mel_and_window(device: torch.device) -> tuple[Tensor, Tensor]:
    mel, _ = torchaudio.compliance.kaldi.get_mel_banks(
        MEL_BINS, FFT, float(SAMPLE_RATE), 20.0, 0.0, 100.0, -500.0, 1.0
    )
    mel = torch.nn.functional.pad(mel, (0, 1)).T.contiguous()  # [FFT/2+1, mel]; Nyquist has none
    window = torch.hann_window(WINDOW, periodic=False)
    return mel.to(device), window.to(device)


def fbank_batch(waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Log-mel filter banks of a batch of waveforms, on their device.

    For waveforms that exist only in training (mixtures); equal to :func:`fbank` to 1e-4.

    Args:
        waveforms: float [batch, samples] at 16 kHz, rows shorter than ``samples`` padded.
        lengths: int [batch], true samples of each row; None: all.

    Returns:
        float32 [batch, frames, 128]. Rows shorter than ``samples`` hold :data:`SILENCE` in the
        frames beyond their length.
    """
    waveforms = waveforms.float()
    batch, samples = waveforms.shape
    if lengths is None:
        lengths = torch.full((batch,), samples, device=waveforms.device)
    else:
        lengths = lengths.to(waveforms.device)
    inside = torch.arange(samples, device=waveforms.device) < lengths[:, None]
    mean = (waveforms * inside).sum(1, keepdim=True) / lengths.clamp(min=1)[:, None]
    waveforms = (waveforms - mean) * inside
    if fbank_frames(samples) == 0:
        return waveforms.new_empty(batch, 0, MEL_BINS)
    mel, window = _mel_and_window(waveforms.device)
    frames = waveforms.unfold(1, WINDOW, HOP)  # [batch, frames, WINDOW]
    frames = frames - frames.mean(-1, keepdim=True)
    previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    frames = (frames - PREEMPHASIS * previous) * window
    power = torch.fft.rfft(frames, n=FFT).abs() ** 2
    result = (power @ mel).clamp(min=torch.finfo(torch.float32).eps).log()
    counts = ((lengths - WINDOW).div(HOP, rounding_mode="floor") + 1).clamp(min=0)
    real = torch.arange(result.shape[1], device=result.device) < counts[:, None]
    return torch.where(real[..., None], result, SILENCE)


@functools.lru_cache(maxsize=8)
def _resampler(rate: int, target: int) -> torchaudio.transforms.Resample:
    return torchaudio.transforms.Resample(rate, target)


def resample(waveform: np.ndarray, rate: int, target: int = SAMPLE_RATE) -> np.ndarray:
    """Resamples a mono waveform to another rate.

    Args:
        waveform: float32 [samples] at ``rate`` Hz.

    Returns:
        float32 [samples] at ``target`` Hz.
    """
    if rate == target or waveform.size == 0:
        return waveform
    # The filters of a ratio of large coprime numbers (44,101 Hz from a broken header) would fill
    # the memory. The nearest ratio of numbers up to 1000 is off by some parts in 100,000.
    ratio = Fraction(target, rate).limit_denominator(1000)
    result: np.ndarray = _resampler(ratio.denominator, ratio.numerator)(
        torch.from_numpy(waveform)
    ).numpy()
    return result


def to_int16(waveform: np.ndarray) -> np.ndarray:
    """Converts float32 samples in [-1, 1] to 16 bits; louder samples are clipped."""
    return np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)


def to_float(waveform: np.ndarray) -> np.ndarray:
    """Converts 16-bit samples to float32 in [-1, 1)."""
    return waveform.astype(np.float32) / 32768.0
