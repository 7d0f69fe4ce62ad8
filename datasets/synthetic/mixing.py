"""The sound of a clip: each voice alone, what is behind them, and their sum."""

import dataclasses
import itertools
from typing import NamedTuple

import numpy as np
from scipy.signal import lfilter

from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.datasets.synthetic import articulation, voices
from cavmae.datasets.synthetic.espeak import Phoneme
from cavmae.datasets.synthetic.population import Population, rng_for
from cavmae.datasets.synthetic.recordings import active_level
from cavmae.datasets.synthetic.script import Script, Span
from cavmae.datasets.synthetic.settings import RenderSettings
from cavmae.datasets.synthetic.voices import LEVEL, Voice, at_level, utter

PEAK = 0.95  # of the mixture; one gain for all parts keeps below it
BABBLERS = 5
LIVELINESS = (0.6, 1.1)  # of mouths
SPEAKING_ABOVE = -26.0  # dB beside the level of speech: louder is speech
BRIDGE = 0.2  # s: shorter gaps are part of speaking


@dataclasses.dataclass
class Said:
    """A voice on the clip's timeline, and the mouth that belongs to it.

    Attributes:
        sound: float32 [samples] at 16 kHz.
        track: mouth track; see :mod:`articulation`.
    """

    waveform: np.ndarray
    mouth_track: np.ndarray


class Sounds(NamedTuple):
    """All sound of a clip as int16 [samples] at 16 kHz.

    Attributes:
        voices: of each person in the picture, digital silence for who says nothing.
        off_screen: of somebody else.
        background: noise and music.
        mixture: exactly the sum of all of these.
        levels: of each person's speech in dB.
        tracks: of each person's mouth, on the picture's timeline.
    """

    voices: list[np.ndarray]
    off_screen: np.ndarray
    background: np.ndarray
    mixture: np.ndarray
    levels: list[float]
    mouth_tracks: list[np.ndarray]


def place_speech(
    voice: Voice, spans: tuple[Span, ...], length: float, earlier: float, rng: np.random.Generator
) -> Said:
    """Speaks in stretches of a timeline.

    Args:
        spans: when, in seconds from the clip's start.
        length: of the clip.
        earlier: seconds by which the sound runs ahead of the mouth: negative if it lags.
    """
    margin = abs(earlier)
    whole = np.zeros(round((length + margin) * SAMPLE_RATE), np.float32)
    phonemes: list[Phoneme] | None = []
    for start, end in spans:
        # A stretch that reaches an end of the clip goes on over the margin.
        end = end + margin if end == length else end
        uttered = utter(voice, end - start, rng)
        first = round(start * SAMPLE_RATE)
        piece = voices.fade(uttered.waveform)[: len(whole) - first]
        whole[first : first + len(piece)] = piece
        if uttered.phonemes is None:
            phonemes = None
        elif phonemes is not None:
            phonemes += [Phoneme(start + p.start, p.ipa) for p in uttered.phonemes]
            phonemes.append(Phoneme(end, ""))
    steps = len(whole) // articulation.STEP
    if phonemes is None:
        track = articulation.from_audio(whole, LEVEL)
    else:
        track = articulation.from_phonemes(phonemes, steps)
    samples, shown = round(length * SAMPLE_RATE), round(length * articulation.RATE)
    late, early = max(earlier, 0.0), max(-earlier, 0.0)
    first, step = round(late * SAMPLE_RATE), round(early * articulation.RATE)
    return Said(whole[first : first + samples], track[step : step + shown])


def mix(settings: RenderSettings, population: Population, script: Script) -> Sounds:
    """Everything that is heard in a clip, and the mouths' movements.

    Raises:
        CavmaeError: a recording does not decode, or espeak-ng is not installed.
    """
    length = settings.length
    samples = round(length * SAMPLE_RATE)
    earlier = -script.shift_ms / 1000
    clean, tracks = [], []
    for number, person in enumerate(script.people):
        rng = rng_for(settings.seed, "voice", script.clip, number)
        if person.role == "silent":
            steps = round(length * articulation.RATE)
            made = articulation.chewing if person.activity == "chewing" else articulation.smiling
            clean.append(np.zeros(samples, np.float32))
            tracks.append(made(steps, rng))
            continue
        said = place_speech(population[person.speaker].voice, person.spans, length, earlier, rng)
        clean.append(at_level(said.waveform, 0.0, person.level_db))
        # Some people hardly open their mouth, always.
        liveliness = rng_for(population[person.speaker].appearance_seed, "articulation").uniform(
            *LIVELINESS
        )
        said.mouth_track[:, articulation.OPENING] *= liveliness
        tracks.append(said.mouth_track)
    elsewhere = np.zeros(samples, np.float32)
    if script.off_screen is not None:
        rng = rng_for(settings.seed, "off-screen", script.clip)
        voice = population[script.off_screen.speaker].voice
        said = place_speech(voice, script.off_screen.spans, length, 0.0, rng)
        elsewhere = at_level(said.waveform, 0.0, script.off_screen.level_db)
    behind = _background(settings, population, script, samples)
    every = [*clean, elsewhere, behind]
    # Of the parts too: where others cancel a peak, the part alone must still fit.
    peak = max(float(np.abs(part).max()) for part in (*every, np.sum(every, axis=0)))
    gain = min(1.0, PEAK / max(peak, 1e-9)) * 32767
    parts: list[np.ndarray] = [np.rint(part * gain).astype(np.int16) for part in every]
    mixture = np.asarray(np.sum(parts, axis=0, dtype=np.int32)).astype(np.int16)
    turned = 20 * float(np.log10(gain / 32767))
    speech = [LEVEL + person.level_db + turned for person in script.people]
    return Sounds(parts[:-2], parts[-2], parts[-1], mixture, speech, tracks)


def _background(
    settings: RenderSettings, population: Population, script: Script, samples: int
) -> np.ndarray:
    rng = rng_for(settings.seed, "background", script.clip)
    total = np.zeros(samples, np.float32)
    if script.noise is not None:
        kind, below = script.noise
        if kind == "babble":
            sound = _babble(population, script, settings.length, rng)
        else:
            sound = noise(kind, samples, rng)
        total += at_level(sound, active_level(sound), LEVEL - below)
    if script.music is not None:
        sound = music(samples, rng)
        total += at_level(sound, active_level(sound), LEVEL - script.music)
    return total


def _babble(
    population: Population, script: Script, length: float, rng: np.random.Generator
) -> np.ndarray:
    """Many other people of the same split at once."""
    known = [population[p.speaker] for p in script.people]
    if script.off_screen is not None:
        known.append(population[script.off_screen.speaker])
    others = population.others(known[0], known)
    total = np.zeros(round(length * SAMPLE_RATE), np.float32)
    for _ in range(BABBLERS):
        voice = others[int(rng.integers(len(others)))].voice
        total += at_level(utter(voice, length, rng).waveform, 0.0, rng.uniform(-6, 0))
    return total


def noise(kind: str, samples: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [samples]: ``white``, ``pink``, ``brown`` noise, or mains ``hum`` with hiss."""
    white = rng.normal(0, 0.1, samples)
    if kind == "hum":
        time = np.arange(samples) / SAMPLE_RATE
        base = float(rng.choice([50.0, 60.0]))
        tones = (np.sin(2 * np.pi * base * n * time + n) / n for n in range(1, 9))
        return (0.1 * sum(tones) + 0.1 * white).astype(np.float32)
    slope = {"white": 0.0, "pink": 0.5, "brown": 1.0}[kind]
    spectrum = np.fft.rfft(white)
    frequency = np.maximum(np.fft.rfftfreq(samples, 1 / SAMPLE_RATE), 40.0)
    return np.fft.irfft(spectrum / frequency**slope, samples).astype(np.float32)


def music(samples: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [samples]: plucked chords over a bass line, with a beat."""
    total = np.zeros(samples + SAMPLE_RATE, np.float64)
    beat = int(SAMPLE_RATE * 60 / rng.uniform(80, 140))
    root = 48 + int(rng.integers(12))
    chord = [0, 4, 7] if rng.random() < 0.5 else [0, 3, 7]
    for number, start in enumerate(range(0, samples, beat)):
        if number % 4 == 0:
            bass = root + int(rng.choice([0, 5, 7, -5]))
        notes = [(bass - 12, 0.5)] + [(bass + 12 + int(rng.choice(chord)), 0.25) for _ in range(2)]
        for place, (note, level) in enumerate(notes):
            first = start + (place - 1) * beat // 2 if place else start
            tone = _pluck(440 * 2 ** ((note - 69) / 12), SAMPLE_RATE, rng)
            total[first : first + len(tone)] += level * tone[: len(total) - first]
        hit = rng.normal(0, 0.2, 800) * np.exp(-np.arange(800) / 120)
        total[start : start + 800] += hit
    return lfilter([0.5], [1, -0.5], total[:samples]).astype(np.float32)


def _pluck(frequency: float, samples: int, rng: np.random.Generator) -> np.ndarray:
    time = np.arange(samples) / SAMPLE_RATE
    tone = np.zeros(samples)
    for harmonic in range(1, 7):
        if harmonic * frequency < SAMPLE_RATE / 2:
            decay = np.exp(-time * (2 + 1.5 * harmonic))
            phase = rng.uniform(0, 6)
            tone += np.sin(2 * np.pi * harmonic * frequency * time + phase) * decay / harmonic
    return tone * np.minimum(time / 0.005, 1)


def voice_activity(sound: np.ndarray, level: float, frames: int, frame_rate: float) -> list[bool]:
    """Whether a voice is heard in each frame, bridging the short gaps within speech.

    Args:
        sound: int16 [samples] of one voice alone at 16 kHz.
        level: of its speech in dB.
    """
    edges = np.minimum(np.rint(np.arange(frames + 1) * SAMPLE_RATE / frame_rate), len(sound))
    energy = np.concatenate([[0.0], np.cumsum((sound / 32768.0) ** 2)])[edges.astype(int)]
    power = np.diff(energy) / np.maximum(np.diff(edges), 1)
    heard = 10 * np.log10(power + 1e-12) > level + SPEAKING_ABOVE
    gap = round(BRIDGE * frame_rate)
    found = heard.copy()
    active = np.flatnonzero(heard)
    for before, after in itertools.pairwise(active):
        if after - before <= gap + 1:
            found[before:after] = True
    return [bool(x) for x in found]


def active_spans(active: list[bool], frame_rate: float) -> list[Span]:
    """Stretches of frames that are active, in seconds."""
    edges = np.flatnonzero(np.diff([0, *map(int, active), 0]))
    return [(float(a / frame_rate), float(b / frame_rate)) for a, b in edges.reshape(-1, 2)]
