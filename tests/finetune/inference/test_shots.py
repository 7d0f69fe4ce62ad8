"""Cuts, what a window's slots hold on either side of them, and the appearance of people."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cavmae.common.boxes import WHOLE
from cavmae.common.errors import CavmaeError
from cavmae.finetune.inference.appearance import (
    BANDS,
    LIGHT,
    STEPS,
    appearance,
    mean_appearance,
    similarity,
)
from cavmae.finetune.inference.detections import DetectedPerson
from cavmae.finetune.inference.first_pass import _central_window
from cavmae.finetune.inference.predictor import Cue
from cavmae.finetune.inference.settings import Thresholds
from cavmae.finetune.inference.shots import (
    find_cuts,
    interpolate_masks,
    shots_of,
    split_at_cuts,
)
from cavmae.finetune.inference.window_prediction import _cued, _key_in_shot

LEAST = Thresholds().min_cut_difference
AREA = Thresholds().min_area_fraction
SIZE = 72, 128
KEYS = np.array([8, 24, 40, 56])


def scene(seed: int) -> np.ndarray:
    """A picture of smooth random colors."""
    noise = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    picture = torch.nn.functional.interpolate(noise, SIZE, mode="bicubic").clamp(0, 1)
    values: np.ndarray = (picture[0].permute(1, 2, 0) * 255).byte().numpy()
    return values


def film(*lengths: int) -> list[np.ndarray]:
    """Shots of pictures that move by a pixel a frame."""
    return [np.roll(scene(number), t, axis=1) for number, n in enumerate(lengths) for t in range(n)]


def test_cuts_are_found_where_they_are() -> None:
    assert find_cuts(film(64), LEAST) == ()
    assert find_cuts(film(20, 30, 14), LEAST) == (20, 50)
    assert find_cuts(film(63, 1), LEAST) == (63,)
    assert find_cuts(film(20, 30), 255) == ()
    assert find_cuts(film(1), LEAST) == ()
    slides = [scene(number) for number in range(3) for _ in range(20)]
    assert find_cuts(slides, LEAST) == (20, 40)
    slow = [frame for frame in film(4, 8) for _ in range(5)]  # of 5 Hz
    assert find_cuts(slow, LEAST) == (20,)
    tiny = [scene(number)[::24, ::32] for number in (0, 1) for _ in range(5)]
    assert find_cuts(tiny, LEAST) == (5,)


def test_what_is_no_cut() -> None:
    """A flash, a fade, a fast pan, and somebody who moves before a still background."""
    still = [scene(0)] * 30
    flash = [*still[:10], np.full_like(still[0], 255), *still[10:]]
    assert find_cuts(flash, LEAST) == ()
    for length in (2, 4, 6):
        white = [np.full_like(still[0], 255)] * length
        assert find_cuts([*still[:10], *white, *still[10:]], LEAST) == (), length
    switched = [*still[:10], *[(frame * 0.6).astype(np.uint8) for frame in still]]
    assert find_cuts(switched, LEAST) == ()
    for repeats in (3, 5):  # frames of 8 and 5 Hz
        slow = [frame for t in range(12) for frame in [np.roll(scene(0), 9 * t, axis=1)] * repeats]
        assert find_cuts(slow, LEAST) == ()
    first, second = scene(0).astype(float), scene(1).astype(float)
    fade = [(first + (second - first) * t / 12).astype(np.uint8) for t in range(13)]
    assert find_cuts(fade, LEAST) == ()
    assert find_cuts([np.roll(scene(0), 12 * t, axis=1) for t in range(30)], LEAST) == ()
    moving = [frame.copy() for frame in still]
    for t, frame in enumerate(moving):
        frame[20:, 3 * t : 3 * t + 30] = 200
    assert find_cuts(moving, LEAST) == ()


@given(st.integers(0, 10_000))
@settings(max_examples=60)
def test_masks_are_interpolated_within_shots(seed: int) -> None:
    """As a loop over frames does it."""
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, 256, (4, 2, 3), dtype=np.uint8)
    cuts = sorted(rng.choice(np.arange(1, 64), rng.integers(0, 4), replace=False).tolist())
    frames = np.arange(64)
    values = interpolate_masks(masks, frames, KEYS, cuts)
    shots = shots_of(KEYS, cuts)
    for frame in frames:
        own = sum(frame >= cut for cut in cuts)
        around = [max([k for k in range(4) if KEYS[k] <= frame], default=0)]
        around.append(min([k for k in range(4) if KEYS[k] >= frame], default=3))
        inside = [k for k in around if shots[k] == own] or around
        position = np.interp(frame, KEYS[inside], inside) if inside[0] != inside[-1] else inside[0]
        low = int(position)
        share = position - low
        expected = masks[low] * (1 - share) + masks[min(low + 1, 3)] * share
        np.testing.assert_allclose(values[frame], expected / 255, atol=1e-5)


def seen(*visible: int) -> DetectedPerson:
    """Slot that is visible in some key frames."""
    masks = np.zeros((4, 6, 8), np.uint8)
    masks[list(visible)] = 255
    colors = np.arange(4 * 5 * 2 * 3, dtype=np.float32).reshape(4, 5, 2, 3)
    voice = np.random.default_rng(0).normal(size=64 * 640).astype(np.float32)
    still = np.zeros(64, np.float32)
    return DetectedPerson(1, 0.9, np.full(64, 0.7, np.float32), WHOLE, masks, voice, colors, still)


def test_a_slot_of_two_shots_is_two_detections() -> None:
    slot = seen(0, 1, 2, 3)
    first, second = split_at_cuts([slot], (30,), KEYS, AREA)
    np.testing.assert_allclose(first.voice + second.voice, slot.voice, atol=1e-6)
    assert not first.voice[31 * 640 :].any() and not second.voice[: 29 * 640].any()
    assert (first.activity_prob[:30] == np.float32(0.7)).all() and not first.activity_prob[
        30:
    ].any()
    for part, own in ((first, [0, 1]), (second, [2, 3])):
        assert np.flatnonzero(part.masks.any((1, 2))).tolist() == own
        np.testing.assert_array_equal(part.colors[own], slot.colors[own])
        assert part.colors.sum() == slot.colors[own].sum()
    assert first.activity_prob.max() == second.activity_prob.max()


@pytest.mark.parametrize(
    ("visible", "cuts", "count"),
    [
        ((0, 1, 2, 3), (), 1),
        ((0, 1), (30,), 1),  # their voice may go on after the cut
        ((0, 1, 2, 3), (4,), 1),  # before the first key frame
        ((0, 1, 2, 3), (60,), 1),
        ((0, 3), (20, 45), 2),  # not in the shot between
        ((0, 1, 2, 3), (20, 25, 45), 4),
        ((), (30,), 1),
    ],
)
def test_parts_partition_the_window(
    visible: tuple[int, ...], cuts: tuple[int, ...], count: int
) -> None:
    slot = seen(*visible)
    parts = split_at_cuts([slot], cuts, KEYS, AREA)
    assert len(parts) == count
    np.testing.assert_array_equal(np.sum([part.masks for part in parts], axis=0), slot.masks)
    np.testing.assert_allclose(np.sum([p.voice for p in parts], axis=0), slot.voice, atol=1e-6)
    whole = np.maximum.reduce([part.activity_prob for part in parts])
    np.testing.assert_array_equal(whole, slot.activity_prob)


def test_remains_of_a_mask_in_another_shot_take_no_voice_away() -> None:
    slot = seen(0, 1, 2)
    slot.masks[2] = 0
    slot.masks[2, 0, 0] = 140
    assert len(split_at_cuts([slot], (30,), KEYS, 0.03)) == 1
    assert len(split_at_cuts([slot], (30,), KEYS, 0.01)) == 2


@pytest.mark.parametrize(
    ("key", "expected"), [(0, [True, False]), (1, [True, False]), (3, [False, True])]
)
def test_a_cue_means_the_part_nearest_in_time(key: int, expected: list[bool]) -> None:
    """Also where nobody is seen at the time of the cue itself."""
    slot = seen(0, 3)._replace(slot=0)
    parts = [*split_at_cuts([slot], (30,), KEYS, AREA), seen(0, 1, 2, 3)]
    assert _cued(parts, Cue("box"), key) == [*expected, False]
    assert _cued(parts, Cue("voice"), key) == [True, True, False]
    assert _cued(parts, None, key) == [False] * 3
    assert _cued([slot], Cue("box"), 2) == [True]


def test_a_cue_is_looked_up_in_its_own_shot() -> None:
    def key(time: float, cuts: tuple[int, ...] = (), start: int = 100) -> int:
        return _key_in_shot(Cue("point", time=time), start, KEYS, cuts)

    times = (100 + np.arange(64)) / 25
    nearest = [int(np.abs(KEYS - n).argmin()) for n in range(64)]
    assert [key(time) for time in times] == nearest
    # A cut at frame 30, between the keys 24 and 40.
    split = [key(time, (30,)) for time in times]
    assert split[:30] == [min(n, 1) for n in nearest[:30]]
    assert split[30:] == [max(n, 2) for n in nearest[30:]]
    with pytest.raises(CavmaeError, match=r"The shot at 5.36 s is too short, .* name a time"):
        key(134 / 25, (28, 38))
    # Of two windows that overlap, the one with key frames on both sides.
    starts = range(0, 320, 32)
    for frame in range(40, 300):
        window = _central_window(frame / 25, starts, 64)
        assert KEYS[0] <= frame - starts[window] <= KEYS[-1]


def look(clothes: int, light: float = 1.0, hair: int = 40, shift: int = 0) -> np.ndarray:
    """Mean appearance of a person of two colors, somewhere in the frame."""
    frame = np.zeros((1, 3, 24, 24), np.float32)
    frame[:, :, :12] = np.array([hair, 60, 90])[:, None, None]
    frame[:, :, 12:] = np.array([clothes, 120, 200 - clothes])[:, None, None]
    masks = np.zeros((1, 24, 24), np.float32)
    masks[:, 4:, 6 + shift : 14 + shift] = 1
    return mean_appearance(appearance((frame * light).astype(np.uint8), masks))


def test_the_same_person_is_known_in_other_light_and_elsewhere() -> None:
    assert look(40).shape == (len(LIGHT), BANDS, STEPS**3)
    np.testing.assert_allclose(look(40).sum(-1), 1, atol=1e-5)
    assert similarity(look(40), look(40)) == pytest.approx(1, abs=1e-5)
    assert similarity(look(40), look(40, shift=7)) == pytest.approx(1, abs=1e-5)
    for light in (0.8, 1.25):
        darker = similarity(look(40), look(40, light))
        assert darker > 0.95 and darker == pytest.approx(similarity(look(40, light), look(40)))
        assert darker > float(np.sqrt(look(40) * look(40, light))[2].sum(-1).mean()) + 0.02
    assert similarity(look(40), look(160)) < 0.72
    # The same colors in other places: fair hair and dark clothes, or dark hair and fair clothes.
    upside_down = look(40)[:, ::-1]
    assert similarity(look(40), upside_down) < 0.72


def test_a_faint_mask_of_all_of_the_background_changes_nothing() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (1, 3, 24, 24), dtype=np.uint8)
    masks = np.zeros((1, 24, 24), np.float32)
    masks[:, 4:, 6:14] = 1
    faint = np.maximum(masks, np.float32(0.2))
    np.testing.assert_array_equal(appearance(frame, faint), appearance(frame, masks))


def test_people_without_pixels_are_like_nobody() -> None:
    nobody = mean_appearance(appearance(np.zeros((2, 3, 8, 8), np.uint8), np.zeros((2, 8, 8))))
    assert not nobody.any() and similarity(nobody, look(40)) == 0
    # A person of two rows has no pixel in some bands: the others count.
    masks = np.zeros((1, 8, 8), np.float32)
    masks[0, 3:5] = 1
    small = mean_appearance(appearance(np.full((1, 3, 8, 8), 99, np.uint8), masks))
    assert similarity(small, small) == pytest.approx(1, abs=1e-5)
