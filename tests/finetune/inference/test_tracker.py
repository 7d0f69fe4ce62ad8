"""Long recordings: windows, joining, who is who, what a window says."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cavmae.datasets.stream.transforms import Statistics
from cavmae.finetune.inference.overlap_add import CrossfadeWeights, OverlapAdd, window_starts
from cavmae.finetune.inference.predictor import WHOLE, Cue, DetectedPerson, Fit, WindowPredictor
from cavmae.finetune.inference.tracker import Tracker, between, masks_at
from cavmae.finetune.speaker.cues import KINDS, no_cues
from cavmae.finetune.speaker.model import Inputs, SlotPredictions, VoicePredictions
from tests.finetune.speaker.scenes import ENCODER, SHAPE, model

LENGTH, KEYS = 16, np.array([2, 6, 10, 14])


@given(frames=st.integers(1, 400), length=st.integers(1, 64), share=st.floats(0.02, 1))
def test_windows_cover_everything_and_weigh_one(frames: int, length: int, share: float) -> None:
    hop = max(1, int(share * length))
    starts = window_starts(frames, length, hop)
    assert starts[0] == 0
    assert all(0 < b - a <= hop for a, b in itertools.pairwise(starts))
    assert starts[-1] + length == max(frames, length)
    total = np.zeros(max(frames, length))
    weights = CrossfadeWeights(starts, length)
    for number, start in enumerate(starts):
        share_of = weights.of(number)
        assert (share_of > 0).all()
        total[start : start + length] += share_of
    np.testing.assert_allclose(total, 1, atol=1e-5)


@given(frames=st.integers(1, 200), length=st.integers(2, 32), late=st.integers(0, 5))
def test_a_wave_that_all_windows_agree_on_comes_out_as_it_is(
    frames: int, length: int, late: int
) -> None:
    starts = window_starts(frames, length, max(1, length // 2))
    wave = np.random.default_rng(frames).normal(size=frames + length).astype(np.float32)
    joiner = OverlapAdd(starts, length, frames)
    found = np.zeros(frames, dtype=np.float32)
    newcomer = np.zeros(frames, dtype=np.float32)
    until = 0
    for number, start in enumerate(starts):
        waves = {0: wave[start : start + length]}
        if number >= late:
            waves[7] = np.ones(length, dtype=np.float32)
        first, parts = joiner.add(waves)
        assert first == until  # nothing is left out and nothing comes twice
        until = first + len(parts[0])
        found[first:until] = parts[0]
        newcomer[first:until] = parts.get(7, 0)
    assert until == frames
    np.testing.assert_allclose(found, wave[:frames], atol=1e-5)
    if late and late < len(starts):
        # Nobody is heard before the window that they appear in, and then they fade in.
        assert not newcomer[: starts[late]].any()
        rising = newcomer[starts[late] : starts[late] + length // 2]
        assert (np.diff(rising) > -1e-5).all()
    elif late == 0:
        np.testing.assert_allclose(newcomer, 1, atol=1e-5)


def test_who_is_gone_costs_nothing() -> None:
    """An hour with hundreds of people who come and go keeps no more than two windows of each."""
    starts = list(range(0, 8 * 300, 8))
    joiner = OverlapAdd(starts, 16, 8 * 300 + 8)
    for number in range(300):
        _, parts = joiner.add({0: np.ones(16, np.float32), 1 + number: np.ones(16, np.float32)})
        assert len(parts) <= 3
        assert len(joiner._pending) <= 3


# --- who is who ---


def person(place: float, colour: int, tone: float = 0.0, masks: int = 24) -> DetectedPerson:
    """Somebody a fifth of the picture wide, whose middle is at ``place`` all the time."""
    return moving(lambda _: place, colour, tone, 0, masks)


def moving(where, colour: int, tone: float, start: int, size: int = 24) -> DetectedPerson:  # type: ignore[no-untyped-def]
    values = np.zeros((len(KEYS), size, size), dtype=np.uint8)
    for number, key in enumerate(KEYS):
        middle = where(start + key)
        left, right = round((middle - 0.1) * size), round((middle + 0.1) * size)
        values[number, 4:, max(0, left) : max(0, right)] = 255
    time = (start * 40 + np.arange(LENGTH * 40)) / 1000
    colours = np.zeros(64, dtype=np.float32)
    colours[colour] = 1
    voice = np.sin(2 * np.pi * tone * time).astype(np.float32)
    return DetectedPerson(0, 0.9, np.ones(LENGTH, np.float32), WHOLE, values, voice, colours)


def tracker(starts: list[int]) -> Tracker:
    return Tracker(starts, KEYS, LENGTH, 40, 25)


def test_who_stays_keeps_their_number_in_any_order() -> None:
    one = tracker([0, 8, 16])
    a, b = person(0.25, 1), person(0.75, 1)
    assert one.number([a, b]) == [1, 2]
    assert one.number([b, a]) == [2, 1]
    assert one.number([person(0.5, 9), b, a]) == [3, 2, 1]  # a newcomer between them


def test_numbers_survive_a_crossing() -> None:
    """Two people alike change places; in every window they are listed from left to right."""
    starts = list(range(0, 120, 8))
    one = tracker(starts)
    there = {}
    for start in starts:
        left = moving(lambda t: 0.2 + 0.6 * t / 120, 1, 5.0, start)
        right = moving(lambda t: 0.8 - 0.6 * t / 120, 1, 8.0, start)
        people = [left, right]
        if start > 56:
            people.reverse()
        numbers = one.number(people)
        found = dict(zip(("a", "b") if start <= 56 else ("b", "a"), numbers, strict=True))
        there.setdefault("a", found["a"])
        there.setdefault("b", found["b"])
        assert found == there
    assert len(one.tracks) == 2


def test_who_comes_back_is_known_by_colours_and_strangers_are_not() -> None:
    starts = list(range(0, 200, 8))
    one = tracker(starts)
    assert one.number([person(0.3, 1), person(0.7, 2)]) == [1, 2]
    for _ in range(5):
        assert one.number([person(0.3, 1)]) == [1]
    assert one.number([person(0.3, 1), person(0.6, 2)]) == [1, 2]
    for _ in range(3):
        assert one.number([]) == []
    assert one.number([person(0.7, 5)]) == [3]
    assert one.number([person(0.1, 1), person(0.7, 5)]) == [1, 3]


def test_who_was_away_for_long_is_forgotten() -> None:
    starts = list(range(0, 400, 8))
    one = tracker(starts)
    one.number([person(0.3, 1)])
    for _ in range(40):
        one.number([])
    assert one.number([person(0.3, 1)]) == [2]


def test_of_who_comes_and_goes_nothing_is_kept() -> None:
    """An hour of cuts has hundreds of people; what is known of them does not add up."""
    one = tracker(list(range(0, 8 * 3000, 8)))
    for number in range(3000):
        assert one.number([person(0.3, number % 64)] if number % 3 == 0 else []) != [0]
        assert sum(track.person is not None for track in one.tracks) <= 2
        assert len(one.tracks) <= 32  # those of the last ten seconds


def test_masks_lie_where_their_part_of_the_picture_is() -> None:
    whole = person(0.5, 0, masks=48)
    part = whole._replace(masks=whole.masks[:, :, 12:36], box=(0.25, 0.0, 0.75, 1.0))
    frames = np.array([2, 4, 9])
    np.testing.assert_allclose(masks_at(part, frames, KEYS), masks_at(whole, frames, KEYS))
    middle = between(whole.masks, np.array([2, 4, 6]), KEYS)
    np.testing.assert_allclose(middle[1], (middle[0] + middle[2]) / 2, atol=1e-6)


# --- a window ---


@pytest.mark.parametrize("picture", [(32, 48), (100, 50), (54, 96), (480, 720)])
@pytest.mark.parametrize("box", [WHOLE, (0.25, 0.5, 0.75, 1.0)])
def test_a_part_of_the_picture_fits_into_the_models(
    picture: tuple[int, int], box: tuple[float, float, float, float]
) -> None:
    fit = Fit.of(box, picture, (32, 48))
    frames = torch.full((1, 1, *picture), 200, dtype=torch.uint8)
    shown = fit.shown(frames, (32, 48))
    assert shown.shape == (1, 1, 32, 48)
    masks = shown[0, :, ::4, ::4].float()
    assert (fit.masks(masks) == 200).all()  # its masks are of that part,
    assert masks.sum() == fit.masks(masks).sum()  # and of nothing else
    _, _, height, width = fit.inner
    aspect = (box[3] - box[1]) * picture[0] / ((box[2] - box[0]) * picture[1])
    assert height == 8 or width == 12  # as large as can be
    assert abs(height - width * aspect) <= max(1, aspect)
    found = fit.box(box, picture)  # to half a pixel of the picture
    top, left = fit.inner[0] / 8, fit.inner[1] / 12
    assert found == pytest.approx((left, top, left + width / 12, top + height / 8), abs=0.02)


def seer(**changes: object) -> WindowPredictor:
    made = model(**changes)
    with torch.no_grad():
        made.state_head[-1].bias.copy_(torch.tensor([3.0, 0.0, -3.0, -3.0]))
    return WindowPredictor(made.eval(), Statistics(-6.0, 4.0))


def scene() -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(0)
    height, width = ENCODER.image_size
    frames = chance.integers(0, 255, size=(SHAPE.frames, height, width, 3)).astype(np.uint8)
    return frames, chance.normal(size=SHAPE.samples).astype(np.float32) * 0.1


def test_a_window_of_the_models_size_is_one_forward_pass() -> None:
    one = seer(motion_size=(32, 48))
    frames, wave = scene()
    found = one.predict(frames, wave)
    assert found
    grey = (torch.from_numpy(frames).float() @ torch.tensor([0.299, 0.587, 0.114])).round().byte()
    mixture = torch.from_numpy(wave)[None]
    inputs = Inputs(
        mixture=mixture,
        fbank=one.task.fbank(mixture),
        frames=torch.from_numpy(frames[one.keys])[None],
        motion=grey[None],
        cues=no_cues(1, ENCODER.image_grid, (64, 128), torch.device("cpu")),
        hint=torch.zeros(1, dtype=torch.int64),
    )
    with torch.no_grad():
        looked, voices = one.task.model(inputs)
    waves = voices.waves(len(wave))[0]
    masks = looked.masks[-1][0].sigmoid()
    for somebody in found:
        slot = somebody.slot
        torch.testing.assert_close(torch.from_numpy(somebody.voice), waves[slot])
        torch.testing.assert_close(
            torch.from_numpy(somebody.activity_prob), voices.activity_logits[0, slot].sigmoid()
        )
        shown = torch.from_numpy(somebody.masks).float() / 255
        # But for specks, which are taken out of them.
        speck = (shown - masks[slot]).abs() >= 0.01
        assert not shown[speck].any()
        assert (masks[slot][speck] > 0.5).all()
        assert speck.float().mean() < 0.02
        assert somebody.colors.sum() == pytest.approx(1, abs=1e-4)


def test_slots_on_the_same_pixels_are_one_person() -> None:
    """With all that their slots say."""
    one = seer()
    with torch.no_grad():
        one.task.model.center_voting.initial_centers.copy_(torch.tensor([0.5, 0.6] * 4))
        slot_pos = one.task.model.slot_pos.weight
        slot_pos.copy_(slot_pos[:1].expand(5, -1))
        for parameter in one.task.model.query_generator.parameters():
            parameter.zero_()
    frames, wave = scene()
    kept = []
    whole = one.task.predict

    def found(inputs: Inputs) -> tuple[SlotPredictions, VoicePredictions]:
        kept.append(whole(inputs))
        return kept[-1]

    one.task.predict = found  # type: ignore[method-assign]
    (somebody,) = one.predict(frames, wave)
    voices = kept[0][1].waves(len(wave))[0, :-1]
    assert len(voices) == 4
    torch.testing.assert_close(torch.from_numpy(somebody.voice), voices.sum(0))


@pytest.mark.parametrize("kind", ["box", "point", "mask", "voice"])
def test_cues_reach_slot_0(kind: str) -> None:
    one = seer()
    frames, wave = scene()
    mask = np.zeros((64, 96), dtype=bool)
    mask[32:, :32] = True
    cue = {
        "box": Cue("box", box=(0.0, 0.5, 0.33, 1.0)),
        "point": Cue("point", box=(0.1, 0.8, 0.1, 0.8)),
        "mask": Cue("mask", box=(0.0, 0.5, 0.33, 1.0), mask=mask),
        "voice": Cue("voice", voice=wave[::-1].copy()),
    }[kind]
    fit = Fit.of(WHOLE, (64, 96), ENCODER.image_size)
    made = one._cues(cue, 1, fit, (64, 96))
    assert int(made.kind) == KINDS.index(kind)
    if kind == "voice":
        expected = one.task.fbank(torch.from_numpy(wave[::-1].copy())[None])
        torch.testing.assert_close(made.voice, expected)
    else:
        assert int(made.frame) == 1
        torch.testing.assert_close(made.box[0], torch.tensor(cue.box), atol=1e-6, rtol=0)
        region = torch.zeros(2, 3)
        region[1, 0] = 1.0
        assert (made.region[0] - region).abs().max() < 0.02
    plain = one.predict(frames, wave)
    cued = one.predict(frames, wave, cue=cue, key=1)
    assert [p.presence_prob for p in plain] != [p.presence_prob for p in cued]
