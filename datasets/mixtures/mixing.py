"""Voices mixed at given levels, each known by itself afterwards.

All at 16 kHz, float32; levels in dB are of power.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from cavmae.datasets.stream.features import SAMPLE_RATE

Noise = Literal["white", "pink", "hum"]

FRAME = SAMPLE_RATE // 50  # 20 ms
ACTIVE_DB = 40.0  # below the loudest frame: still speech
REFERENCE = 0.05  # RMS of a voice at 0 dB, of full scale
PEAK = 0.95  # that no mixture exceeds
EDGE = SAMPLE_RATE // 100  # a voice is faded in and out within 10 ms
QUIETEST = 1e-6  # RMS: what is below is silence


def active_rms(wave: np.ndarray) -> float:
    """RMS of the frames of 20 ms that are at most 40 dB softer than the loudest; 0 for silence.

    Pauses do not count, or a voice with many of them would be mixed too loud.
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
    """Samples ``first`` to ``last`` of a wave, with soft edges there, and silence around.

    The very beginning and end of the wave stay as they are.
    """
    shown = np.zeros_like(wave)
    shown[first:last] = wave[first:last]
    edge = min(EDGE, (last - first) // 2)
    ramp = (0.5 - 0.5 * np.cos(np.pi * (np.arange(edge) + 0.5) / max(1, edge))).astype(np.float32)
    if first > 0:
        shown[first : first + edge] *= ramp
    if last < len(wave):
        shown[last - edge : last] *= ramp[::-1]
    return shown


def scale_to_level(wave: np.ndarray, level_db: float) -> np.ndarray:
    """A wave scaled so that what is active of it has this level; silence stays silence."""
    rms = active_rms(wave)
    if rms == 0:
        return np.zeros_like(wave)
    return wave * np.float32(REFERENCE * 10 ** (level_db / 20) / rms)


def generate_noise(kind: Noise, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of RMS 1: ``white``, ``pink`` (as much in every octave), or a mains ``hum``."""
    if kind == "hum":
        time = np.arange(samples) / SAMPLE_RATE
        pitch = rng.choice([50.0, 60.0])
        wave = np.zeros(samples)
        for overtone in range(1, 8):
            turn = rng.random() * 2 * np.pi
            wave += np.sin(2 * np.pi * pitch * overtone * time + turn) / overtone
    else:
        wave = rng.standard_normal(samples)
        if kind == "pink":
            spectrum = np.fft.rfft(wave)
            spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
            spectrum[0] = 0
            wave = np.fft.irfft(spectrum, samples)
    return (wave / np.sqrt(np.square(wave).mean())).astype(np.float32)


class Mixture(NamedTuple):
    """Sounds that add up.

    Attributes:
        mixture: [samples], at most 0.95 of full scale.
        parts: [parts, samples]: what each is in it; they add up to the mixture.
        gain: by which all were multiplied so that it fits, at most 1.
    """

    mixture: np.ndarray
    parts: np.ndarray
    gain: float


def mix(waves: Sequence[np.ndarray], levels_db: Sequence[float], samples: int) -> Mixture:
    """Adds sounds, each at its own level.

    Args:
        waves: [samples] each, or shorter ones, which silence follows.
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
