"""Audio of a clip: every clean voice, the background, and their mixture."""

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
from cavmae.datasets.synthetic.script import Script
from cavmae.datasets.synthetic.settings import RenderSettings
from cavmae.datasets.synthetic.staging import Span
from cavmae.datasets.synthetic.voices import LEVEL, Voice, at_level, utter

PEAK = 0.95  # of the mixture; one gain for all tracks keeps below it
BABBLERS = 5
LIVELINESS = (0.6, 1.1)  # of mouths
SPEAKING_ABOVE = -26.0  # dB relative to the level of speech: louder is speech
BRIDGE = 0.2  # s: shorter gaps belong to speech


@dataclasses.dataclass
class PlacedSpeech:
    """A voice on the clip's timeline with its mouth track.

    Attributes:
        waveform: float32 [samples] at 16 kHz.
        mouth_track: mouth track; see :mod:`articulation`.
    """

    waveform: np.ndarray
    mouth_track: np.ndarray


class ClipAudio(NamedTuple):
    """Audio tracks of a clip as int16 [samples] at 16 kHz.

    Attributes:
        voices: of each person in view, digital silence for a silent person.
        off_screen: voice of a person out of view.
        background: noise and music.
        mixture: exactly the sum of the tracks above.
        levels: of each person's speech in dB.
        mouth_tracks: of each person, on the video's timeline.
    """

    voices: list[np.ndarray]
    off_screen: np.ndarray
    background: np.ndarray
    mixture: np.ndarray
    levels: list[float]
    mouth_tracks: list[np.ndarray]


def place_speech(
    voice: Voice, spans: tuple[Span, ...], length: float, lead: float, rng: np.random.Generator
) -> PlacedSpeech:
    """Place speech of a voice in spans of a timeline.

    Args:
        spans: of speech, in seconds from the clip's start.
        length: of the clip in seconds.
        lead: seconds by which the audio runs ahead of the mouth: negative if it lags.

    Raises:
        CavmaeError: see :func:`~cavmae.datasets.synthetic.voices.utter`.
    """
    margin = abs(lead)
    whole = np.zeros(round((length + margin) * SAMPLE_RATE), np.float32)
    phonemes: list[Phoneme] | None = []
    for start, end in spans:
        # A span that reaches the clip's end goes on over the margin.
        end = end + margin if end == length else end
        utterance = utter(voice, end - start, rng)
        first = round(start * SAMPLE_RATE)
        segment = voices.fade(utterance.waveform)[: len(whole) - first]
        whole[first : first + len(segment)] = segment
        if utterance.phonemes is None:
            phonemes = None
        elif phonemes is not None:
            phonemes += [Phoneme(start + p.start, p.ipa) for p in utterance.phonemes]
            phonemes.append(Phoneme(end, ""))
    steps = len(whole) // articulation.STEP
    if phonemes is None:
        track = articulation.from_audio(whole, LEVEL)
    else:
        track = articulation.from_phonemes(phonemes, steps)
    samples, steps_in_view = round(length * SAMPLE_RATE), round(length * articulation.MOUTH_RATE)
    audio_offset, video_offset = max(lead, 0.0), max(-lead, 0.0)
    first, step = round(audio_offset * SAMPLE_RATE), round(video_offset * articulation.MOUTH_RATE)
    return PlacedSpeech(whole[first : first + samples], track[step : step + steps_in_view])


def mix(settings: RenderSettings, population: Population, script: Script) -> ClipAudio:
    """Synthesize all audio of a clip and its mouth tracks.

    Raises:
        CavmaeError: a recording does not decode, or espeak-ng is not installed.
    """
    length = settings.length
    samples = round(length * SAMPLE_RATE)
    lead = -script.shift_ms / 1000
    clean, mouth_tracks = [], []
    for number, person in enumerate(script.people):
        rng = rng_for(settings.seed, "voice", script.clip, number)
        if person.role == "silent":
            steps = round(length * articulation.MOUTH_RATE)
            draw_track = (
                articulation.chewing if person.activity == "chewing" else articulation.smiling
            )
            clean.append(np.zeros(samples, np.float32))
            mouth_tracks.append(draw_track(steps, rng))
            continue
        utterance = place_speech(population[person.speaker].voice, person.spans, length, lead, rng)
        clean.append(at_level(utterance.waveform, 0.0, person.level_db))
        # A speaker's articulation is the same in all their clips.
        liveliness = rng_for(population[person.speaker].appearance_seed, "articulation").uniform(
            *LIVELINESS
        )
        utterance.mouth_track[:, articulation.OPENING] *= liveliness
        mouth_tracks.append(utterance.mouth_track)
    off_screen = np.zeros(samples, np.float32)
    if script.off_screen is not None:
        rng = rng_for(settings.seed, "off-screen", script.clip)
        voice = population[script.off_screen.speaker].voice
        utterance = place_speech(voice, script.off_screen.spans, length, 0.0, rng)
        off_screen = at_level(utterance.waveform, 0.0, script.off_screen.level_db)
    background = _background(settings, population, script, samples)
    stems = [*clean, off_screen, background]
    # Of the stems too: where others cancel a peak, the stem alone must still fit.
    peak = max(float(np.abs(stem).max()) for stem in (*stems, np.sum(stems, axis=0)))
    gain = min(1.0, PEAK / max(peak, 1e-9)) * 32767
    tracks: list[np.ndarray] = [np.rint(stem * gain).astype(np.int16) for stem in stems]
    mixture = np.asarray(np.sum(tracks, axis=0, dtype=np.int32)).astype(np.int16)
    gain_db = 20 * float(np.log10(gain / 32767))
    levels = [LEVEL + person.level_db + gain_db for person in script.people]
    return ClipAudio(tracks[:-2], tracks[-2], tracks[-1], mixture, levels, mouth_tracks)


def _background(
    settings: RenderSettings, population: Population, script: Script, samples: int
) -> np.ndarray:
    rng = rng_for(settings.seed, "background", script.clip)
    total = np.zeros(samples, np.float32)
    if script.noise is not None:
        kind, below = script.noise
        if kind == "babble":
            waveform = _babble(population, script, settings.length, rng)
        else:
            waveform = noise(kind, samples, rng)
        total += at_level(waveform, active_level(waveform), LEVEL - below)
    if script.music is not None:
        waveform = music(samples, rng)
        total += at_level(waveform, active_level(waveform), LEVEL - script.music)
    return total


def _babble(
    population: Population, script: Script, length: float, rng: np.random.Generator
) -> np.ndarray:
    """Babble noise: voices of other speakers of the same split at once."""
    present = [population[p.speaker] for p in script.people]
    if script.off_screen is not None:
        present.append(population[script.off_screen.speaker])
    others = population.others(present[0], present)
    total = np.zeros(round(length * SAMPLE_RATE), np.float32)
    for _ in range(BABBLERS):
        voice = others[int(rng.integers(len(others)))].voice
        total += at_level(utter(voice, length, rng).waveform, 0.0, rng.uniform(-6, 0))
    return total


def noise(kind: str, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Background noise, float32 [samples]: ``white``, ``pink``, ``brown``, or mains ``hum``."""
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
    """Background music, float32 [samples]: plucked chords over a bass line, with a beat."""
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


def voice_activity(
    waveform: np.ndarray, level: float, frames: int, frame_rate: float
) -> list[bool]:
    """Voice activity of each frame, with the short gaps within speech bridged.

    Args:
        waveform: int16 [samples] of one clean voice at 16 kHz.
        level: of its speech in dB.
    """
    edges = np.minimum(np.rint(np.arange(frames + 1) * SAMPLE_RATE / frame_rate), len(waveform))
    energy = np.concatenate([[0.0], np.cumsum((waveform / 32768.0) ** 2)])[edges.astype(int)]
    power = np.diff(energy) / np.maximum(np.diff(edges), 1)
    loud = 10 * np.log10(power + 1e-12) > level + SPEAKING_ABOVE
    gap = round(BRIDGE * frame_rate)
    active = loud.copy()
    for before, after in itertools.pairwise(np.flatnonzero(loud)):
        if after - before <= gap + 1:
            active[before:after] = True
    return [bool(x) for x in active]


def active_spans(active: list[bool], frame_rate: float) -> list[Span]:
    """Spans of active frames, in seconds."""
    edges = np.flatnonzero(np.diff([0, *map(int, active), 0]))
    return [(float(a / frame_rate), float(b / frame_rate)) for a, b in edges.reshape(-1, 2)]
