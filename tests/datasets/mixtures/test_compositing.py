"""Composed frames: people at the positions of the spec, and masks of their visible pixels."""

import dataclasses
import random

import numpy as np
import pytest
import torch

from cavmae.datasets.mixtures.clip_pool import ClipPool
from cavmae.datasets.mixtures.compositing import (
    GREY,
    Compositor,
    background_plate,
    dilate,
    fill_holes,
    texture_noise,
)
from cavmae.datasets.mixtures.paste_canvas import resize
from cavmae.datasets.mixtures.sampler import SceneSampler
from cavmae.datasets.mixtures.scene_spec import ComposeSettings, Occluder, SceneSpec, VisiblePerson
from tests.datasets.clips import clip, data_set_of

SCENE = (32, 48)
PLAIN = {"light": (1.0, 1.0, 1.0), "tint": (1.0, 1.0, 1.0), "quality": 100, "feather": 0.0}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> ClipPool:
    folder = tmp_path_factory.mktemp("pool") / "set"
    samples = [clip(n, speaker=f"s{n}", person=True, masks=n != 3) for n in range(5)]
    return ClipPool(data_set_of(folder, samples))


@pytest.fixture(scope="module")
def compositor(pool: ClipPool) -> Compositor:
    return Compositor(pool, SCENE, SCENE, frames=3, keys=3)


def placed(number: int, **changes: object) -> VisiblePerson:
    whole = VisiblePerson(
        clip=f"k{number}", start=0.0, active=(0.0, 0.12), level_db=0.0, scale=1.0, left=0, top=0,
        flip=False, window=None,
    )  # fmt: skip
    return dataclasses.replace(whole, **changes)  # type: ignore[arg-type]


def spec(kind: str, *people: VisiblePerson, **changes: object) -> SceneSpec:
    values = {
        "kind": kind, "people": people, "order": tuple(range(len(people))),
        "background": "k4" if kind == "pasted" else None, "unseen": (), "noise": None,
        "noise_db": 0.0, "seed": 0, **PLAIN,
    } | changes  # fmt: skip
    return SceneSpec(**values)  # type: ignore[arg-type]


def test_a_clip_of_its_own_is_what_it_was(pool: ClipPool, compositor: Compositor) -> None:
    composed = compositor.compose_frames(spec("own_background", placed(0)))
    entry = pool.clips[0]
    grey = pool.frames(entry, [0, 1, 2], grey=True)
    # Once more through JPEG, which halves the resolution of colours: the noise of brightness stays.
    assert np.abs(composed.frames @ np.array(GREY) - grey).mean() < 3
    assert np.abs(composed.motion.astype(int) - grey).mean() < 1
    assert (composed.masks[0] == (pool.masks(entry, [0, 1, 2]) > 0)).all()
    assert composed.masked.tolist() == [True]


def test_only_the_person_is_pasted(pool: ClipPool, compositor: Compositor) -> None:
    composed = compositor.compose_frames(spec("pasted", placed(0), placed(1, left=11, top=3)))
    first, second = pool.clips[0], pool.clips[1]
    moved = np.zeros((3, *SCENE), dtype=bool)
    moved[:, 3:, 11:] = pool.masks(second, [0, 1, 2])[:, :-3, :-11] > 0
    assert (composed.masks[1] == moved).all()
    assert (composed.masks[0] == ((pool.masks(first, [0, 1, 2]) > 0) & ~moved)).all()
    # Pixels of a person are the clip's; all others are the background's, which stands still.
    frames = np.roll(pool.frames(second, [0, 1, 2], grey=True), (3, 11), axis=(1, 2))
    assert np.abs(composed.motion.astype(int) - frames)[1:][moved[1:]].mean() < 12
    background = ~composed.masks.any((0, 1))
    assert composed.motion[:, background].std(axis=0).mean() < 5
    other = compositor.compose_frames(
        spec("pasted", placed(0), placed(1, left=11, top=3), order=(1, 0))
    )
    assert (other.masks[0] == (pool.masks(first, [0, 1, 2]) > 0)).all()
    assert not (other.masks[0] & other.masks[1]).any()


def test_mirrored_and_scaled(pool: ClipPool, compositor: Compositor) -> None:
    mask = pool.masks(pool.clips[2], [0, 1, 2]) > 0
    flipped = compositor.compose_frames(spec("pasted", placed(2, flip=True)))
    assert (flipped.masks[0] == mask[:, :, ::-1]).all()
    half = compositor.compose_frames(spec("pasted", placed(2, scale=0.5, left=24, top=16)))
    assert half.masks[0].sum() == pytest.approx(mask.sum() / 4, rel=0.15)
    assert not half.masks[0][:, :, :24].any()
    away = compositor.compose_frames(spec("pasted", placed(2, left=500, top=-900)))
    assert not away.masks.any()


def test_a_person_stands_still_outside_of_the_active_time(
    pool: ClipPool, compositor: Compositor
) -> None:
    moving = compositor.compose_frames(spec("own_background", placed(0)))
    still = compositor.compose_frames(spec("own_background", placed(0, active=(0.04, 0.04))))
    assert (still.motion == still.motion[0]).all()
    assert (still.motion[1] == moving.motion[1]).all()
    assert not (moving.motion[0] == moving.motion[1]).all()


def test_a_clip_plays_faster(compositor: Compositor) -> None:
    plain = compositor.compose_frames(spec("own_background", placed(0)))
    fast = compositor.compose_frames(
        spec("own_background", placed(0, speed=2.0, active=(0.0, 0.04)))
    )
    assert (fast.motion[0] == plain.motion[0]).all()
    assert (fast.motion[1] == plain.motion[2]).all()  # 80 ms into the clip after 40 ms


def test_side_by_side(pool: ClipPool, compositor: Compositor) -> None:
    left, right = placed(0, window=(0, 20)), placed(3, left=10, window=(20, 48))
    composed = compositor.compose_frames(spec("split_screen", left, right))
    assert not composed.masks[0][:, :, 20:].any()
    grey = pool.frames(pool.clips[0], [0, 1, 2], grey=True)
    assert np.abs(composed.motion[:, :, :20].astype(int) - grey[:, :, :20]).mean() < 1
    assert composed.masked.tolist() == [True, False]  # the fourth clip lacks a mask
    assert not composed.masks[1].any()


def test_a_picture_in_a_picture(pool: ClipPool, compositor: Compositor) -> None:
    """The rectangle shows the second clip with its background, and hides the first person."""
    inset = placed(1, left=10, top=6, scale=0.5, window=(12, 30), rows=(8, 20))
    composed = compositor.compose_frames(spec("inset", placed(0), inset))
    inside = np.zeros(SCENE, dtype=bool)
    inside[8:20, 12:30] = True
    own = pool.masks(pool.clips[0], [0, 1, 2]) > 0
    assert (composed.masks[0] == (own & ~inside)).all()
    assert composed.masks[1].any()
    assert not composed.masks[1][:, ~inside].any()
    grey = pool.frames(pool.clips[0], [0, 1, 2], grey=True)
    assert np.abs(composed.motion.astype(int) - grey)[:, ~inside].mean() < 1.5
    size = 16, 24
    small = pool.frames(pool.clips[1], [0, 1, 2], grey=True, size=size)
    small = resize(torch.from_numpy(small)[:, None], size)[:, 0].numpy()
    shown = composed.motion[:, 8:20, 12:30].astype(int)
    assert np.abs(shown - small[:, 2:14, 2:20]).mean() < 3
    alone = compositor.compose_frames(spec("inset", inset, background="k4"))
    assert (alone.masks[0] == composed.masks[1]).all()


TABLE = ((-6, 20), (30, 20), (40, 40), (-6, 40))  # reaches beyond the scene


@pytest.mark.parametrize("kind", ["own_background", "pasted"])
def test_an_occluder_covers_people(pool: ClipPool, compositor: Compositor, kind: str) -> None:
    """Its pixels are the surface, tinted and still; they are nobody's, and no others change."""
    occluder = Occluder(TABLE, "k4", (0.0, 0.0, 0.02, 0.02), (0.5, 0.75, 1.0))
    free = compositor.compose_frames(spec(kind, placed(0)))
    covered = compositor.compose_frames(spec(kind, placed(0), occluders=(occluder,)))
    inside, outside = np.zeros((2, *SCENE), dtype=bool)
    for y, x in np.ndindex(*SCENE):  # the right side slopes from 30 to 36 within the scene
        right = 30 + (y + 0.5 - 20) / 2
        inside[y, x] = y >= 21 and x < right - 1.5
        outside[y, x] = y < 19 or x > right + 1.5
    assert not covered.masks[:, :, inside].any()
    assert (covered.masks[:, :, outside] == free.masks[:, :, outside]).all()
    assert free.masks[:, :, inside].any()
    far = np.zeros(SCENE, dtype=bool)  # blocks of JPEG without any of it
    far[:16] = True
    assert (covered.motion[:, far] == free.motion[:, far]).all()
    corner = background_plate(pool, 4)[:, 0, 0].numpy()
    colour = covered.frames[:, inside].mean((0, 1))
    assert colour == pytest.approx(corner * occluder.tint, abs=12)
    grey = covered.motion[:, inside].astype(float)
    assert grey.mean() == pytest.approx(float(corner * occluder.tint @ np.array(GREY)), abs=12)
    assert np.abs(grey - grey[:1]).max() <= 6  # what moves beside it changes its JPEG blocks


@pytest.mark.parametrize(
    "outline",
    [((60, 0), (80, 0), (80, 40)), ((5, 5), (5, 5), (5, 5)), ((0, 33), (48, 33), (20, 50))],
    ids=["beside the scene", "a point", "below the scene"],
)
def test_an_occluder_of_no_pixels(compositor: Compositor, outline: tuple) -> None:  # type: ignore[type-arg]
    occluder = Occluder(outline, "k4", (0.2, 0.2, 0.6, 0.9), (1.0, 1.0, 1.0))
    free = compositor.compose_frames(spec("pasted", placed(0)))
    covered = compositor.compose_frames(spec("pasted", placed(0), occluders=(occluder,)))
    assert (covered.frames == free.frames).all()
    assert (covered.motion == free.motion).all()
    assert (covered.masks == free.masks).all()


def test_a_surface_with_texture(compositor: Compositor) -> None:
    """Noise around the surface's colour, the same for a seed, in colour and in grey alike."""
    values = {}
    for name, texture, seed in (("plain", 0.0, 1), ("a", 0.5, 1), ("b", 0.5, 2), ("again", 0.5, 1)):
        whole = ((0, 0), (48, 0), (48, 32), (0, 32))
        crop, white = (0.0, 0.0, 0.02, 0.03), (1.0, 1.0, 1.0)
        occluder = Occluder(whole, "k4", crop, white, texture, seed)
        composed = compositor.compose_frames(spec("pasted", placed(0), occluders=(occluder,)))
        grey = composed.motion.astype(float)
        assert np.abs(composed.frames @ np.array(GREY) - grey).mean() < 4
        values[name] = grey[0]
    assert values["plain"].std() < 2
    assert 0.05 < values["a"].std() / values["plain"].mean() < 0.4
    assert values["a"].mean() == pytest.approx(values["plain"].mean(), rel=0.2)
    assert (values["a"] == values["again"]).all()
    assert np.abs(values["a"] - values["b"]).mean() > 5
    noise = texture_noise(7)
    assert -1 <= noise.min() < -0.3 and 0.3 < noise.max() <= 1


def test_occluders_in_order(compositor: Compositor) -> None:
    """The last one is nearest."""
    surfaces = [
        Occluder(((0, 8), (48, 8), (48, 32), (0, 32)), "k4", (0.0, 0.0, 1.0, 1.0), (f, f, f))
        for f in (0.0, 9.0)
    ]
    for occluders, value in ((surfaces, 255), (surfaces[::-1], 0)):
        composed = compositor.compose_frames(spec("pasted", placed(0), occluders=tuple(occluders)))
        assert np.abs(composed.motion[:, 16:].astype(int) - value).max() <= 3


def test_light_applies_to_the_whole_scene(compositor: Compositor) -> None:
    plain = compositor.compose_frames(spec("own_background", placed(0)))
    dark = compositor.compose_frames(spec("own_background", placed(0), light=(0.5, 1.0, 1.0)))
    assert dark.frames.mean() == pytest.approx(plain.frames.mean() / 2, rel=0.05)
    assert dark.motion.mean() == pytest.approx(plain.motion.mean() / 2, rel=0.05)
    pale = compositor.compose_frames(spec("own_background", placed(0), light=(1.0, 1.0, 0.0)))
    assert pale.frames.std(axis=-1).mean() < 3
    red = compositor.compose_frames(spec("own_background", placed(0), tint=(1.2, 1.0, 0.8)))
    assert red.frames[..., 0].mean() > plain.frames[..., 0].mean() * 1.1


def test_every_sampled_spec_can_be_composed(pool: ClipPool) -> None:
    settings = ComposeSettings(
        height=48, width=64, seconds=0.12, inset=0.3, occluder_prob=0.5, without_people_prob=0.2
    )
    sampler = SceneSampler(pool, settings)
    compositor = Compositor(pool, (48, 64), (24, 32), frames=3, keys=2)
    for number in range(60):
        composed = compositor.compose_frames(sampler.sample(random.Random(number)))
        assert composed.frames.shape == (2, 48, 64, 3)
        assert composed.motion.shape == (3, 24, 32)
        assert composed.masks.sum(axis=0).max(initial=0) <= 1  # a pixel shows one person at most


@pytest.mark.parametrize("inner_size", [(32, 64), (48, 32)])
def test_a_scene_of_another_shape_lies_in_the_middle_of_black(
    pool: ClipPool, inner_size: tuple[int, int]
) -> None:
    small = tuple(side // 2 for side in inner_size)
    inside = Compositor(pool, inner_size, small, frames=3, keys=2)  # type: ignore[arg-type]
    whole = Compositor(pool, (48, 64), (24, 32), frames=3, keys=2)
    table = Occluder(((0, 22), (20, 24), (20, 50)), "k4", (0.0, 0.0, 1.0, 1.0), (9.0, 1.0, 1.0))
    plain = spec("pasted", placed(0), placed(1, left=9), occluders=(table,))
    expected = inside.compose_frames(plain)
    composed = whole.compose_frames(dataclasses.replace(plain, room=inner_size))
    top, left = (48 - inner_size[0]) // 2, (64 - inner_size[1]) // 2
    here = slice(top, top + inner_size[0]), slice(left, left + inner_size[1])
    assert np.array_equal(composed.frames[:, here[0], here[1]], expected.frames)
    assert np.array_equal(composed.masks[:, :, here[0], here[1]], expected.masks)
    assert composed.masks.sum() == expected.masks.sum() > 0
    assert composed.frames.sum() == expected.frames.sum()
    grey = (
        slice(top // 2, (top + inner_size[0]) // 2),
        slice(left // 2, (left + inner_size[1]) // 2),
    )
    assert np.array_equal(composed.motion[:, grey[0], grey[1]], expected.motion)
    assert composed.motion.sum() == expected.motion.sum()


def test_holes_are_filled_from_around() -> None:
    torch.manual_seed(0)
    image = torch.rand(3, 37, 50)
    weight = torch.ones(1, 37, 50)
    torch.testing.assert_close(fill_holes(image, weight), image)
    weight[:, 5:30, 10:45] = 0
    filled = fill_holes(image * weight, weight)
    assert filled[:, :5].equal(image[:, :5])
    assert filled.min() >= image.min() and filled.max() <= image.max()
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
def test_frames_resized_together_and_alone_agree(
    shape: tuple[int, ...], size: tuple[int, int]
) -> None:
    frames = torch.randint(0, 256, shape, dtype=torch.uint8)
    whole = frames.expand(-1, 3, -1, -1)  # in colour: never four at once
    expected = [torch.nn.functional.interpolate(p[None], size, mode="bilinear", antialias=True)
           for p in whole]  # fmt: skip
    assert torch.equal(resize(frames, size), torch.cat(expected)[:, : shape[1]])
