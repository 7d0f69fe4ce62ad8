"""Composed scenes: voices of visible people, the residual, and their mixture."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cavmae.datasets.format.sample import encode_waveform
from cavmae.datasets.mixtures.clip_pool import ClipPool
from cavmae.datasets.mixtures.composer import Composer
from cavmae.datasets.mixtures.mixing import REFERENCE, active_rms
from cavmae.datasets.mixtures.sampler import SceneSampler
from cavmae.datasets.mixtures.scene_spec import ComposeSettings, SceneSpec, Voice
from cavmae.datasets.stream.features import resample
from cavmae.datasets.synthetic.articulation import at_frames, from_audio
from cavmae.datasets.synthetic.recordings import active_level
from tests.datasets.clips import clip, data_set_of

SETTINGS = ComposeSettings(height=32, width=48, seconds=0.08)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> ClipPool:
    folder = tmp_path_factory.mktemp("pool") / "set"
    samples = [
        clip(n, speaker=f"s{n}", person=True, labels=("silent",) if n > 5 else ()) for n in range(8)
    ]
    return ClipPool(data_set_of(folder, samples))


@pytest.fixture(scope="module")
def specs(pool: ClipPool) -> list[SceneSpec]:
    sampler = SceneSampler(pool, SETTINGS)
    return [sampler.sample(random.Random(n)) for n in range(80)]


def test_voices_and_rest_add_up(pool: ClipPool, specs: list[SceneSpec]) -> None:
    composer = Composer(pool, SETTINGS, (16, 24), keys=1)
    kinds = set()
    for spec in specs:
        scene = composer.compose(spec)
        np.testing.assert_allclose(
            scene.voices.sum(axis=0) + scene.residual, scene.mixture, atol=1e-5
        )
        audible = [person.level_db is not None for person in spec.people]
        assert scene.speaking.tolist() == audible
        for voice, person in zip(scene.voices, spec.people, strict=True):
            if person.level_db is None:
                assert not voice.any()
        if spec.unseen or spec.noise:
            assert scene.residual.any()
        else:
            assert not scene.residual.any()
        kinds.add((any(audible), bool(spec.unseen), spec.noise is not None))
    assert len(kinds) > 4


def test_articulation_is_that_of_the_lips_also_without_a_voice(
    pool: ClipPool, specs: list[SceneSpec]
) -> None:
    composer = Composer(pool, SETTINGS, (16, 24), keys=1)
    muted = 0
    for spec in specs:
        scene = composer.compose(spec)
        people = tuple(replace(person, level_db=0.0) for person in spec.people)
        spoken = composer.compose(replace(spec, people=people))
        for number, person in enumerate(spec.people):
            silent = pool.clips[pool.index_of[person.clip]].silent
            voice = spoken.voices[number]  # its level does not count
            known = scene.articulated[number]
            assert known == (not silent and voice.any())
            track = scene.articulation[number]
            assert track.shape == (2, 4)
            if not known:
                assert not track.any()
                continue
            muted += person.level_db is None
            expected = at_frames(from_audio(voice, active_level(voice)), np.array([0.02, 0.06]))
            np.testing.assert_allclose(track, expected, atol=0.02)
    assert muted > 3


def test_a_voice_is_the_clips_own_in_step(pool: ClipPool, specs: list[SceneSpec]) -> None:
    composer = Composer(pool, SETTINGS, (16, 24), keys=1)
    checked = 0
    speeds = set()
    for spec in specs:
        scene = composer.compose(spec)
        for voice, person in zip(scene.voices, spec.people, strict=True):
            if person.level_db is None or person.active != (0.0, SETTINGS.seconds):
                continue
            speed = person.speed
            own = pool.waveform(
                pool.clips[pool.index_of[person.clip]], person.start, round(1280 * speed)
            )
            own = resample(own, round(16_000 * speed))[:1280]
            speeds.add(speed)
            assert np.corrcoef(voice, own)[0, 1] > 0.9999
            if np.abs(scene.mixture).max() < 0.9:  # the mixture was not scaled down to fit
                level = 20 * np.log10(active_rms(voice) / REFERENCE)
                assert level == pytest.approx(person.level_db, abs=0.1)
            checked += 1
    assert checked > 20
    assert len(speeds) > 4


def test_a_voice_plays_faster_as_its_video_does(tmp_path: Path) -> None:
    """A tone of 1,000 Hz that begins 40 ms into a clip, and a second frame that appears then."""
    key, members = clip(0, person=True)
    wave = 9000 * np.sin(2 * np.pi * 1000 * np.arange(1920) / 16_000)
    wave[:640] = 0
    members["flac"] = encode_waveform(wave.astype(np.int16))
    pool = ClipPool(data_set_of(tmp_path / "set", [(key, members), clip(1, person=True)]))
    voice = Voice(key, 0.0, (0.0, 0.08), 0.0, speed=1.25)
    composer = Composer(pool, SETTINGS, (16, 24), keys=1)
    voice_wave = composer._wave(voice)
    begins = 640 / 1.25
    assert (
        np.abs(voice_wave[: int(begins) - 20]).max()
        < 0.01
        < np.abs(voice_wave[int(begins) + 20 :]).max()
    )
    time = np.arange(len(voice_wave)) / 16_000
    inside = slice(int(begins) + 40, len(voice_wave) - 40)
    fitted = np.stack([np.sin(2 * np.pi * 1250 * time), np.cos(2 * np.pi * 1250 * time)], 1)[inside]
    left = voice_wave[inside] - fitted @ np.linalg.lstsq(fitted, voice_wave[inside], rcond=None)[0]
    assert np.square(left).mean() < 1e-4 * np.square(voice_wave[inside]).mean()


def test_the_same_spec_gives_the_same_scene(pool: ClipPool, specs: list[SceneSpec]) -> None:
    first = Composer(pool, SETTINGS, (16, 24), keys=2)
    second = Composer(pool, SETTINGS, (16, 24), keys=2)
    for spec in specs[:10]:
        again = SceneSpec.from_record(json.loads(json.dumps(spec.to_record())))
        for a, b in zip(first.compose(spec), second.compose(again), strict=True):
            assert np.array_equal(a, b)
