"""Drawn scenes: people are where the recipe says, and masks where they are seen."""

import dataclasses
import random

import numpy as np
import pytest
import torch

from cavmae.datasets.mixtures.clip_pool import ClipPool
from cavmae.datasets.mixtures.compositing import GREY, Compositor, fill_holes, resize, dilate
from cavmae.datasets.mixtures.sampler import SceneSampler
from cavmae.datasets.mixtures.scene_spec import ComposeSettings, SceneSpec, Seen
from tests.datasets.clips import clip, data_set_of

SCENE = (32, 48)
PLAIN = {"light": (1.0, 1.0, 1.0), "tint": (1.0, 1.0, 1.0), "quality": 100, "feather": 0.0}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> ClipPool:
    folder = tmp_path_factory.mktemp("pool") / "set"
    samples = [clip(n, speaker=f"s{n}", person=True, masks=n != 3) for n in range(5)]
    return ClipPool(data_set_of(folder, samples))


@pytest.fixture(scope="module")
def painter(pool: ClipPool) -> Compositor:
    return Compositor(pool, SCENE, SCENE, frames=3, keys=3)


def seen(number: int, **changes: object) -> Seen:
    whole = Seen(
        clip=f"k{number}", start=0.0, active=(0.0, 0.12), level_db=0.0, scale=1.0, left=0, top=0,
        flip=False, window=None,
    )  # fmt: skip
    return dataclasses.replace(whole, **changes)  # type: ignore[arg-type]


def recipe(kind: str, *people: Seen, **changes: object) -> SceneSpec:
    values = {
        "kind": kind, "people": people, "order": tuple(range(len(people))),
        "background": "k4" if kind == "pasted" else None, "unseen": (), "noise": None,
        "noise_db": 0.0, "seed": 0, **PLAIN,
    } | changes  # fmt: skip
    return SceneSpec(**values)  # type: ignore[arg-type]


def test_a_clip_of_its_own_is_what_it_was(pool: ClipPool, painter: Compositor) -> None:
    shown = painter.compose_frames(recipe("own_background", seen(0)))
    one = pool.clips[0]
    grey = pool.frames(one, [0, 1, 2], grey=True)
    # Once more through JPEG, which halves the resolution of colours: the noise of brightness stays.
    assert np.abs(shown.frames @ np.array(GREY) - grey).mean() < 3
    assert np.abs(shown.motion.astype(int) - grey).mean() < 1
    assert (shown.masks[0] == (pool.masks(one, [0, 1, 2]) > 0)).all()
    assert shown.masked.tolist() == [True]


def test_only_the_person_is_pasted(pool: ClipPool, painter: Compositor) -> None:
    shown = painter.compose_frames(recipe("pasted", seen(0), seen(1, left=11, top=3)))
    first, second = pool.clips[0], pool.clips[1]
    moved = np.zeros((3, *SCENE), dtype=bool)
    moved[:, 3:, 11:] = pool.masks(second, [0, 1, 2])[:, :-3, :-11] > 0
    assert (shown.masks[1] == moved).all()
    assert (shown.masks[0] == ((pool.masks(first, [0, 1, 2]) > 0) & ~moved)).all()
    # Pixels of a person are the clip's; all others are the background's, which stands still.
    pictures = np.roll(pool.frames(second, [0, 1, 2], grey=True), (3, 11), axis=(1, 2))
    assert np.abs(shown.motion.astype(int) - pictures)[1:][moved[1:]].mean() < 12
    nobody = ~shown.masks.any((0, 1))
    assert shown.motion[:, nobody].std(axis=0).mean() < 5
    other = painter.compose_frames(recipe("pasted", seen(0), seen(1, left=11, top=3), order=(1, 0)))
    assert (other.masks[0] == (pool.masks(first, [0, 1, 2]) > 0)).all()
    assert not (other.masks[0] & other.masks[1]).any()


def test_mirrored_and_scaled(pool: ClipPool, painter: Compositor) -> None:
    mask = pool.masks(pool.clips[2], [0, 1, 2]) > 0
    flipped = painter.compose_frames(recipe("pasted", seen(2, flip=True)))
    assert (flipped.masks[0] == mask[:, :, ::-1]).all()
    half = painter.compose_frames(recipe("pasted", seen(2, scale=0.5, left=24, top=16)))
    assert half.masks[0].sum() == pytest.approx(mask.sum() / 4, rel=0.15)
    assert not half.masks[0][:, :, :24].any()
    away = painter.compose_frames(recipe("pasted", seen(2, left=500, top=-900)))
    assert not away.masks.any()


def test_a_person_stands_still_outside_of_the_active_time(
    pool: ClipPool, painter: Compositor
) -> None:
    moving = painter.compose_frames(recipe("own_background", seen(0)))
    still = painter.compose_frames(recipe("own_background", seen(0, active=(0.04, 0.04))))
    assert (still.motion == still.motion[0]).all()
    assert (still.motion[1] == moving.motion[1]).all()
    assert not (moving.motion[0] == moving.motion[1]).all()


def test_a_clip_plays_faster(painter: Compositor) -> None:
    plain = painter.compose_frames(recipe("own_background", seen(0)))
    fast = painter.compose_frames(recipe("own_background", seen(0, speed=2.0, active=(0.0, 0.04))))
    assert (fast.motion[0] == plain.motion[0]).all()
    assert (fast.motion[1] == plain.motion[2]).all()  # 80 ms into the clip after 40 ms


def test_side_by_side(pool: ClipPool, painter: Compositor) -> None:
    left, right = seen(0, window=(0, 20)), seen(3, left=10, window=(20, 48))
    shown = painter.compose_frames(recipe("split_screen", left, right))
    assert not shown.masks[0][:, :, 20:].any()
    grey = pool.frames(pool.clips[0], [0, 1, 2], grey=True)
    assert np.abs(shown.motion[:, :, :20].astype(int) - grey[:, :, :20]).mean() < 1
    assert shown.masked.tolist() == [True, False]  # the fourth clip lacks a mask
    assert not shown.masks[1].any()


def test_light_is_that_of_one_camera(painter: Compositor) -> None:
    plain = painter.compose_frames(recipe("own_background", seen(0)))
    dark = painter.compose_frames(recipe("own_background", seen(0), light=(0.5, 1.0, 1.0)))
    assert dark.frames.mean() == pytest.approx(plain.frames.mean() / 2, rel=0.05)
    assert dark.motion.mean() == pytest.approx(plain.motion.mean() / 2, rel=0.05)
    pale = painter.compose_frames(recipe("own_background", seen(0), light=(1.0, 1.0, 0.0)))
    assert pale.frames.std(axis=-1).mean() < 3
    red = painter.compose_frames(recipe("own_background", seen(0), tint=(1.2, 1.0, 0.8)))
    assert red.frames[..., 0].mean() > plain.frames[..., 0].mean() * 1.1


def test_whatever_is_drawn_can_be_painted(pool: ClipPool) -> None:
    settings = ComposeSettings(height=48, width=64, seconds=0.12)
    book = SceneSampler(pool, settings)
    painter = Compositor(pool, (48, 64), (24, 32), frames=3, keys=2)
    for number in range(60):
        shown = painter.compose_frames(book.sample(random.Random(number)))
        assert shown.frames.shape == (2, 48, 64, 3)
        assert shown.motion.shape == (3, 24, 32)
        assert shown.masks.sum(axis=0).max() <= 1  # a pixel shows one person at most


@pytest.mark.parametrize("room", [(32, 64), (48, 32)])
def test_a_scene_of_another_shape_lies_in_the_middle_of_black(
    pool: ClipPool, room: tuple[int, int]
) -> None:
    small = tuple(side // 2 for side in room)
    inside = Compositor(pool, room, small, frames=3, keys=2)  # type: ignore[arg-type]
    whole = Compositor(pool, (48, 64), (24, 32), frames=3, keys=2)
    plain = recipe("pasted", seen(0), seen(1, left=9))
    expected = inside.compose_frames(plain)
    shown = whole.compose_frames(dataclasses.replace(plain, room=room))
    top, left = (48 - room[0]) // 2, (64 - room[1]) // 2
    here = slice(top, top + room[0]), slice(left, left + room[1])
    assert np.array_equal(shown.frames[:, here[0], here[1]], expected.frames)
    assert np.array_equal(shown.masks[:, :, here[0], here[1]], expected.masks)
    assert shown.masks.sum() == expected.masks.sum() > 0
    assert shown.frames.sum() == expected.frames.sum()
    grey = slice(top // 2, (top + room[0]) // 2), slice(left // 2, (left + room[1]) // 2)
    assert np.array_equal(shown.motion[:, grey[0], grey[1]], expected.motion)
    assert shown.motion.sum() == expected.motion.sum()


def test_holes_are_filled_from_around() -> None:
    torch.manual_seed(0)
    picture = torch.rand(3, 37, 50)
    weight = torch.ones(1, 37, 50)
    torch.testing.assert_close(fill_holes(picture, weight), picture)
    weight[:, 5:30, 10:45] = 0
    found = fill_holes(picture * weight, weight)
    assert found[:, :5].equal(picture[:, :5])
    assert found.min() >= picture.min() and found.max() <= picture.max()
    even = fill_holes(torch.full((3, 37, 50), 7.0) * weight, weight)
    torch.testing.assert_close(even, torch.full_like(even, 7.0))
    assert fill_holes(torch.zeros(3, 8, 8), torch.zeros(1, 8, 8)).abs().max() == 0


@pytest.mark.parametrize("margin", [0, 1, 2, 3, 4, 6, 20])
def test_masks_with_what_is_near(margin: int) -> None:
    """A pixel belongs to it if one of the mask's is within the margin in both directions."""
    masks = np.random.default_rng(margin).random((3, 9, 14)) < 0.03
    masks[0, 0, 0] = masks[1, 8, 13] = True
    near = np.zeros_like(masks)
    for number, row, column in zip(*np.nonzero(masks), strict=True):
        top, left = max(0, row - margin), max(0, column - margin)
        near[number, top : row + margin + 1, left : column + margin + 1] = True
    before = masks.copy()
    np.testing.assert_array_equal(dilate(masks, margin), near)
    np.testing.assert_array_equal(masks, before)


@pytest.mark.parametrize("shape", [(8, 1, 20, 31), (6, 1, 20, 31), (4, 3, 20, 31)])
@pytest.mark.parametrize("size", [(9, 40), (33, 7)])
def test_scaled_together_is_scaled_one_by_one(
    shape: tuple[int, ...], size: tuple[int, int]
) -> None:
    pictures = torch.randint(0, 256, shape, dtype=torch.uint8)
    whole = pictures.expand(-1, 3, -1, -1)  # in colour: never four at once
    one = [torch.nn.functional.interpolate(p[None], size, mode="bilinear", antialias=True)
           for p in whole]  # fmt: skip
    assert torch.equal(resize(pictures, size), torch.cat(one)[:, : shape[1]])
