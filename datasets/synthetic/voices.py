"""What a speaker sounds like, whether espeak-ng speaks or a recorded reader."""

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

PROBE_SECONDS = 4.0  # of speech, by which a voice's pitch is measured
LEVEL = -24.0  # dB: RMS of every voice while it speaks
LEAST_SPEECH = 0.35  # share of a stretch in which there should be something to hear
ATTEMPTS = 8  # at finding such a stretch
VOICED = 12.0  # dB below the loudest: vowels


@dataclasses.dataclass(frozen=True)
class RecordedVoice:
    """A reader and their recordings.

    Attributes:
        folder: that the recordings' paths are relative to.
    """

    folder: str
    recordings: tuple[SpeechRecording, ...]


Voice = EspeakVoice | RecordedVoice


class Utterance(NamedTuple):
    """Something said.

    Attributes:
        sound: float32 [samples] at 16 kHz; speech in it has the level :data:`LEVEL`.
        phonemes: with their times in seconds; None: not known.
    """

    waveform: np.ndarray
    phonemes: list[Phoneme] | None


def to_record(voice: Voice) -> dict[str, Any]:
    """Without the folder of recordings, which may lie elsewhere on another machine."""
    kind = "espeak" if isinstance(voice, EspeakVoice) else "recorded"
    values = dataclasses.asdict(voice)
    values.pop("folder", None)
    return {"kind": kind, **values}


def from_record(record: dict[str, Any], folder: str | None) -> Voice:
    """
    Args:
        folder: of the recordings.
    """
    values = {k: v for k, v in record.items() if k != "kind"}
    if record["kind"] == "espeak":
        return EspeakVoice(**values)
    return RecordedVoice(folder or "", tuple(SpeechRecording(**r) for r in values["recordings"]))


def draw_espeak_voice(rng: np.random.Generator) -> EspeakVoice:
    """A voice by lot."""
    return EspeakVoice(
        str(rng.choice(words.LANGUAGES)),
        str(rng.choice(espeak.VARIANTS)),
        pitch=int(rng.integers(25, 76)),
        pitch_range=int(rng.integers(30, 81)),
        rate=int(rng.integers(135, 216)),
    )


def utter(voice: Voice, seconds: float, rng: np.random.Generator) -> Utterance:
    """Speech of exactly this length.

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
        sound, rate, phonemes = espeak.synthesize(voice, texts)
        sound = resample(sound, rate)
        if len(sound) >= samples:
            break
        texts += [words.sentence(voice.language, rng) for _ in range(4)]
    kept = [p for p in phonemes if p.start < samples / SAMPLE_RATE]
    return Utterance(at_level(sound[:samples], active_level(sound)), kept)


def _read_recordings(voice: RecordedVoice, samples: int, rng: np.random.Generator) -> np.ndarray:
    best, most = np.zeros(samples, np.float32), -1.0
    for _ in range(ATTEMPTS):
        sound = _stretch(voice, samples, rng)
        share = speech_fraction(sound)
        if share > most:
            best, most = sound, share
        if most >= LEAST_SPEECH:
            break
    return best


def _stretch(voice: RecordedVoice, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Samples from a random place of a random recording, and of more of them if need be."""
    pieces: list[np.ndarray] = []
    missing = samples
    seconds = np.array([r.seconds for r in voice.recordings])
    while missing > 0:
        chosen = voice.recordings[int(rng.choice(len(seconds), p=seconds / seconds.sum()))]
        wanted = min(missing / SAMPLE_RATE, chosen.seconds)
        start = chosen.start + float(rng.uniform(0, chosen.seconds - wanted))
        piece = recordings.read(Path(voice.folder) / chosen.path, start, wanted)[:missing]
        # By the whole recording's level: a pause stays as quiet as it was.
        pieces.append(fade(at_level(piece, chosen.level_db)))
        missing -= len(piece)
        pause = min(missing, int(rng.uniform(0.2, 0.6) * SAMPLE_RATE))
        pieces.append(np.zeros(pause, np.float32))
        missing -= pause
    return np.concatenate(pieces)


def at_level(sound: np.ndarray, level: float, wanted: float = LEVEL) -> np.ndarray:
    """Louder or quieter, so that what had one level (dB) has another."""
    if level <= -100:
        return np.zeros_like(sound)
    return sound * np.float32(10 ** ((wanted - level) / 20))


def fade(sound: np.ndarray, seconds: float = 0.01) -> np.ndarray:
    """A copy that begins and ends without a click."""
    count = min(round(seconds * SAMPLE_RATE), len(sound) // 2)
    faded = sound.copy()
    ramp = np.linspace(0, 1, count, endpoint=False, dtype=np.float32)
    faded[:count] *= ramp
    faded[len(faded) - count :] *= ramp[::-1]
    return faded


def speech_fraction(sound: np.ndarray) -> float:
    """Share of the time in which speech at the level :data:`LEVEL` is to be heard."""
    level = levels(sound, HOP)
    return float(np.mean(level > LEVEL - PAUSE_BELOW)) if len(level) else 0.0


def median_pitch(voice: Voice) -> float:
    """Median fundamental frequency in Hz, of a few seconds of speech."""
    return pitch_of(utter(voice, PROBE_SECONDS, np.random.default_rng(0)).waveform)


def pitch_of(sound: np.ndarray) -> float:
    """Median over the loud parts of the strongest period between 60 and 400 Hz.

    By plain autocorrelation: torchaudio's ``detect_pitch_frequency`` took half the frequency for
    most of the voices tried, made ones and recorded ones.

    Args:
        sound: float32 [samples] at 16 kHz of one voice.

    Returns:
        Hz; 0 for silence.
    """
    window, hop = 1024, 256
    if len(sound) < window:
        return 0.0
    frames = np.lib.stride_tricks.sliding_window_view(sound, window)[::hop].astype(np.float64)
    power = np.mean(frames**2, axis=1)
    if power.max() <= 0:
        return 0.0
    frames = frames[power > power.max() * 10 ** (-VOICED / 10)]
    frames = frames - frames.mean(axis=1, keepdims=True)
    shortest, longest = SAMPLE_RATE // 400, SAMPLE_RATE // 60
    spectrum = np.abs(np.fft.rfft(frames, 2 * window)) ** 2
    across = np.fft.irfft(spectrum)[:, : longest + 1]
    across /= across[:, :1] + 1e-12
    # Longer shifts overlap less; half of that is made good: all would make double periods win.
    across *= (1 + window / (window - np.arange(longest + 1))) / 2
    best = across[:, shortest:].argmax(axis=1) + shortest
    strength = across[np.arange(len(best)), best]
    clear = strength >= np.median(strength)  # the rest is noise or a change of sound
    return float(np.median(SAMPLE_RATE / best[clear]))
