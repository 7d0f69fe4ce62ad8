"""Mouth tracks: from phonemes, from audio, and without speech.

A mouth track is float32 [steps, 4] at 100 Hz: opening (0 closed to 1 wide open), spread (-1 rounded
to 1 spread), teeth (0 hidden to 1 bared) and tongue (0 down to 1 at the teeth).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d

from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.datasets.synthetic.espeak import Phoneme

MOUTH_RATE = 100  # Hz
STEP = SAMPLE_RATE // MOUTH_RATE
SMOOTHING = 0.03  # s: standard deviation of the Gaussian that smooths sudden targets
OPENING, SPREAD, TEETH, TONGUE = range(4)


class Shape(NamedTuple):
    """Target shape of a mouth for a phoneme; see the module for the scales."""

    opening: float
    spread: float = 0.0
    teeth: float = 0.0
    tongue: float = 0.0


CLOSED = Shape(0.0)
# Visemes: groups of phonemes with one lip shape, by letters of the IPA.
_GROUPS = (
    ("aɑæɐɒ", Shape(1.0, 0.1, 0.2)),
    ("ɛɜʌəɚɝ", Shape(0.6, 0.15, 0.25)),
    ("eøœɘɵ", Shape(0.5, 0.35, 0.3)),
    ("iɪyɨ", Shape(0.32, 0.9, 0.5)),
    ("oɔɤ", Shape(0.6, -0.7, 0.0)),
    ("uʊɯ", Shape(0.3, -1.0, 0.0)),
    ("pbmɓ", CLOSED),
    ("fvʋɱ", Shape(0.12, 0.1, 1.0)),
    ("θð", Shape(0.25, 0.2, 0.8, 1.0)),
    ("tdnszlɾɬɫɗ", Shape(0.22, 0.35, 0.9, 0.5)),
    ("ʃʒɕʑʂʐ", Shape(0.25, -0.5, 0.9)),
    ("rɹɻʁʀ", Shape(0.32, -0.35, 0.4, 0.2)),
    ("kgɡŋxɣhjçɲcʎq", Shape(0.35, 0.2, 0.3)),
    ("wʍβɸ", Shape(0.15, -1.0, 0.0)),
)
SHAPES = {letter: shape for letters, shape in _GROUPS for letter in letters}


def mouth_shape(ipa: str) -> Shape:
    """Shape of a phoneme: that of its first letter with a viseme; a pause closes the lips."""
    return next((SHAPES[letter] for letter in ipa if letter in SHAPES), CLOSED)


def from_phonemes(phonemes: Sequence[Phoneme], steps: int) -> np.ndarray:
    """Mouth track in which every phoneme's shape holds until the next phoneme begins."""
    track = np.zeros((steps, 4), np.float32)
    ends = [p.start for p in phonemes[1:]] + [steps / MOUTH_RATE]
    for phoneme, end in zip(phonemes, ends, strict=True):
        first, last = round(phoneme.start * MOUTH_RATE), round(end * MOUTH_RATE)
        track[first:last] = mouth_shape(phoneme.ipa)
    return track


def from_audio(waveform: np.ndarray, level: float) -> np.ndarray:
    """Mouth track from the energies of four frequency bands, an approximation of lips and jaw.

    The jaw opens with the first formant's band (300 to 1000 Hz), fricatives (above 4 kHz) bare the
    teeth behind a narrow opening, and the balance of 1.6 to 3.2 kHz against 0.5 to 1.2 kHz
    separates spread vowels from rounded ones.

    Args:
        waveform: float32 [samples] at 16 kHz of one clean voice.
        level: of its speech in dB; much quieter audio does not open the mouth.
    """
    steps = len(waveform) // STEP
    window = 2 * STEP
    margin = (window - STEP) // 2  # centres each window on its step
    padded = torch.nn.functional.pad(torch.from_numpy(waveform), (margin, margin))
    frames = padded.unfold(0, window, STEP)[:steps] * torch.hann_window(window)
    power = torch.fft.rfft(frames).abs() ** 2
    frequency = torch.fft.rfftfreq(window, 1 / SAMPLE_RATE)

    def band(low: float, high: float) -> np.ndarray:
        inside = (frequency >= low) & (frequency < high)
        band_db: np.ndarray = 10 * np.log10(power[:, inside].sum(1).numpy() + 1e-9)
        return band_db

    track = np.zeros((steps, 4), np.float32)
    jaw = band(300, 1000)
    if steps == 0:
        return track
    # Level of the band if all energy of speech at ``level`` were in it.
    reference = level + 10 * float(np.log10(window * torch.hann_window(window).square().sum() / 2))
    loudest = max(float(np.percentile(jaw, 97)), reference - 6)
    opening = np.clip((jaw - (loudest - 28)) / 28, 0, 1) ** 1.4
    hiss = np.clip((band(4000, 8000) - jaw + 2) / 12, 0, 1) * np.clip(
        (band(4000, 8000) - (loudest - 40)) / 15, 0, 1
    )
    bright = np.clip((band(1600, 3200) - band(500, 1200) + 10) / 12, -1, 1)
    track[:, OPENING] = np.maximum(opening, 0.2 * hiss)
    track[:, SPREAD] = bright * np.clip(opening * 2, 0, 1)
    track[:, TEETH] = np.clip(0.25 * opening + hiss, 0, 1)
    track[:, TONGUE] = 0.4 * hiss
    return track


def chewing(steps: int, rng: np.random.Generator) -> np.ndarray:
    """Mouth track of chewing in bouts: 1 to 2 bites a second, mostly behind closed lips."""
    time = np.arange(steps) / MOUTH_RATE
    rate = rng.uniform(1.0, 2.0)
    wobble = 0.15 * np.sin(2 * np.pi * rng.uniform(0.1, 0.3) * time + rng.uniform(0, 6))
    phase = 2 * np.pi * (rate * time + wobble) + rng.uniform(0, 2 * np.pi)
    bite = np.clip(np.sin(phase), 0, 1) ** 1.5
    bout = gaussian_filter1d((rng.random(steps // MOUTH_RATE + 2) > 0.25).astype(float), 0.3)
    strength = np.interp(time, np.arange(len(bout)), bout)
    track = np.zeros((steps, 4), np.float32)
    track[:, OPENING] = rng.uniform(0.25, 0.7) * bite * strength
    track[:, SPREAD] = 0.5 * np.sin(phase / 2) * strength
    return track


def smiling(steps: int, rng: np.random.Generator) -> np.ndarray:
    """Mouth track of smiles, yawns and occasional movement without speech."""
    track = np.zeros((steps, 4), np.float32)
    time = np.arange(steps) / MOUTH_RATE
    for _ in range(max(1, round(steps / MOUTH_RATE / 1.5))):
        middle, width = rng.uniform(0, steps / MOUTH_RATE), rng.uniform(0.15, 0.6)
        bump = np.exp(-0.5 * ((time - middle) / width) ** 2)
        track[:, SPREAD] += rng.uniform(0.3, 1.2) * bump
        track[:, TEETH] += rng.uniform(0.0, 0.8) * bump
        track[:, OPENING] += (rng.uniform(0.1, 0.9) if rng.random() < 0.5 else 0.1) * bump
    return np.clip(track, -1, 1)


def at_frames(track: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Sample the smoothed track at frame times in seconds; returns float32 [frames, 4]."""
    smooth = gaussian_filter1d(track, SMOOTHING * MOUTH_RATE, axis=0, mode="nearest")
    # Step n covers the audio around (n + 0.5) / MOUTH_RATE.
    grid = (np.arange(len(track)) + 0.5) / MOUTH_RATE
    columns = [np.interp(times, grid, smooth[:, c]) for c in range(track.shape[1])]
    return np.stack(columns, axis=1).astype(np.float32)
