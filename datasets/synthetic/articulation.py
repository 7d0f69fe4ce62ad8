"""How mouths move: from phonemes, from sound, and without any speech.

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

RATE = 100  # Hz
STEP = SAMPLE_RATE // RATE
SMOOTHING = 0.03  # s: standard deviation of what lips and jaw make of sudden targets
OPENING, SPREAD, TEETH, TONGUE = range(4)


class Shape(NamedTuple):
    """A mouth's target for a sound; see the module for the scales."""

    opening: float
    spread: float = 0.0
    teeth: float = 0.0
    tongue: float = 0.0


CLOSED = Shape(0.0)
# Groups of sounds that look alike on the lips, by letters of the IPA.
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
    """A phoneme's shape: that of its first letter that moves the lips; a pause closes them."""
    return next((SHAPES[letter] for letter in ipa if letter in SHAPES), CLOSED)


def from_phonemes(phonemes: Sequence[Phoneme], steps: int) -> np.ndarray:
    """A mouth track in which every phoneme's shape holds until the next one begins."""
    track = np.zeros((steps, 4), np.float32)
    ends = [p.start for p in phonemes[1:]] + [steps / RATE]
    for phoneme, end in zip(phonemes, ends, strict=True):
        first, last = round(phoneme.start * RATE), round(end * RATE)
        track[first:last] = mouth_shape(phoneme.ipa)
    return track


def from_audio(sound: np.ndarray, level: float) -> np.ndarray:
    """A mouth track that follows the energies of four bands, as lips and jaw roughly do.

    The jaw opens with the first formant's band (300 to 1000 Hz), fricatives (above 4 kHz) bare the
    teeth behind a narrow opening, and the balance of 1.6 to 3.2 kHz against 0.5 to 1.2 kHz tells
    spread vowels from rounded ones.

    Args:
        sound: float32 [samples] at 16 kHz of one voice alone.
        level: of its speech in dB, so that what is quiet beside it opens no mouth.
    """
    steps = len(sound) // STEP
    window = 2 * STEP
    margin = (window - STEP) // 2  # a window has its step in its middle
    padded = torch.nn.functional.pad(torch.from_numpy(sound), (margin, margin))
    frames = padded.unfold(0, window, STEP)[:steps] * torch.hann_window(window)
    power = torch.fft.rfft(frames).abs() ** 2
    frequency = torch.fft.rfftfreq(window, 1 / SAMPLE_RATE)

    def band(low: float, high: float) -> np.ndarray:
        inside = (frequency >= low) & (frequency < high)
        found: np.ndarray = 10 * np.log10(power[:, inside].sum(1).numpy() + 1e-9)
        return found

    track = np.zeros((steps, 4), np.float32)
    jaw = band(300, 1000)
    if steps == 0:
        return track
    # What the band would hold if speech at its level were all in it.
    usual = level + 10 * float(np.log10(window * torch.hann_window(window).square().sum() / 2))
    loudest = max(float(np.percentile(jaw, 97)), usual - 6)
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
    """A mouth that chews in bouts: 1 to 2 bites a second, mostly behind closed lips."""
    time = np.arange(steps) / RATE
    rate = rng.uniform(1.0, 2.0)
    wobble = 0.15 * np.sin(2 * np.pi * rng.uniform(0.1, 0.3) * time + rng.uniform(0, 6))
    phase = 2 * np.pi * (rate * time + wobble) + rng.uniform(0, 2 * np.pi)
    bite = np.clip(np.sin(phase), 0, 1) ** 1.5
    bout = gaussian_filter1d((rng.random(steps // RATE + 2) > 0.25).astype(float), 0.3)
    strength = np.interp(time, np.arange(len(bout)), bout)
    track = np.zeros((steps, 4), np.float32)
    track[:, OPENING] = rng.uniform(0.25, 0.7) * bite * strength
    track[:, SPREAD] = 0.5 * np.sin(phase / 2) * strength
    return track


def smiling(steps: int, rng: np.random.Generator) -> np.ndarray:
    """A mouth that smiles, yawns and moves now and then, without speech."""
    track = np.zeros((steps, 4), np.float32)
    time = np.arange(steps) / RATE
    for _ in range(max(1, round(steps / RATE / 1.5))):
        middle, width = rng.uniform(0, steps / RATE), rng.uniform(0.15, 0.6)
        bump = np.exp(-0.5 * ((time - middle) / width) ** 2)
        track[:, SPREAD] += rng.uniform(0.3, 1.2) * bump
        track[:, TEETH] += rng.uniform(0.0, 0.8) * bump
        track[:, OPENING] += (rng.uniform(0.1, 0.9) if rng.random() < 0.5 else 0.1) * bump
    return np.clip(track, -1, 1)


def at_frames(track: np.ndarray, times: np.ndarray) -> np.ndarray:
    """float32 [frames, 4]: the smoothed track at these times, in seconds."""
    smooth = gaussian_filter1d(track, SMOOTHING * RATE, axis=0, mode="nearest")
    # Step n stands for the sound around (n + 0.5) / RATE.
    grid = (np.arange(len(track)) + 0.5) / RATE
    columns = [np.interp(times, grid, smooth[:, c]) for c in range(track.shape[1])]
    return np.stack(columns, axis=1).astype(np.float32)
