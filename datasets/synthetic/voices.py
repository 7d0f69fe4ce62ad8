"""Voices: synthesized by espeak-ng, or cut from a reader's recordings."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cavmae.datasets.stream.features import SAMPLE_RATE, resample
from cavmae.datasets.synthetic import espeak, recordings, words
from cavmae.datasets.synthetic.espeak import EspeakVoice, Phoneme
from cavmae.datasets.synthetic.recordings import (
    HOP,
    PAUSE_BELOW,
    SpeechRecording,
    active_level,
    levels,
)

PROBE_SECONDS = 4.0  # of speech, from which a voice's pitch is measured
LEVEL = -24.0  # dB: RMS of every voice during speech
LEAST_SPEECH = 0.35  # fraction of a segment that should be speech
ATTEMPTS = 8  # at drawing such a segment
VOICED = 12.0  # dB below the loudest: frames of vowels


@dataclasses.dataclass(frozen=True)
class RecordedVoice:
    """A reader and their recordings.

    Attributes:
        folder: base of the recordings' paths.
    """

    folder: str
    recordings: tuple[SpeechRecording, ...]


Voice = EspeakVoice | RecordedVoice


class Utterance(NamedTuple):
    """Speech of one voice.

    Attributes:
        waveform: float32 [samples] at 16 kHz; its speech has the level :data:`LEVEL`.
        phonemes: with their times in seconds; None for recordings.
    """

    waveform: np.ndarray
    phonemes: list[Phoneme] | None


def to_record(voice: Voice) -> dict[str, Any]:
    """JSON object of a voice, without the folder of recordings, which differs between machines."""
    kind = "espeak" if isinstance(voice, EspeakVoice) else "recorded"
    values = dataclasses.asdict(voice)
    values.pop("folder", None)
    return {"kind": kind, **values}


def from_record(record: dict[str, Any], folder: str | None) -> Voice:
    """Voice from a JSON object.

    Args:
        folder: of the recordings.
    """
    values = {k: v for k, v in record.items() if k != "kind"}
    if record["kind"] == "espeak":
        return EspeakVoice(**values)
    return RecordedVoice(folder or "", tuple(SpeechRecording(**r) for r in values["recordings"]))


def draw_espeak_voice(rng: np.random.Generator) -> EspeakVoice:
    """Draw a random espeak-ng voice."""
    return EspeakVoice(
        str(rng.choice(words.LANGUAGES)),
        str(rng.choice(espeak.VARIANTS)),
        pitch=int(rng.integers(25, 76)),
        pitch_range=int(rng.integers(30, 81)),
        rate=int(rng.integers(135, 216)),
    )


def utter(voice: Voice, seconds: float, rng: np.random.Generator) -> Utterance:
    """Generate speech of exactly this length.

    Raises:
        CavmaeError: a recording is gone or does not decode, or espeak-ng is not installed.
    """
    samples = round(seconds * SAMPLE_RATE)
    if isinstance(voice, EspeakVoice):
        return _synthesize(voice, samples, rng)
    return Utterance(_read_recordings(voice, samples, rng), None)


def _synthesize(voice: EspeakVoice, samples: int, rng: np.random.Generator) -> Utterance:
    # About three words a second, and enough sentences for the length.
    texts: list[str] = []
    count = 0
    while count < samples / SAMPLE_RATE * voice.rate / 60 + 6:
        texts.append(words.sentence(voice.language, rng))
        count += len(texts[-1].split())
    while True:
        waveform, rate, phonemes = espeak.synthesize(voice, texts)
        waveform = resample(waveform, rate)
        if len(waveform) >= samples:
            break
        texts += [words.sentence(voice.language, rng) for _ in range(4)]
    kept = [p for p in phonemes if p.start < samples / SAMPLE_RATE]
    return Utterance(at_level(waveform[:samples], active_level(waveform)), kept)


def _read_recordings(voice: RecordedVoice, samples: int, rng: np.random.Generator) -> np.ndarray:
    best, most = np.zeros(samples, np.float32), -1.0
    for _ in range(ATTEMPTS):
        waveform = _draw_segment(voice, samples, rng)
        fraction = speech_fraction(waveform)
        if fraction > most:
            best, most = waveform, fraction
        if most >= LEAST_SPEECH:
            break
    return best


def _draw_segment(voice: RecordedVoice, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Segment from a random place of a random recording, and of more of them if need be."""
    segments: list[np.ndarray] = []
    missing = samples
    seconds = np.array([r.seconds for r in voice.recordings])
    while missing > 0:
        chosen = voice.recordings[int(rng.choice(len(seconds), p=seconds / seconds.sum()))]
        wanted = min(missing / SAMPLE_RATE, chosen.seconds)
        start = chosen.start + float(rng.uniform(0, chosen.seconds - wanted))
        segment = recordings.read(Path(voice.folder) / chosen.path, start, wanted)[:missing]
        # The gain is the whole recording's, so that a pause stays quiet.
        segments.append(fade(at_level(segment, chosen.level_db)))
        missing -= len(segment)
        pause = min(missing, int(rng.uniform(0.2, 0.6) * SAMPLE_RATE))
        segments.append(np.zeros(pause, np.float32))
        missing -= pause
    return np.concatenate(segments)


def at_level(waveform: np.ndarray, level: float, target: float = LEVEL) -> np.ndarray:
    """Scale a waveform from one level in dB to another."""
    if level <= -100:
        return np.zeros_like(waveform)
    return waveform * np.float32(10 ** ((target - level) / 20))


def fade(waveform: np.ndarray, seconds: float = 0.01) -> np.ndarray:
    """Copy of a waveform, faded in and out to avoid clicks."""
    count = min(round(seconds * SAMPLE_RATE), len(waveform) // 2)
    faded = waveform.copy()
    ramp = np.linspace(0, 1, count, endpoint=False, dtype=np.float32)
    faded[:count] *= ramp
    faded[len(faded) - count :] *= ramp[::-1]
    return faded


def speech_fraction(waveform: np.ndarray) -> float:
    """Fraction of time with audible speech at the level :data:`LEVEL`."""
    level = levels(waveform, HOP)
    return float(np.mean(level > LEVEL - PAUSE_BELOW)) if len(level) else 0.0


def median_pitch(voice: Voice) -> float:
    """Median fundamental frequency in Hz, of a few seconds of speech."""
    return pitch_of(utter(voice, PROBE_SECONDS, np.random.default_rng(0)).waveform)


def pitch_of(waveform: np.ndarray) -> float:
    """Median fundamental frequency of the loud frames, between 60 and 400 Hz.

    By plain autocorrelation: torchaudio's ``detect_pitch_frequency`` took half the frequency for
    most of the voices tried, synthetic and recorded.

    Args:
        waveform: float32 [samples] at 16 kHz of one voice.

    Returns:
        Hz; 0 for silence.
    """
    window, hop = 1024, 256
    if len(waveform) < window:
        return 0.0
    frames = np.lib.stride_tricks.sliding_window_view(waveform, window)[::hop].astype(np.float64)
    power = np.mean(frames**2, axis=1)
    if power.max() <= 0:
        return 0.0
    frames = frames[power > power.max() * 10 ** (-VOICED / 10)]
    frames = frames - frames.mean(axis=1, keepdims=True)
    shortest, longest = SAMPLE_RATE // 400, SAMPLE_RATE // 60
    spectrum = np.abs(np.fft.rfft(frames, 2 * window)) ** 2
    autocorrelation = np.fft.irfft(spectrum)[:, : longest + 1]
    autocorrelation /= autocorrelation[:, :1] + 1e-12
    # Longer lags overlap less; half of the loss is compensated: with all, double periods would win.
    autocorrelation *= (1 + window / (window - np.arange(longest + 1))) / 2
    best = autocorrelation[:, shortest:].argmax(axis=1) + shortest
    strength = autocorrelation[np.arange(len(best)), best]
    clear = strength >= np.median(strength)  # the rest is noise or a transition
    return float(np.median(SAMPLE_RATE / best[clear]))
