"""Footage: sampled recordings have what their kind says; frames, masks and voices are in step."""

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.datasets.footage.composer import SAMPLES, FootageComposer
from cavmae.datasets.footage.sampler import FootageSampler
from cavmae.datasets.footage.spec import (
    KINDS,
    FootageKind,
    FootageSettings,
    FootageShot,
    FootageSpec,
    HandheldCamera,
    PlacedTalker,
    Talker,
    read_footage_list,
    write_footage_list,
)
from cavmae.datasets.footage.truth import FootageTruth
from cavmae.datasets.mixtures.clip_pool import ClipPool
from cavmae.datasets.stream.rates import VIDEO_RATE
from tests.datasets.clips import clip, data_set_of
from tests.datasets.footage.clips import SHORT, talkers_of


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> ClipPool:
    return ClipPool(talkers_of(tmp_path_factory.mktemp("pool") / "set"))


@pytest.fixture(scope="module")
def drawn(pool: ClipPool) -> dict[FootageKind, list[FootageSpec]]:
    sampler = FootageSampler(pool, SHORT)
    return {
        kind: [sampler.sample(f"{kind}-{n}", kind, random.Random(n)) for n in range(40)]
        for kind in KINDS
    }


def frames_of(composer: FootageComposer, spec: FootageSpec) -> tuple[np.ndarray, np.ndarray]:
    blocks = list(composer.compose_frames(spec))
    return np.concatenate([b.frames for b in blocks]), np.concatenate([b.people for b in blocks])


def test_a_list_holds_whole_specs(
    pool: ClipPool, drawn: dict[FootageKind, list[FootageSpec]], tmp_path: Path
) -> None:
    specs = [spec for of_kind in drawn.values() for spec in of_kind]
    write_footage_list(tmp_path / "list.jsonl", SHORT, specs)
    assert read_footage_list(tmp_path / "list.jsonl") == (SHORT, specs)
    again = FootageSampler(pool, SHORT)
    for kind in KINDS:
        assert again.sample(f"{kind}-7", kind, random.Random(7)) == drawn[kind][7]


def test_recordings_of_each_kind(drawn: dict[FootageKind, list[FootageSpec]]) -> None:
    for kind, specs in drawn.items():
        for spec in specs:
            assert SHORT.min_seconds <= spec.frames / VIDEO_RATE + 0.02
            assert spec.frames / VIDEO_RATE <= SHORT.max_seconds + 0.02
            clips = [talker.clip for talker in spec.talkers]
            assert len(set(clips)) == len(clips)
            seen = {a.talker for shot in spec.shots for a in shot.appearances}
            assert seen == set(range(len(clips)))
            assert spec.size == (SHORT.size[::-1] if kind == "portrait" else SHORT.size)
            assert (spec.camera is not None) == (kind == "portrait")
    assert all(len(s.shots) == 1 for kind in ("plain", "return") for s in drawn[kind])
    for spec in drawn["return"]:
        (first, last), (again, end) = spec.talkers[1].active
        assert first == 0
        assert end == spec.frames / VIDEO_RATE
        assert SHORT.min_absence_seconds <= again - last <= SHORT.max_absence_seconds
    for spec in drawn["cut"]:
        assert len(spec.shots) >= 2
        assert all(shot.frames / VIDEO_RATE >= 0.6 for shot in spec.shots)
        assert all(1 <= len(shot.appearances) <= 2 for shot in spec.shots)
    assert any(len(t.active) > 1 for spec in drawn["cut"] for t in spec.talkers)  # they come back
    for spec in drawn["inset"]:
        assert len({shot.appearances[-1] for shot in spec.shots}) == 1
        assert all(shot.appearances[-1].talker == 0 for shot in spec.shots)
    assert {len(spec.talkers) for spec in drawn["portrait"]} == {1, 2}
    assert {bool(spec.camera and spec.camera.pan) for spec in drawn["portrait"]} == {True, False}


def test_people_are_visible_where_they_may_be_audible(
    pool: ClipPool, drawn: dict[FootageKind, list[FootageSpec]]
) -> None:
    """Outside of their spans they have no pixel; within, few frames hide them."""
    composer = FootageComposer(pool)
    hidden = []
    for specs in drawn.values():
        for spec in specs[:3]:
            _, people = frames_of(composer, spec)
            assert people.shape == (spec.frames, *spec.size)
            for number, talker in enumerate(spec.talkers, 1):
                visible = (people == number).any((1, 2))
                time = np.arange(spec.frames) / VIDEO_RATE
                inside = np.zeros(spec.frames, dtype=bool)
                for first, last in talker.active:
                    inside |= (time >= first - 1e-6) & (time < last - 1e-6)
                assert not (visible & ~inside).any()
                hidden.append((inside & ~visible).sum() / max(1, inside.sum()))
    assert np.mean(hidden) < 0.1


def whole(talker: int, left: int = 0, top: int = 0, **changes: object) -> PlacedTalker:
    values = {"scale": 1.0, "flip": False, "window": None, "cutout": False} | changes
    return PlacedTalker(talker, path=((0.0, left, top),), **values)  # type: ignore[arg-type]


def spec_of(
    *shots: FootageShot, people: int = 2, camera: HandheldCamera | None = None
) -> FootageSpec:
    talkers = tuple(Talker(f"k{n}", 0.12 * n, 0.0, ((0.0, 9.0),)) for n in range(people))
    return FootageSpec("a", "plain", (32, 48), talkers, shots, camera, 0.0)


def test_frames_and_masks_are_those_of_a_naive_loop(pool: ClipPool) -> None:
    """A person behind an opaque picture, and one cut out; clips begin anew at their end."""
    under, inset = whole(0), whole(1, left=20, top=4)
    shot = FootageShot(30, None, (under, inset), (1.0, 1.0))
    pasted = FootageShot(5, "k3", (whole(0), whole(1, 3, 2, cutout=True)), (1.2, 0.9))
    frames, people = frames_of(FootageComposer(pool), spec_of(shot, pasted))
    for number in range(35):
        image, owner = np.zeros((32, 48, 3)), np.zeros((32, 48), dtype=int)
        appearances = (shot if number < 30 else pasted).appearances
        for appearance in appearances:
            talker = appearance.talker
            index = (3 * talker + number) % 20
            pixels = pool.frames(pool.clips[talker], [index], grey=False)[0]
            mask = pool.masks(pool.clips[talker], [index])[0] > 0
            ((_, left, top),) = appearance.path
            for y in range(top, 32):
                for x in range(left, 48):
                    if mask[y - top, x - left] or not appearance.cutout:
                        image[y, x] = pixels[y - top, x - left]
                        owner[y, x] = talker + 1 if mask[y - top, x - left] else 0
        np.testing.assert_array_equal(people[number], owner)
        brightness, contrast = (1.0, 1.0) if number < 30 else (1.2, 0.9)
        lit = brightness * (contrast * image + (1 - contrast) * 127.5)
        assert np.abs(frames[number] - lit.clip(0, 255)).max() <= 1


def test_a_camera_moves_everything(pool: ClipPool) -> None:
    still = FootageShot(40, "k3", (whole(0, cutout=True), whole(1, 10, 3, cutout=True)), (1.0, 1.0))
    composer = FootageComposer(pool)
    _, people = frames_of(composer, spec_of(still))
    _, moved = frames_of(composer, spec_of(still, camera=HandheldCamera(8.0, 0.0, (1.0, 1.0))))
    assert (moved[0][:, 4:] == people[0][:, :-4]).all()  # to the left of the middle
    assert (moved[-1][:, :-4] == people[-1][:, 4:]).all()
    shaken, masks = frames_of(composer, spec_of(still, camera=HandheldCamera(0.0, 3.0, (2.0, 1.0))))
    assert len({mask.tobytes() for mask in masks}) > len({mask.tobytes() for mask in people})
    assert (shaken.max(3) > 40).all()  # no black edge of the background


def test_voices_add_up_and_are_silent_outside_of_their_spans(pool: ClipPool) -> None:
    shot = FootageShot(50, None, (whole(0),), (1.0, 1.0))
    spec = spec_of(shot, people=3)
    silent = dataclasses.replace(spec.talkers[2], level_db=None)
    part = dataclasses.replace(spec.talkers[1], active=((0.2, 0.8), (1.2, 2.0)))
    mixed = FootageComposer(pool).compose_audio(
        dataclasses.replace(spec, talkers=(spec.talkers[0], part, silent))
    )
    assert mixed.mixture.shape == (50 * SAMPLES,)
    np.testing.assert_allclose(mixed.parts.sum(0), mixed.mixture, atol=1e-6)
    first, second, none = mixed.parts
    assert not none.any()
    # The clip of 20 frames begins anew, in step with its frames.
    np.testing.assert_allclose(first[: 20 * SAMPLES], first[20 * SAMPLES : 40 * SAMPLES], atol=1e-6)
    middle = slice(SAMPLES, -SAMPLES)  # without fades
    played = second[5 * SAMPLES : 15 * SAMPLES]
    wanted = pool.waveform(pool.clips[1], 0.12 + 0.2, 10 * SAMPLES)
    gain = played[middle] @ wanted[middle] / np.square(wanted[middle]).sum()
    np.testing.assert_allclose(played[middle], gain * wanted[middle], atol=1e-5)
    time = np.arange(len(second)) / 16_000
    inside = ((time >= 0.2) & (time < 0.8)) | (time >= 1.2)
    assert not second[~inside].any()
    assert np.abs(second[inside]).mean() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "--count"),
        ({"kinds": ()}, "--kinds"),
        ({"height": 35}, "--height"),
        ({"silent_prob": 1.5}, "--silent-prob"),
        ({"min_shot_seconds": 6.0}, "--min-shot-seconds"),
        ({"min_seconds": 8.0}, "--max-absence-seconds"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FootageSettings(**options)  # type: ignore[arg-type]


def test_too_few_people_are_named(tmp_path: Path) -> None:
    few = ClipPool(data_set_of(tmp_path / "few", [clip(n, person=True) for n in range(4)]))
    with pytest.raises(UsageError, match="2 speaking people"):
        FootageSampler(few, SHORT)


def test_damaged_lists_and_truths(
    drawn: dict[FootageKind, list[FootageSpec]], tmp_path: Path
) -> None:
    path = tmp_path / "list.jsonl"
    with pytest.raises(CavmaeError, match="no list of recordings"):
        read_footage_list(path)
    outside = dataclasses.replace(drawn["cut"][0], name="../a")
    for specs in ([outside], [drawn["cut"][0]] * 2, []):
        write_footage_list(path, SHORT, specs)
        with pytest.raises(CavmaeError, match="no readable list"):
            read_footage_list(path)
    truth = FootageTruth(np.ones((2, 4, 4), np.uint8), np.ones((1, 9), np.float32))
    truth.save(tmp_path / "a.npz")
    assert (FootageTruth.load(tmp_path / "a.npz").people == truth.people).all()
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(CavmaeError, match="damaged"):
        FootageTruth.load(tmp_path / "a.npz")
    FootageTruth(truth.people * np.uint8(2), truth.voices).save(tmp_path / "b.npz")
    with pytest.raises(CavmaeError, match="a person 2 of 1"):
        FootageTruth.load(tmp_path / "b.npz")
