"""Voices and mouths: espeak-ng, recordings, visemes, random scripts."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import maximum_filter1d

from cavmae.common.errors import UsageError
from cavmae.datasets.synthetic import articulation, espeak, mixing, motion, words
from cavmae.datasets.synthetic.articulation import OPENING, SPREAD, TEETH, at_frames, from_phonemes
from cavmae.datasets.synthetic.espeak import EspeakVoice, Phoneme
from cavmae.datasets.synthetic.population import Population, rng_for
from cavmae.datasets.synthetic.recordings import (
    SpeechRecording,
    inspect_recording,
    levels,
    reader_of,
)
from cavmae.datasets.synthetic.script import write_script
from cavmae.datasets.synthetic.settings import RenderSettings
from cavmae.datasets.synthetic.speaker_discovery import _espeak_auditions
from cavmae.datasets.synthetic.voices import (
    RecordedVoice,
    Voice,
    draw_espeak_voice,
    pitch_of,
    speech_fraction,
    utter,
)

VOICE = EspeakVoice("en-us", "f3", 50, 50, 170)


def population(chosen: RenderSettings) -> Population:
    """Population of a corpus, with random pitches."""
    rng = np.random.default_rng(0)
    speaker_voices: dict[str, tuple[Voice, float]] = {}
    for name, audition in _espeak_auditions(chosen).items():
        assert audition.voice is not None
        speaker_voices[name] = audition.voice, float(rng.uniform(80, 250))
    return Population.from_voices(chosen, speaker_voices)


def test_espeak_says_the_same_whatever_it_said_before() -> None:
    first, rate, phonemes = espeak.synthesize(VOICE, ["the same words"])
    espeak.synthesize(EspeakVoice("de", "m2", 20, 80, 210), ["etwas ganz anderes"])
    again, _, later = espeak.synthesize(VOICE, ["the same words"])
    assert np.array_equal(first, again)
    assert phonemes == later
    assert rate == 22050
    assert 0.5 < len(first) / rate < 3


def test_phonemes_of_several_sentences_go_on_in_time() -> None:
    audio, rate, phonemes = espeak.synthesize(VOICE, ["one two", "three four"])
    starts = [p.start for p in phonemes]
    assert starts == sorted(starts)
    _, _, alone = espeak.synthesize(VOICE, ["one two"])
    assert starts[-1] > alone[-1].start + 0.3
    assert starts[-1] < len(audio) / rate


def test_phonemes_stand_where_they_sound() -> None:
    """In papa the lips close twice more; the sound is quiet there and loud in the vowels."""
    audio, rate, phonemes = espeak.synthesize(VOICE, ["papa papa papa"])
    level = levels(audio, rate // 100)
    closed, loud = [], []
    for phoneme, after in itertools.pairwise(phonemes):
        shape = articulation.mouth_shape(phoneme.ipa)
        middle = int(50 * (phoneme.start + after.start))
        (closed if shape == articulation.CLOSED else loud).append(level[middle])
    assert len(closed) >= 4
    assert len(loud) >= 4
    assert np.median(loud) > np.median(closed) + 10


@pytest.mark.parametrize("language", words.LANGUAGES)
def test_every_language_speaks(language: str) -> None:
    voice = EspeakVoice(language, "m3", 50, 50, 170)
    utterance = utter(voice, 2.0, np.random.default_rng(0))
    assert len(utterance.waveform) == 32_000
    assert np.abs(utterance.waveform).max() > 0.05
    assert utterance.phonemes is not None
    moving = [p for p in utterance.phonemes if articulation.mouth_shape(p.ipa).opening > 0]
    assert len(moving) > 6


@pytest.mark.parametrize("variant", espeak.VARIANTS)
def test_every_variant_is_there(variant: str) -> None:
    voice = EspeakVoice("en-us", variant, 50, 50, 170)
    audio, _, _ = espeak.synthesize(voice, ["hello"])
    assert np.abs(audio).max() > 0.02
    # Some draw from the C library's random numbers, which outlive espeak-ng.
    espeak.synthesize(EspeakVoice("en-us", "Reed", 50, 50, 170), ["something else"])
    assert np.array_equal(espeak.synthesize(voice, ["hello"])[0], audio)


def test_hundreds_of_voices_are_distinct() -> None:
    drawn = {draw_espeak_voice(rng_for(0, "voice", n)) for n in range(400)}
    assert len(drawn) == 400


@pytest.mark.parametrize("pitch", [90, 130, 170, 210, 260])
def test_pitch_of_known_tones(pitch: float) -> None:
    time = np.arange(32_000) / 16_000
    tone = sum(np.sin(2 * np.pi * pitch * n * time) / n for n in range(1, 9))
    audio = 0.1 * tone * (np.sin(6 * time) > 0) + np.random.default_rng(0).normal(0, 1e-3, 32_000)
    assert pitch_of(audio.astype(np.float32)) == pytest.approx(pitch, rel=0.03)


def test_shapes_of_phonemes_last_until_the_next() -> None:
    track = from_phonemes([Phoneme(0.1, "ˈaː"), Phoneme(0.3, "p"), Phoneme(0.4, "uː")], 60)
    assert not track[:10].any()
    assert np.all(track[10:30, OPENING] == 1)
    assert not track[30:40].any()
    assert np.all(track[40:, SPREAD] == -1)
    # Smoothing moves nothing: a vowel's middle stays where it was.
    frames = at_frames(track, np.arange(600) / 1000)
    assert np.average(np.arange(400), weights=frames[:400, OPENING]) == pytest.approx(205, abs=8)


@given(st.floats(0.3, 1.5), st.floats(60, 250))
@settings(max_examples=25, deadline=None)
def test_mouths_open_at_a_vowel(when: float, width: float) -> None:
    """A burst of a vowel-like tone opens the mouth at its own time, within a step."""
    time = np.arange(32_000) / 16_000
    tone = sum(np.sin(2 * np.pi * 150 * n * time) for n in range(2, 6))
    shape = np.exp(-0.5 * ((time - when) / (width / 1000)) ** 2)
    track = articulation.from_audio((0.1 * tone * shape).astype(np.float32), -24.0)
    assert track.shape == (200, 4)
    middle = np.average((np.arange(200) + 0.5) / 100, weights=track[:, OPENING])
    if when - 3 * width / 1000 > 0 and when + 3 * width / 1000 < 2:
        assert middle == pytest.approx(when, abs=0.01)


def test_mouths_follow_the_kind_of_sound() -> None:
    rng = np.random.default_rng(0)
    time = np.arange(16_000) / 16_000
    vowel = sum(np.sin(2 * np.pi * 140 * n * time) / n for n in range(1, 8))
    hiss = np.diff(rng.normal(0, 0.6, 16_001))
    both = np.concatenate([vowel, hiss]).astype(np.float32) * 0.1
    track = articulation.from_audio(both, -24.0)
    spoken, hissed = track[20:80].mean(0), track[120:180].mean(0)
    assert spoken[OPENING] > hissed[OPENING] + 0.3
    assert hissed[TEETH] > spoken[TEETH] + 0.3
    assert not articulation.from_audio(np.zeros(16_000, np.float32), -24.0).any()


@pytest.mark.parametrize("kind", ["white", "pink", "brown", "hum"])
def test_noises_are_what_they_are_called(kind: str) -> None:
    audio = mixing.noise(kind, 64_000, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(audio)) ** 2
    octaves = [power[a : 2 * a].mean() for a in (2000, 4000, 8000)]  # 0.5, 1 and 2 kHz on
    fall = 10 * np.log10(octaves[0] / octaves[2])
    assert fall == pytest.approx({"white": 0, "pink": 6, "brown": 12, "hum": 0}[kind], abs=1.5)
    assert np.isfinite(audio).all()


@pytest.mark.parametrize("seed", range(6))
def test_music_sounds(seed: int) -> None:
    audio = mixing.music(32_000, np.random.default_rng(seed))
    assert audio.shape == (32_000,)
    assert np.isfinite(audio).all()
    assert np.sqrt(np.mean(audio**2)) > 0.01


def test_speaking_bridges_breaths_and_not_pauses() -> None:
    rng = np.random.default_rng(0)
    audio = np.zeros(48_000)
    audio[8_000:16_000] = audio[18_000:24_000] = audio[40_000:44_000] = 1
    voice = audio * rng.normal(0, 3000, 48_000) + rng.normal(0, 50, 48_000)  # in a noisy room
    active = mixing.voice_activity(voice.astype(np.int16), -20.8, 75, 25)
    spans = mixing.active_spans(active, 25)
    assert np.allclose(spans, [(0.5, 1.5), (2.5, 2.75)], atol=0.04)


@given(
    st.integers(0, 2**40), st.integers(4, 60), st.sampled_from(["1", "2", "1-3", "3"]),
    st.floats(0, 0.4), st.floats(0, 0.4),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_casts_keep_to_their_split(
    seed: int, count: int, people: str, valid: float, test: float
) -> None:
    chosen = RenderSettings(
        seed=seed, speakers=count, people=people, valid_share=valid, test_share=test,
        look_alikes=0.5, similar_voices=0.5, off_screen_voice=0.5,
    )  # fmt: skip
    try:
        speakers = population(chosen)
    except UsageError as error:
        assert "speakers" in str(error)
        return
    least, most = chosen.people_range
    for clip in range(12):
        script = write_script(chosen, speakers, clip)
        cast = [speakers[p.speaker] for p in script.people]
        off_screen = [speakers[script.off_screen.speaker]] if script.off_screen else []
        assert least <= len(cast) <= most
        assert len({s.id for s in cast + off_screen}) == len(cast + off_screen)
        assert {s.split for s in cast + off_screen} == {script.split}
        families = [s.family for s in cast]
        assert script.look_alikes == (len(set(families)) < len(families))
        assert write_script(chosen, speakers, clip) == script


def test_shares_of_hard_cases_are_kept() -> None:
    cases = ("silent", "pauses", "mouth_occlusion", "noise", "music", "desync", "off_screen_voice")
    chosen = RenderSettings(speakers=50, valid_share=0, test_share=0, **dict.fromkeys(cases, 0.3))
    speakers = population(chosen)
    scripts = [write_script(chosen, speakers, n) for n in range(600)]
    labels = [s.labels([p.role == "speaking" for p in s.people]) for s in scripts]
    for case in cases:
        # Who is silent cannot pause or be out of step.
        wanted = 0.3 * (0.7 if case in ("pauses", "desync") else 1.0)
        assert np.mean([case in of_clip for of_clip in labels]) == pytest.approx(wanted, abs=0.06)
    pairs = RenderSettings(
        speakers=50, people="2", valid_share=0, test_share=0, look_alikes=0.3, similar_voices=0.0
    )
    speakers = population(pairs)
    look_alikes = [write_script(pairs, speakers, n).look_alikes for n in range(600)]
    assert np.mean(look_alikes) == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize("count", [6, 60])
def test_voices_of_a_kind_are_near_in_pitch(count: int) -> None:
    chosen = RenderSettings(
        speakers=count, people="2", valid_share=0, test_share=0, look_alikes=0.0, similar_voices=0.5
    )
    speakers = population(chosen)
    apart: dict[bool, list[float]] = {True: [], False: []}
    for clip in range(200):
        script = write_script(chosen, speakers, clip)
        first, second = (speakers[p.speaker].pitch_hz for p in script.people)
        apart[script.similar_voices is not None].append(abs(np.log2(first / second)))
        assert ("similar_voices" in script.labels([True, True])) == (
            script.similar_voices is not None
        )
        assert "similar_voices" not in script.labels([True, False])
    assert max(apart[True]) <= 0.25
    assert np.median(apart[True]) < np.median(apart[False]) / 3


@pytest.mark.parametrize(("valid", "test"), [(0.5, 0.5), (0.3, 0.7), (1.0, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize("count", [3, 7, 15, 40])
def test_shares_of_speakers_are_kept(valid: float, test: float, count: int) -> None:
    chosen = RenderSettings(speakers=count, valid_share=valid * 0.9999999999, test_share=test)
    if valid == 1.0:  # the last speaker too
        chosen = RenderSettings(speakers=count, valid_share=0.999999999999, test_share=0.0)
    splits = [s.split for s in population(chosen).speakers]
    assert len(splits) == count
    assert abs(splits.count("valid") - valid * count) <= 1
    assert abs(splits.count("test") - test * count) <= 1
    assert abs(splits.count("train") - (1 - valid - test) * count) <= 1


@pytest.mark.parametrize("length", [0.5, 1.0, 2.0, 5.12, 30.0])
def test_pauses_are_long_enough_to_be_called_so(length: float) -> None:
    chosen = RenderSettings(seconds=length, speakers=6, valid_share=0, test_share=0, pauses=1.0)
    speakers = population(chosen)
    for clip in range(60):
        script = write_script(chosen, speakers, clip)
        spans = script.people[0].spans
        assert all(0 <= a < b <= chosen.length for a, b in spans)
        assert all(b - a >= 0.4 for a, b in spans)
        assert all(after[0] - before[1] >= 0.49 for before, after in itertools.pairwise(spans))
        assert ("pauses" in script.labels([bool(spans)])) == (len(spans) > 1)
        assert len(spans) != 1 or length < 1.4


def test_a_noisy_room_is_not_speech(tmp_path: Path) -> None:
    """Pauses of a recording stay as quiet as they were, and open no mouth."""
    rng = np.random.default_rng(0)
    time = np.arange(10 * 16_000) / 16_000
    tone = sum(np.sin(2 * np.pi * 150 * n * time) / n for n in range(1, 9))
    speech = 0.2 * tone * (time < 4) * (np.sin(2 * np.pi * 3 * time) > -0.5)
    room = rng.normal(0, 0.002, len(time))
    end = 0.1 * tone * (time > 9.7)  # so that the recording does not end with the speech
    soundfile.write(str(tmp_path / "a-1.wav"), speech + room + end, 16_000)
    recording = inspect_recording(tmp_path, "a-1.wav")
    assert isinstance(recording, SpeechRecording)
    voice = RecordedVoice(str(tmp_path), (recording,))
    speech_segments = 0
    for draw in range(20):
        said = mixing.place_speech(voice, ((0.0, 1.0),), 1.0, 0.0, np.random.default_rng(draw))
        level = maximum_filter1d(levels(said.waveform, 160), 3)
        opening = said.mouth_track[:, OPENING]
        assert opening[level < -50].max(initial=0) < 0.1
        speech_segments += speech_fraction(said.waveform) > 0.35
    assert speech_segments >= 17


def test_parts_that_cancel_each_other_fit_too(tmp_path: Path) -> None:
    """One gain keeps every part within 16 bits, not just their sum."""
    rng = np.random.default_rng(0)
    audio = rng.normal(0, 0.02, 48_000)
    audio[::4000] = 0.9  # clicks
    for name, sign in (("a-1.wav", 1), ("b-1.wav", -1)):
        soundfile.write(str(tmp_path / name), sign * audio, 16_000)
    speaker_voices: dict[str, tuple[Voice, float]] = {}
    for name in ("a-1.wav", "b-1.wav"):
        recording = inspect_recording(tmp_path, name)
        assert isinstance(recording, SpeechRecording)
        exact = dataclasses.replace(recording, start=0.0, seconds=3.0)
        speaker_voices[name] = RecordedVoice(str(tmp_path), (exact,)), 100.0
    chosen = RenderSettings(
        seconds=3.0, people="2", valid_share=0, test_share=0, silent=0, pauses=0
    )
    speakers = Population.from_voices(chosen, speaker_voices)
    for clip in range(6):
        script = write_script(chosen, speakers, clip)
        clip_audio = mixing.mix(chosen, speakers, script)
        parts = [*clip_audio.voices, clip_audio.off_screen, clip_audio.background]
        assert np.array_equal(np.sum(parts, axis=0, dtype=int), clip_audio.mixture)
        for voice in clip_audio.voices:
            steps = np.flatnonzero(np.abs(voice.astype(int)) > 5000)
            assert len(set(np.sign(voice[steps]))) == 1  # no click has turned over


def test_looks_tell_nothing_of_voices() -> None:
    """Another seed gives a voice another look, and voices are not part of a look's seed."""
    first, second = (population(RenderSettings(seed=s, speakers=20)) for s in (1, 2))
    assert all(
        a.appearance_seed != b.appearance_seed
        for a, b in zip(first.speakers, second.speakers, strict=True)
    )
    same = {s.id: s.appearance_seed for s in first.speakers}
    mixed = Population.from_voices(
        RenderSettings(seed=1, speakers=20), dict.fromkeys(same, (VOICE, 100.0))
    )
    assert {s.id: s.appearance_seed for s in mixed.speakers} == same


def test_readers_are_file_name_prefixes() -> None:
    names = {
        "103-1240-0000.flac": "103", "a/p225_001.wav": "p225", "anna.ogg": "anna",
        "anna/001.wav": "anna", "x/bob/002.wav": "bob", "-x.wav": "-x", "a+b-1.wav": "a_b",
    }  # fmt: skip
    for name, reader in names.items():
        assert reader_of(Path(name)) == reader


def test_wandering_has_unit_variance_and_is_smooth() -> None:
    track = motion.smooth_noise(20_000, 25, 0.5, np.random.default_rng(0))
    assert np.std(track) == pytest.approx(1, abs=0.1)
    assert np.std(np.diff(track)) < 0.12
