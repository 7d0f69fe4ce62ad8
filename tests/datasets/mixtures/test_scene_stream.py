"""Streams of scenes: each once, reproducible in any worker, exact resume, broken clips."""

import dataclasses
import json
import pickle
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.datasets.format import sample
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.mixtures.clip_pool import ClipPool
from cavmae.datasets.mixtures.scene_spec import ComposeSettings, Occluder, SceneSpec
from cavmae.datasets.mixtures.scene_stream import (
    ComposedStream,
    FixedSceneStream,
    clip_keys,
    collate,
    read_list,
    write_list,
)
from cavmae.datasets.stream.base import Stream
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.stream.shard_reader import Access
from cavmae.datasets.stream.weighted_stream import training_stream
from tests.datasets.clips import clip, data_set_of

SETTINGS = ComposeSettings(height=32, width=48, seconds=0.08)
CLIPS = 10


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    samples = [clip(n, speaker=f"s{n // 2}", person=True) for n in range(CLIPS)]
    return data_set_of(tmp_path_factory.mktemp("scenes") / "set", samples)


def stream(manifest: Manifest, **options: object) -> ComposedStream:
    return ComposedStream(manifest, SETTINGS, (16, 24), 2, 2, **options)


def some(loader: Loader, count: int) -> list[dict[str, object]]:
    batches: Iterator[dict[str, object]] = iter(loader)
    return [next(batches) for _ in range(count)]


def same(first: dict[str, object], second: dict[str, object]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[k]) if isinstance(value, torch.Tensor) else value == second[k]
        for k, value in first.items()
    )


def parts(batch: dict[str, object], row: int) -> list[torch.Tensor]:
    """Tensors of a scene, without the people that are only padding."""
    people = int(batch["present"][row].sum())
    whole = [batch[name][row] for name in ("mixture", "frames", "motion", "residual")]
    return whole + [batch[name][row, :people] for name in ("voices", "masks")]


def test_every_scene_of_an_epoch_once_over_all_readers(clips: Manifest) -> None:
    for world, workers in ((1, 1), (2, 1), (1, 2), (2, 2)):
        keys = []
        for rank in range(world):
            scenes = stream(clips, rank=rank, world_size=world)
            for worker in range(workers):
                for batch in scenes.worker_batches(worker, workers):
                    assert not isinstance(batch, CavmaeError)
                    if batch.positions[0].epoch > 1 or len(keys) > 200:
                        break
                    keys += batch.batch["key"]
        first = [key for key in keys if key.startswith("0-")]
        assert sorted(first, key=lambda k: int(k[2:])) == [f"0-{n}" for n in range(CLIPS)]


def test_a_scene_does_not_depend_on_the_worker(clips: Manifest) -> None:
    """In the main process, in a worker, in the second of two workers: the same frames and audio."""
    alone = {}
    for batch in some(Loader(stream(clips)), 5):
        alone |= {key: parts(batch, n) for n, key in enumerate(batch["key"])}
    for workers in (1, 2):
        for batch in some(Loader(stream(clips), workers), 4):
            for n, key in enumerate(batch["key"]):
                if key in alone:
                    for expected, composed in zip(alone[key], parts(batch, n), strict=True):
                        assert torch.equal(expected, composed)


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_is_exact(clips: Manifest, workers: int) -> None:
    whole = some(Loader(stream(clips), workers), 9)
    loader = Loader(stream(clips), workers)
    first_batches = iter(loader)
    for _ in range(4):
        next(first_batches)
    state = json.loads(json.dumps(loader.state_dict()))
    later = Loader(stream(clips), workers)
    later.load_state_dict(state)
    for expected, resumed in zip(whole[4:], some(later, 5), strict=True):
        assert same(expected, resumed)


def test_other_readers_compose_the_scenes_that_are_left(clips: Manifest) -> None:
    first = [Loader(stream(clips, rank=rank, world_size=2), 1) for rank in range(2)]
    keys = [key for loader in first for batch in some(loader, 1) for key in batch["key"]]
    states = json.loads(json.dumps([loader.state_dict() for loader in first]))
    alone = stream(clips)
    later = Loader(alone)
    later.load_states(states)
    for batch in later:
        if all(key.startswith("1-") for key in batch["key"]):
            break
        keys += batch["key"]
    rest = [key for key in keys if key.startswith("0-")]
    assert sorted(rest, key=lambda k: int(k[2:])) == [f"0-{n}" for n in range(CLIPS)]


def test_other_settings_are_another_stream(
    clips: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    loader = Loader(stream(clips))
    some(loader, 2)
    other = ComposedStream(clips, dataclasses.replace(SETTINGS, noise_prob=0.9), (16, 24), 2, 2)
    Loader(other).load_state_dict(loader.state_dict())
    assert "compose changed" in caplog.text


def test_padding_of_batches_is_empty(clips: Manifest) -> None:
    for batch in some(Loader(stream(clips)), 6):
        present = batch["present"]
        assert isinstance(present, torch.Tensor)
        for name in ("voices", "masks", "speaking", "masked"):
            assert not batch[name][~present].any()
        total = batch["voices"].sum(1) + batch["residual"]
        torch.testing.assert_close(total, batch["mixture"], atol=1e-5, rtol=0)
        assert (batch["target"] < present.sum(1)).all()


def test_a_reference_is_the_same_person_saying_something_else(clips: Manifest) -> None:
    scenes = stream(clips)
    references = 0
    for number in range(40):
        spec = scenes.spec(0, number)
        if spec.reference is None:
            continue
        references += 1
        person = spec.people[spec.target]
        pool = scenes.pool
        assert (
            pool.clips[pool.index_of[spec.reference.clip]].person
            == pool.clips[pool.index_of[person.clip]].person
        )
        assert spec.reference.clip != person.clip
    assert references > 30


def test_a_list_gives_each_scene_once_and_always_the_same(clips: Manifest, tmp_path: Path) -> None:
    specs = [stream(clips).spec(7, n) for n in range(7)]
    path = tmp_path / "list.jsonl"
    write_list(path, SETTINGS, specs)
    settings, read = read_list(path)
    assert settings == SETTINGS
    assert read == specs
    whole = list(Loader(FixedSceneStream(clips, settings, read, (16, 24), 2, 2)))
    assert [key for batch in whole for key in batch["key"]] == [f"{n:05d}" for n in range(7)]
    keys = []
    for rank in range(2):
        part = FixedSceneStream(clips, settings, read, (16, 24), 2, 2, rank=rank, world_size=2)
        keys += [key for batch in Loader(part, 2) for key in batch["key"]]
    assert sorted(keys) == [f"{n:05d}" for n in range(7)]


def test_lists_that_do_not_fit(clips: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    with pytest.raises(CavmaeError, match="no list of scenes"):
        read_list(path)
    path.write_text('{"schema": 2, "compose": {"height": 32}}\n{"kind"\n')
    with pytest.raises(CavmaeError, match="create it again"):
        read_list(path)
    path.write_text('{"schema": 99, "compose": {}}\n')
    with pytest.raises(CavmaeError, match="version 99"):
        read_list(path)
    spec = stream(clips).spec(0, 0)
    other = data_set_of(tmp_path / "other", [clip(n + 50, speaker=f"s{n}") for n in range(6)])
    table = Occluder(((0, 9), (9, 9), (9, 20)), "k99", (0.0, 0.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    covered = dataclasses.replace(spec, occluders=(table,))
    with pytest.raises(UsageError, match="names the clip k99, which"):
        FixedSceneStream(clips, SETTINGS, [covered], (16, 24), 2, 2)
    with pytest.raises(UsageError, match="does not have: use the data set"):
        FixedSceneStream(other, SETTINGS, [spec], (16, 24), 2, 2)


def test_broken_clips_are_left_out_counted_and_named(clips: Manifest, tmp_path: Path) -> None:
    samples = [clip(n, speaker=f"s{n}", person=True) for n in range(6)]
    samples[0][1]["flac"] = b"fLaC" + b"\0" * 50
    broken = data_set_of(tmp_path / "set", samples)
    named = tmp_path / "broken.jsonl"
    access = Access(max_broken=1.0, quarantine=str(named))
    loader = Loader(stream(broken, access=access))
    some(loader, 12)
    lines = [json.loads(line) for line in named.read_text().splitlines()]
    assert sum(loader.broken.values()) > 0
    assert {line["reason"] for line in lines} == set(loader.broken)
    assert all("k0" in line["detail"] for line in lines)
    strict = Loader(stream(broken, access=Access(max_broken=0.0)))
    with pytest.raises(CavmaeError, match="Too many broken samples"):
        some(strict, 40)


def test_masks_of_another_size_are_broken_clips(tmp_path: Path) -> None:
    """Also where the sampler reads the mask to locate a person, before anything is composed."""
    samples = [clip(n, speaker=f"s{n}", person=True) for n in range(CLIPS)]
    for frame in range(3):
        small = np.ones((16, 24), dtype=np.uint8)
        samples[4][1][sample.mask_member(frame)] = sample.encode_mask(small)
    manifest = data_set_of(tmp_path / "set", samples)
    quarantined = tmp_path / "broken.jsonl"
    access = Access(max_broken=0.9, quarantine=str(quarantined))
    some(Loader(stream(manifest, access=access)), 20)
    records = [json.loads(line) for line in quarantined.read_text().splitlines()]
    assert records
    assert all("k4" in record["detail"] for record in records), records
    with pytest.raises(CavmaeError, match="broken"):
        some(Loader(stream(manifest, access=Access(max_broken=0.0))), 20)


def test_fewer_scenes_than_readers(clips: Manifest) -> None:
    with pytest.raises(UsageError, match="use fewer workers"):
        Loader(stream(clips, world_size=4), workers=3)


def test_a_part_of_the_clips(clips: Manifest) -> None:
    small, larger = stream(clips, clips=5, seed=3), stream(clips, clips=8, seed=3)
    assert small.samples == 5
    assert {c.key for c in small.pool.clips} <= {c.key for c in larger.pool.clips}
    assert len(small.pool.people()) == 5  # as many people as can be
    assert clip_keys(small.spec(0, 0)) <= set(small.pool.index_of)
    with pytest.raises(UsageError, match="not 11"):
        stream(clips, clips=11)
    with pytest.raises(UsageError, match="add people"):
        stream(clips, clips=2)


def test_backgrounds_are_behind_people_and_nothing_else(tmp_path: Path) -> None:
    people = [clip(n, speaker=f"s{n // 2}", person=True) for n in range(CLIPS)]
    behind = [
        clip(20, speaker="x", labels=("background", "silent"), masks=False),
        clip(21, speaker="y", labels=("background",), masks=False),
    ]
    del behind[1][1]["flac"]  # a background needs no sound
    manifest = data_set_of(tmp_path / "set", people + behind)
    settings = dataclasses.replace(
        SETTINGS, own_background=0.0, pasted=1.0, split_screen=0.0, silent_prob=0.5
    )
    scenes = ComposedStream(manifest, settings, (16, 24), 2, 2, clips=8)
    assert scenes.samples == 8
    specs = [scenes.spec(0, n) for n in range(40)]
    assert {spec.background for spec in specs} == {"k20", "k21"}
    for spec in specs:
        assert not {"k20", "k21"} & (clip_keys(spec) - {spec.background})


@pytest.mark.parametrize("shape", [(32, 48), (48, 48), (20, 64)])
@pytest.mark.parametrize("room", [None, (16, 48), (32, 32)])
def test_a_background_plays_and_fills_the_scene(
    tmp_path: Path, shape: tuple[int, int], room: tuple[int, int] | None
) -> None:
    """Its frames follow one another from its start on, in colour and in grey."""
    people = [clip(n, speaker=f"s{n}", person=True, frames=5) for n in range(4)]
    key, members = clip(20, frames=9, masks=False, labels=("background",), frame_size=shape)
    for frame in range(9):
        pixels = np.full((*shape, 3), 40 + 20 * frame, np.uint8)
        members[sample.frame_member(frame)] = sample.encode_frame(pixels, 90)
    manifest = data_set_of(tmp_path / "set", [*people, (key, members)])
    settings = dataclasses.replace(SETTINGS, seconds=0.16, without_people_prob=1.0)
    scenes = ComposedStream(manifest, settings, (16, 24), 2, 2)
    specs = [scenes.spec(0, n) for n in range(4)]
    starts = {spec.background_start for spec in specs}
    assert len(starts) == 4
    assert all(start is not None and 0 <= start <= 0.2 for start in starts)
    plain = {"light": (1.0, 1.0, 1.0), "tint": (1.0, 1.0, 1.0), "quality": 95, "room": room}
    playing = dataclasses.replace(specs[0], **plain, background_start=0.12)
    composed = scenes.composer.compositor.compose_frames(playing)
    height, width = room or (32, 48)
    top, left = (32 - height) // 2, (48 - width) // 2
    inner = composed.frames[:, top : top + height, left : left + width].astype(int)
    for frame, time in zip(inner, scenes.composer.compositor.keys, strict=True):
        assert np.abs(frame - (40 + 20 * (3 + time))).max() <= 6  # no black at the borders
    grey = composed.motion[:, top // 2 : (top + height) // 2, left // 2 : (left + width) // 2]
    expected = 40 + 20 * (3 + np.arange(4))
    assert np.abs(grey.astype(int) - expected[:, None, None]).max() <= 6
    still = dataclasses.replace(playing, background_start=None)
    motion = scenes.composer.compositor.compose_frames(still).motion
    assert (motion == motion[:1]).all()


def test_a_background_with_a_person_stands_still_without_them(tmp_path: Path) -> None:
    people = [clip(n, speaker=f"s{n}", person=True) for n in range(4)]
    values = {"1": "person 1 body", "2": "person 1 face"}
    behind = clip(20, person=True, labels=("background",), mask_values=values)
    manifest = data_set_of(tmp_path / "set", [*people, behind])
    settings = dataclasses.replace(SETTINGS, without_people_prob=1.0)
    spec = ComposedStream(manifest, settings, (16, 24), 2, 2).spec(0, 0)
    assert (spec.background, spec.background_start) == ("k20", None)


@pytest.mark.parametrize("option", ["without_people_prob", "occluder_prob"])
def test_scenes_need_a_background(tmp_path: Path, option: str) -> None:
    people = [clip(n, speaker=f"s{n}", masks=False) for n in range(5)]
    manifest = data_set_of(tmp_path / "set", people)
    settings = dataclasses.replace(SETTINGS, **{option: 0.1})
    with pytest.raises(UsageError, match=f"compose.{option} 0.1: .* has no background"):
        ComposedStream(manifest, settings, (16, 24), 2, 2)


def test_a_person_of_a_background_is_on_no_table(tmp_path: Path) -> None:
    """One whose frames do not all have masks cannot be removed."""
    people = [clip(n, speaker=f"s{n}", person=True) for n in range(5)]
    values = {"1": "person 1 body", "2": "person 1 face"}
    behind = clip(20, person=True, masks=False, labels=("background",), mask_values=values)
    manifest = data_set_of(tmp_path / "set", [*people, behind])
    settings = dataclasses.replace(SETTINGS, occluder_prob=0.1)
    with pytest.raises(UsageError, match=r"occluder_prob 0.1: .* whose people can be removed"):
        ComposedStream(manifest, settings, (16, 24), 2, 2)


def test_backgrounds_with_noise_are_not_left_out(tmp_path: Path) -> None:
    people = [clip(n, speaker=f"s{n}", person=True, labels=("noise",)[n:]) for n in range(4)]
    behind = clip(20, speaker="x", labels=("background", "noise", "bad"), masks=False)
    crowd = clip(21, speaker="y", labels=("background", "people-2"), masks=False)
    manifest = data_set_of(tmp_path / "set", [*people, behind, crowd])
    assert {c.key for c in ClipPool(manifest).clips} == {"k1", "k2", "k3", "k20"}
    kept = {c.key for c in ClipPool(manifest, exclude=("bad",)).clips}
    assert kept == {"k0", "k1", "k2", "k3", "k21"}


@pytest.mark.parametrize("has_backgrounds", [False, True])
def test_scenes_without_people(tmp_path: Path, has_backgrounds: bool) -> None:
    """They are as many as asked for, are heard, and go into batches with others and alone."""
    samples = [clip(n, speaker=f"s{n}", person=True) for n in range(5)]
    if has_backgrounds:
        samples.append(clip(20, labels=("background",), masks=False))
    manifest = data_set_of(tmp_path / "set", samples)
    settings = dataclasses.replace(SETTINGS, without_people_prob=0.4, silent_prob=0.3)
    scenes = ComposedStream(manifest, settings, (16, 24), 2, 2)
    specs = [scenes.spec(0, n) for n in range(200)]
    empty = [spec for spec in specs if not spec.people]
    assert len(empty) == pytest.approx(80, abs=22)
    for spec in empty:
        assert spec.background is not None
        assert bool(spec.unseen) or spec.noise is not None
        assert SceneSpec.from_record(json.loads(json.dumps(spec.to_record()))) == spec
    assert {bool(spec.unseen) for spec in empty} == {False, True}
    both = [next(spec for spec in specs if spec.people), empty[0]]
    composed = [{"key": "k", "scene": scenes.composer.compose(spec)} for spec in both]
    batch, alone = collate(composed), collate(composed[1:])
    assert batch["present"].any(1).tolist() == [True, False]
    assert not batch["masks"][1].any()
    assert not batch["voices"][1].any()
    assert batch["mixture"][1].abs().max() > 0
    assert torch.equal(batch["residual"][1], batch["mixture"][1])
    assert alone["present"].tolist() == [[False]]
    assert torch.equal(alone["frames"][0], batch["frames"][1])
    # Without the option nothing is drawn for it: the number of people is the first draw.
    plain = dataclasses.replace(settings, without_people_prob=0.0)
    before = ComposedStream(manifest, plain, (16, 24), 2, 2).sampler
    for seed in range(50):
        count = random.Random(seed).choices((1, 2, 3), settings.people)[0]
        assert len(before.sample(random.Random(seed)).people) == count


def test_a_pool_goes_to_another_process(clips: Manifest) -> None:
    pool = ClipPool(clips)
    before = pool.waveform(pool.clips[0], 0.0, 500)
    other: ClipPool = pickle.loads(pickle.dumps(pool))
    assert (other.waveform(other.clips[0], 0.0, 500) == before).all()
    pool.close()
    other.close()


def test_scenes_of_several_data_sets(clips: Manifest, tmp_path: Path) -> None:
    """Each scene is that of its own data set alone, also after a resume with other readers."""
    samples = [clip(50 + n, speaker=f"t{n}", person=True) for n in range(5)]
    sets = [clips, data_set_of(tmp_path / "other", samples)]
    alone: dict[str, ComposedStream] = {}

    def mixture(**options: Any) -> Stream:
        def build(manifest: Manifest, seed: int, _: float) -> ComposedStream:
            own = ComposedStream(manifest, SETTINGS, (16, 24), 2, 1, seed=seed, **options)
            return alone.setdefault(manifest.folder, own) if not options else own

        return training_stream(sets, (2.0, 1.0), 0, build)

    first = Loader(mixture())
    seen = some(first, 13)
    later = [Loader(mixture(rank=rank, world_size=2), rank) for rank in range(2)]
    for loader in later:
        loader.load_states(json.loads(json.dumps([first.state_dict()])))
        seen += some(loader, 10)
    names = [batch["key"][0].split(": ") for batch in seen]
    counts = Counter(folder for folder, _ in names)
    assert abs(counts[clips.folder] - 22) <= 2
    for manifest, size in zip(sets, (CLIPS, 5), strict=True):
        keys = [key for folder, key in names if folder == manifest.folder]
        assert len(set(keys)) == len(keys)
        assert {f"0-{n}" for n in range(size)} <= set(keys)
    for (folder, key), batch in zip(names, seen, strict=True):
        epoch, number = map(int, key.split("-"))
        spec = alone[folder].spec(epoch, number)
        expected = torch.from_numpy(alone[folder].composer.compose(spec).mixture)
        assert torch.equal(batch["mixture"][0], expected)
