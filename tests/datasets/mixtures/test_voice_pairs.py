"""Pairs of scenes with the same frames and another voice."""

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest

from cavmae.common.errors import UsageError
from cavmae.datasets.mixtures.clip_pool import ClipPool
from cavmae.datasets.mixtures.composer import Composer
from cavmae.datasets.mixtures.mixing import active_rms
from cavmae.datasets.mixtures.sampler import SceneSampler
from cavmae.datasets.mixtures.scene_spec import ComposeSettings, SceneSpec
from cavmae.datasets.mixtures.voice_pairs import (
    PairedScene,
    paired_scenes,
    paired_settings,
    replace_target_voice,
)
from tests.datasets.clips import people_of

SETTINGS = paired_settings(
    ComposeSettings(height=64, width=96, seconds=0.08, speed=0.0, people=(1, 1, 1))
)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> ClipPool:
    return ClipPool(people_of(tmp_path_factory.mktemp("pool") / "set"))


@pytest.fixture(scope="module")
def pairs(pool: ClipPool) -> list[tuple[SceneSpec, SceneSpec]]:
    sampler, drawn = SceneSampler(pool, SETTINGS), []
    for seed in range(60):
        rng = random.Random(seed)
        own = sampler.sample(rng)
        drawn.append((own, replace_target_voice(own, pool, SETTINGS, rng)))
    return drawn


def test_the_frames_stay_and_the_voice_is_that_of_another_speaker(
    pool: ClipPool, pairs: list[tuple[SceneSpec, SceneSpec]]
) -> None:
    composer = Composer(pool, SETTINGS, (16, 24), 1)
    for own, other in pairs[:6]:
        person = own.target
        first, second = composer.compose(own), composer.compose(other)
        assert np.array_equal(first.frames, second.frames)
        assert np.array_equal(first.motion, second.motion)
        assert np.array_equal(first.masks, second.masks)
        assert first.speaking.all()
        assert not first.residual.any()
        assert second.speaking.tolist() == [n != person for n in range(len(own.people))]
        assert not second.voices[person].any()
        level = active_rms(first.voices[person]) / active_rms(second.residual)
        gains = np.abs(first.mixture).max(), np.abs(second.mixture).max()
        if max(gains) < 0.9:  # no mixture was scaled down to fit
            assert level == pytest.approx(1, rel=1e-3)
        for n in set(range(len(own.people))) - {person}:
            assert first.voices[n].any()
            assert second.voices[n].any()


def test_the_other_speaker_is_not_in_the_scene(
    pool: ClipPool, pairs: list[tuple[SceneSpec, SceneSpec]]
) -> None:
    def person(clip: str) -> str:
        return pool.clips[pool.index_of[clip]].person

    speakers = set()
    for own, other in pairs:
        (voice,) = other.unseen
        assert person(voice.clip) not in {person(p.clip) for p in own.people}
        assert voice.active == own.people[own.target].active
        assert voice.level_db == own.people[own.target].level_db
        speakers.add(person(voice.clip))
    assert len(speakers) == 6


def test_pairs_are_recognized_in_a_list(pairs: list[tuple[SceneSpec, SceneSpec]]) -> None:
    (a, b), (c, d), *_ = pairs
    specs = [
        SceneSpec.from_record(json.loads(json.dumps(spec.to_record()))) for spec in (c, a, b, d, c)
    ]
    target = a.target
    assert paired_scenes(specs) == {1: PairedScene(target, True), 2: PairedScene(target, False)}
    moved = dataclasses.replace(b, seed=b.seed + 1)
    assert paired_scenes([a, moved]) == {}
    assert paired_scenes([]) == {}
    empty = dataclasses.replace(a, people=(), order=(), target=0)
    assert paired_scenes([empty, empty, a, b]).keys() == {2, 3}


def test_it_needs_another_speaker(tmp_path: Path) -> None:
    pool = ClipPool(people_of(tmp_path / "set", 1))
    alone = dataclasses.replace(SETTINGS, people=(1, 0, 0))
    own = SceneSampler(pool, alone).sample(random.Random(0))
    with pytest.raises(UsageError, match="no speaking person beside the 1 of a scene"):
        replace_target_voice(own, pool, alone, random.Random(0))
