"""Sampling of scene specs: frequencies, placement, and specs written to a file."""

import dataclasses
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cavmae.common.errors import UsageError
from cavmae.datasets.format import sample
from cavmae.datasets.mixtures.clip_pool import ClipPool
from cavmae.datasets.mixtures.occluders import FREE_FRACTION
from cavmae.datasets.mixtures.placement import MAX_OCCLUSION, PeoplePlacer, max_occlusion
from cavmae.datasets.mixtures.sampler import SceneSampler
from cavmae.datasets.mixtures.scene_spec import ComposeSettings, SceneSpec
from cavmae.datasets.mixtures.scene_stream import clip_keys
from cavmae.datasets.stream.rates import VIDEO_RATE
from tests.datasets.clips import clip, data_set_of

SETTINGS = ComposeSettings(height=64, width=96, seconds=0.08)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> ClipPool:
    """Clips of 0.12 s of eight people; of two people there are silent ones, of two no masks."""
    folder = tmp_path_factory.mktemp("pool") / "set"
    samples = [
        clip(
            n, speaker=f"s{n % 8}", person=True, masks=n % 8 > 1,
            labels=("silent",) if n % 8 in (6, 7) else (),
        )
        for n in range(16)
    ]  # fmt: skip
    return ClipPool(data_set_of(folder, samples))


@pytest.fixture(scope="module")
def drawn(pool: ClipPool) -> list[SceneSpec]:
    sampler = SceneSampler(pool, SETTINGS)
    return [sampler.sample(random.Random(n)) for n in range(600)]


def test_the_same_seed_gives_the_same_spec(pool: ClipPool, drawn: list[SceneSpec]) -> None:
    again = SceneSampler(pool, SETTINGS)
    for number in (599, 3, 77):
        assert again.sample(random.Random(number)) == drawn[number]


def test_a_record_holds_a_whole_spec(drawn: list[SceneSpec]) -> None:
    for spec in drawn[:50]:
        assert SceneSpec.from_record(json.loads(json.dumps(spec.to_record()))) == spec


def test_a_person_is_in_a_scene_only_once(pool: ClipPool, drawn: list[SceneSpec]) -> None:
    for spec in drawn:
        voices = [*spec.people, *spec.unseen]
        people = [pool.clips[pool.index_of[voice.clip]].person for voice in voices]
        assert len(set(people)) == len(people)
        assert sorted(spec.order) == list(range(len(spec.people)))


def test_shares_are_those_asked_for(pool: ClipPool, drawn: list[SceneSpec]) -> None:
    count = Counter(len(spec.people) for spec in drawn)
    for number, share in enumerate(SETTINGS.people, start=1):
        assert count[number] / len(drawn) == pytest.approx(share, abs=0.06)
    unrelated = [r for r in drawn if all(p.level_db is None for p in r.people)]
    alone = SETTINGS.people[0] * SETTINGS.silent_prob * (1 - SETTINGS.all_off_screen_prob)
    assert len(unrelated) / len(drawn) == pytest.approx(
        SETTINGS.all_off_screen_prob + alone, abs=0.04
    )
    for spec in unrelated:
        if len(spec.people) > 1:
            assert spec.unseen or spec.noise
    off = SETTINGS.off_screen_prob + SETTINGS.all_off_screen_prob / 2 * (
        1 - SETTINGS.off_screen_prob
    )
    assert sum(bool(r.unseen) for r in drawn) / len(drawn) == pytest.approx(off, abs=0.05)
    assert {r.kind for r in drawn} == {"own_background", "pasted", "split_screen"}


def test_levels_and_times(pool: ClipPool, drawn: list[SceneSpec]) -> None:
    partly = 0
    dubbed: list[bool] = []
    apart: list[float] = []
    for spec in drawn:
        audible = [v for v in (*spec.people, *spec.unseen) if v.level_db is not None]
        levels = [v.level_db for v in audible if v.level_db is not None]
        assert not levels or levels[0] == 0
        assert all(abs(level) <= SETTINGS.snr_db for level in levels)
        apart += levels[1:]
        for voice in (*spec.people, *spec.unseen):
            info = pool.clips[pool.index_of[voice.clip]].info
            assert 0 <= voice.start <= info.duration - SETTINGS.seconds + 1e-6
            assert voice.start * VIDEO_RATE == pytest.approx(round(voice.start * VIDEO_RATE))
            first, last = voice.active
            assert 0 <= first <= last <= SETTINGS.seconds
            partly += 0 < last - first < SETTINGS.seconds
            if voice.level_db is None:
                dubbed.append("silent" not in info.labels and (first, last) != (0.0, 0.0))
    assert partly
    assert np.mean(dubbed) == pytest.approx(SETTINGS.mismatched_lips_prob, abs=0.08)
    # Uniform: as often in the outer half of the range as in the inner.
    outer = sum(abs(level) > SETTINGS.snr_db / 2 for level in apart)
    assert outer / len(apart) == pytest.approx(0.5, abs=0.12)


def test_what_has_no_mask_is_not_cut_out(pool: ClipPool, drawn: list[SceneSpec]) -> None:
    for spec in drawn:
        masked = [pool.clips[pool.index_of[p.clip]].masked for p in spec.people]
        if spec.kind == "pasted":
            assert all(masked)
            assert spec.background is not None
            assert pool.clips[pool.index_of[spec.background]].masked
        if spec.kind == "own_background" and len(masked) > 1:
            assert all(masked)
    assert any(
        r.kind == "split_screen"
        and not all(pool.clips[pool.index_of[p.clip]].masked for p in r.people)
        for r in drawn
    )


def test_people_stand_where_they_are_seen(pool: ClipPool, drawn: list[SceneSpec]) -> None:
    sampler = SceneSampler(pool, SETTINGS)
    hidden = []
    for spec in drawn:
        numbers = [pool.index_of[p.clip] for p in spec.people]
        heads = [sampler._placer.head_box(n, p) for n, p in zip(numbers, spec.people, strict=True)]
        for place, number, (left, top, right, bottom) in zip(
            spec.people, numbers, heads, strict=True
        ):
            height, width = pool.clips[number].info.frame_size
            high, wide = spec.room or (SETTINGS.height, SETTINGS.width)
            assert right > 0 and left < wide
            assert bottom > 0 and top < high
            if spec.kind == "split_screen":
                assert place.window is not None
                assert place.left <= place.window[0]
                assert place.left + place.scale * width >= place.window[1] - 1
            if spec.kind == "pasted":
                assert place.top + place.scale * height >= high - 1
        if spec.kind != "split_screen":
            hidden.append(max_occlusion([heads[n] for n in spec.order]))
    assert sum(share <= MAX_OCCLUSION for share in hidden) / len(hidden) > 0.9


def test_sides_by_side_cover_the_scene(drawn: list[SceneSpec]) -> None:
    for spec in drawn:
        if spec.kind == "split_screen":
            windows = [p.window for p in spec.people]
            covered = [x for window in windows if window for x in range(*window)]
            wide = spec.room[1] if spec.room else SETTINGS.width
            assert sorted(covered) == list(range(wide))


def test_insets_lie_in_corners_of_their_own(pool: ClipPool) -> None:
    settings = dataclasses.replace(
        SETTINGS, own_background=0, pasted=0, split_screen=0, inset=1, people=(1, 1, 1)
    )
    sampler = SceneSampler(pool, settings)
    hidden, filled = [], Counter[bool]()
    for number in range(300):
        spec = sampler.sample(random.Random(number))
        high, wide = spec.room or (settings.height, settings.width)
        covered = np.zeros((high, wide), dtype=int)
        for person in spec.people:
            if person.rows is not None and person.window is not None:
                rows, columns = slice(*person.rows), slice(*person.window)
                assert covered[rows, columns].size == np.ptp(person.rows) * np.ptp(person.window)
                covered[rows, columns] += 1
                height, width = pool.clips[pool.index_of[person.clip]].info.frame_size
                assert person.left <= columns.start
                assert person.left + person.scale * width >= columns.stop - 1
                assert person.top <= rows.start
                assert person.top + person.scale * height >= rows.stop - 1
        assert covered.max() == 1
        behind = spec.people[spec.order[0]]
        fills = behind.rows is None
        assert (spec.background is None) == fills
        assert all(person.rows is not None for person in spec.people if person is not behind)
        if len(spec.people) > 1:
            filled[fills] += 1
        if fills:
            box = sampler._placer.head_box(pool.index_of[behind.clip], behind)
            left, top, right, bottom = (max(0, round(x)) for x in box)
            hidden.append(covered[top:bottom, left:right].mean())
    assert filled[True] / filled.total() == pytest.approx(0.6, abs=0.1)
    assert np.mean(np.array(hidden) <= MAX_OCCLUSION + 0.05) > 0.8


@pytest.fixture(scope="module")
def pool_of_masks(tmp_path_factory: pytest.TempPathFactory) -> ClipPool:
    """People whose masks end at the clip's lower edge or above it, and a background with one."""
    folder = tmp_path_factory.mktemp("masks") / "set"
    samples = [clip(n, speaker=f"s{n}", person=True) for n in range(8)]
    for _, members in samples[4:]:
        for frame in range(3):
            mask = np.zeros((32, 48), dtype=np.uint8)
            mask[8:26, 10:30] = 1
            members[sample.mask_member(frame)] = sample.encode_mask(mask)
    values = {"1": "person 1 body", "2": "person 1 face"}
    crowd = clip(20, person=True, masks=False, labels=("background",), mask_values=values)
    empty = clip(21, masks=False, labels=("background",))
    return ClipPool(data_set_of(folder, [*samples, crowd, empty]))


TABLES = dataclasses.replace(
    SETTINGS, height=192, width=288, occluder_prob=0.5, pasted=1.6, people=(1.0, 1.0, 0.0),
    max_scale=0.8, without_people_prob=0.1,
)  # fmt: skip


def test_tables_leave_heads_free_and_hide_where_people_end(pool_of_masks: ClipPool) -> None:
    pool = pool_of_masks
    sampler, placer = SceneSampler(pool, TABLES), PeoplePlacer(pool, 1.0, 1.0)
    without = SceneSampler(pool, dataclasses.replace(TABLES, occluder_prob=0.0))
    counts: set[int] = set()
    lifted: Counter[str] = Counter()
    for seed in range(800):
        spec, plain = (s.sample(random.Random(seed)) for s in (sampler, without))
        if not spec.occluders:
            continue
        counts.add(len(spec.people))
        assert SceneSpec.from_record(json.loads(json.dumps(spec.to_record()))) == spec
        # Of the other background not all frames have masks: its person could be on a table.
        assert {occluder.surface for occluder in spec.occluders} == {"k21"}
        assert {occluder.surface for occluder in spec.occluders} <= clip_keys(spec)
        height, width = spec.room or (TABLES.height, TABLES.width)
        hidden = np.zeros((height, width), dtype=bool)
        for occluder in spec.occluders:
            image = Image.new("L", (width, height))
            ImageDraw.Draw(image).polygon(occluder.outline, fill=1)
            hidden |= np.array(image) > 0
        for person in spec.people:
            number = pool.index_of[person.clip]
            left, top, right, bottom = placer.head_box(number, person, FREE_FRACTION)
            rows = slice(max(0, round(top)), max(0, round(bottom) - 2))  # outlines are rounded
            columns = slice(max(0, round(left) + 1), max(0, round(right) - 1))
            assert not hidden[rows, columns].any()
            end = round(placer.head_box(number, person, 1.0)[3])
            before = plain.people[spec.people.index(person)]
            if person.top < before.top and end <= height:
                lifted[person.clip] += 1
                assert columns.stop > columns.start
                assert hidden[end - 3 : end, columns].all()
    assert min(lifted[f"k{n}"] for n in range(8)) > 0, lifted
    assert lifted.total() > 40
    assert counts == {0, 1, 2}


def test_without_occluders_all_else_is_the_same(pool_of_masks: ClipPool) -> None:
    """But how high people are in scenes with a table, of kind ``pasted`` alone."""
    with_tables = SceneSampler(pool_of_masks, TABLES)
    without = SceneSampler(pool_of_masks, dataclasses.replace(TABLES, occluder_prob=0.0))
    counts: Counter[str] = Counter()
    for number in range(400):
        spec, plain = (s.sample(random.Random(number)) for s in (with_tables, without))
        assert not plain.occluders
        counts[spec.kind] += bool(spec.occluders)
        counts["all"] += spec.kind in ("own_background", "pasted")
        higher = [
            dataclasses.replace(person, top=before.top)
            for person, before in zip(spec.people, plain.people, strict=True)
        ]
        assert dataclasses.replace(spec, people=tuple(higher), occluders=()) == plain
        if spec.kind != "pasted" or not spec.occluders:
            assert spec.people == plain.people
        assert all(a.top <= b.top for a, b in zip(spec.people, plain.people, strict=True))
    assert counts["split_screen"] == 0
    assert counts["own_background"] > 5
    assert 0.25 < (counts["pasted"] + counts["own_background"]) / counts["all"] <= 0.55


def test_surfaces_are_of_other_clips(pool: ClipPool) -> None:
    """Without clips labelled as backgrounds they are those of people who are not in the scene."""
    sampler = SceneSampler(pool, dataclasses.replace(SETTINGS, occluder_prob=1.0))
    surfaces = set()
    for number in range(300):
        spec = sampler.sample(random.Random(number))
        used = {spec.background, *(person.clip for person in spec.people)}
        assert not used & {occluder.surface for occluder in spec.occluders}
        surfaces |= {occluder.surface for occluder in spec.occluders}
    assert len(surfaces) > 6
    assert all(pool.clips[pool.index_of[key]].masked for key in surfaces)


def table_record(**changes: object) -> dict:  # type: ignore[type-arg]
    table = {
        "outline": [[0, 5], [9, 5], [9, 9]], "surface": "k4", "crop": [0.1, 0.2, 0.3, 0.4],
        "tint": [1.0, 1.0, 1.0],
    }  # fmt: skip
    return table | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outline": [[0, 5], [9, 5]]}, "outline has 2 corners, not 3 or more"),
        ({"outline": [[0, 5], [9, 5], [10**7, 9]]}, "a corner beyond 100000 pixels"),
        ({"outline": [[0, 5], [9, 5], [-(10**7), 9]]}, "a corner beyond 100000 pixels"),
        ({"crop": [0.3, 0.2, 0.1, 0.4]}, "is no box within 0 to 1"),
        ({"crop": [0.1, 0.2, 0.3, 1e308]}, "is no box within 0 to 1"),
        ({"tint": [1.0, -1.0, 1.0]}, "is not from 0 to 100"),
        ({"tint": [1.0, 1e300, 1.0]}, "is not from 0 to 100"),
        ({"texture": -0.1}, "texture -0.1 is not from 0 to 1"),
        ({"texture": 1.5}, "texture 1.5 is not from 0 to 1"),
        ({"seed": -1}, "seed -1 is not from 0"),
    ],
)
def test_an_occluder_that_cannot_be_drawn(
    drawn: list[SceneSpec],
    changes: dict,
    message: str,  # type: ignore[type-arg]
) -> None:
    record = drawn[0].to_record()
    intact = SceneSpec.from_record({**record, "occluders": [table_record()]})
    assert intact.occluders[0].surface == "k4"
    with pytest.raises(ValueError, match=message):
        SceneSpec.from_record({**record, "occluders": [table_record(**changes)]})


def test_some_scenes_are_of_another_shape(drawn: list[SceneSpec]) -> None:
    inner_sizes = [r.room for r in drawn if r.room is not None]
    assert len(inner_sizes) / len(drawn) == pytest.approx(SETTINGS.letterbox_prob, abs=0.06)
    wide = [inner_size for inner_size in inner_sizes if inner_size[1] == SETTINGS.width]
    assert len(wide) / len(inner_sizes) == pytest.approx(0.7, abs=0.1)
    for height, width in inner_sizes:
        assert height % 16 == width % 16 == 0
        assert (height < SETTINGS.height) != (width < SETTINGS.width)


def test_heads_are_seen_where_a_clip_is_taller_than_the_scene(pool: ClipPool) -> None:
    sampler = SceneSampler(pool, SETTINGS)
    masked = next(n for n, clip in enumerate(pool.clips) if clip.masked)
    unknown = next(n for n, clip in enumerate(pool.clips) if not clip.masked)
    height, width = pool.clips[masked].info.frame_size
    inner_size = height // 2, width  # half of the clip's height is seen, and all of its width
    tops = {}
    for upper in (1.0, height / 4, height - 4.0):
        sampler._placer._person_boxes[masked] = (0.0, upper, float(width), float(height))
        place = sampler._placer.place_full(masked, inner_size, None, random.Random(0))
        assert place.scale == 1
        assert 0 <= upper + place.top < inner_size[0]
        tops[upper] = place.top
    assert list(tops.values()) == sorted(tops.values(), reverse=True)
    assert tops[1.0] == 0 and tops[height - 4.0] == inner_size[0] - height
    middle = sampler._placer.place_full(unknown, inner_size, None, random.Random(0)).top
    assert middle == round((inner_size[0] - height) / 2)


def test_too_few_people(tmp_path: Path) -> None:
    pool = ClipPool(data_set_of(tmp_path / "set", [clip(0, speaker="one"), clip(1, speaker="one")]))
    with pytest.raises(UsageError, match=r"clips of 1 speaking people \(one\).*up to 4"):
        SceneSampler(pool, SETTINGS)
    alone = ComposeSettings(people=(1, 0, 0), off_screen_prob=0, all_off_screen_prob=0)
    assert SceneSampler(pool, alone).sample(random.Random(0)).people[0].clip in ("k0", "k1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 100}, "patches of 16"),
        ({"seconds": 0.03}, "multiple of 0.04"),
        ({"silent_prob": 1.5}, "from 0 to 1"),
        ({"people": (0, 0, 0)}, "people"),
        ({"own_background": 0, "pasted": 0, "split_screen": 0}, "own_background"),
        ({"min_scale": 2.0}, "min_scale"),
    ],
)
def test_settings_that_make_no_sense(changes: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UsageError, match=message):
        ComposeSettings(**changes)


def test_scenes_without_people_take_one_off_screen_voice_at_most(tmp_path: Path) -> None:
    clips = [clip(0, speaker="one", person=True), clip(1, speaker="one", person=True)]
    settings = ComposeSettings(without_people_prob=1.0)
    sampler = SceneSampler(ClipPool(data_set_of(tmp_path / "set", clips)), settings)
    assert not any(sampler.sample(random.Random(seed)).people for seed in range(20))
