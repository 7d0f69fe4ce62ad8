"""Mixing of voices at given levels, with each voice's part of the mixture.

All waveforms are float32 at 16 kHz; levels in dB are of power.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cavmae.datasets.mixtures.scene_spec import Noise
from cavmae.datasets.stream.features import SAMPLE_RATE

FRAME = SAMPLE_RATE // 50  # 20 ms
ACTIVE_DB = 40.0  # range below the loudest frame that counts as speech
REFERENCE = 0.05  # RMS of a voice at 0 dB, relative to full scale
PEAK = 0.95  # largest amplitude of a mixture
EDGE = SAMPLE_RATE // 100  # samples of a fade: 10 ms
QUIETEST = 1e-6  # RMS of a frame below which it is silence


def active_rms(wave: np.ndarray) -> float:
    """RMS of the 20 ms frames within 40 dB of the loudest; 0 for silence.

    Pauses do not count: a voice with many of them would otherwise be mixed too loud.
    """
    whole = len(wave) // FRAME * FRAME
    if whole == 0:
        return 0.0
    power = np.square(wave[:whole].reshape(-1, FRAME), dtype=np.float64).mean(axis=1)
    loudest = power.max()
    if loudest < QUIETEST**2:
        return 0.0
    return float(np.sqrt(power[power >= loudest * 10 ** (-ACTIVE_DB / 10)].mean()))


def fade(wave: np.ndarray, first: int, last: int) -> np.ndarray:
    """Silences a waveform outside samples ``first`` to ``last``, with fades of 10 ms.

    The waveform's own beginning and end are not faded.
    """
    faded = np.zeros_like(wave)
    faded[first:last] = wave[first:last]
    edge = min(EDGE, (last - first) // 2)
    ramp = (0.5 - 0.5 * np.cos(np.pi * (np.arange(edge) + 0.5) / max(1, edge))).astype(np.float32)
    if first > 0:
        faded[first : first + edge] *= ramp
    if last < len(wave):
        faded[last - edge : last] *= ramp[::-1]
    return faded


def scale_to_level(wave: np.ndarray, level_db: float) -> np.ndarray:
    """Scales a waveform so that its active part has this level; silence stays silence."""
    rms = active_rms(wave)
    if rms == 0:
        return np.zeros_like(wave)
    return wave * np.float32(REFERENCE * 10 ** (level_db / 20) / rms)


def generate_noise(kind: Noise, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of RMS 1: ``white``, ``pink`` (equal power per octave), or a mains ``hum``."""
    if kind == "hum":
        time = np.arange(samples) / SAMPLE_RATE
        pitch = rng.choice([50.0, 60.0])
        wave = np.zeros(samples)
        for harmonic in range(1, 8):
            phase = rng.random() * 2 * np.pi
            wave += np.sin(2 * np.pi * pitch * harmonic * time + phase) / harmonic
    else:
        wave = rng.standard_normal(samples)
        if kind == "pink":
            spectrum = np.fft.rfft(wave)
            spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
            spectrum[0] = 0
            wave = np.fft.irfft(spectrum, samples)
    return (wave / np.sqrt(np.square(wave).mean())).astype(np.float32)


class Mixture(NamedTuple):
    """A mixture and its parts.

    Attributes:
        mixture: [samples], at most 0.95 of full scale.
        parts: [parts, samples], scaled waveforms that add up to the mixture.
        gain: common factor that keeps the mixture below full scale, at most 1.
    """

    mixture: np.ndarray
    parts: np.ndarray
    gain: float


def mix(waves: Sequence[np.ndarray], levels_db: Sequence[float], samples: int) -> Mixture:
    """Adds waveforms, each at its own level.

    Args:
        waves: [samples] each; shorter ones are padded with silence.
        levels_db: of the active part of each, relative to an RMS of 0.05 of full scale.
        samples: of the mixture.
    """
    parts = np.zeros((len(waves), samples), dtype=np.float32)
    for part, wave, level in zip(parts, waves, levels_db, strict=True):
        length = min(len(wave), samples)
        part[:length] = wave[:length]
        part[:] = scale_to_level(part, level)
    mixture = parts.sum(axis=0)
    peak = max(float(np.abs(mixture).max(initial=0)), float(np.abs(parts).max(initial=0)))
    gain = min(1.0, PEAK / peak) if peak > 0 else 1.0
    parts *= np.float32(gain)
    return Mixture(parts.sum(axis=0), parts, gain)
