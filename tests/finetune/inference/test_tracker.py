"""Long recordings: windows, overlap-add, tracking of people, predictions of a window."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cavmae.common.boxes import WHOLE, Box
from cavmae.datasets.stream.transforms import Statistics
from cavmae.finetune.inference import predictor as predictor_module
from cavmae.finetune.inference.detections import DetectedPerson
from cavmae.finetune.inference.overlap_add import CrossfadeWeights, OverlapAdd, window_starts
from cavmae.finetune.inference.predictor import Cue, Letterbox, WindowPredictor
from cavmae.finetune.inference.settings import Thresholds
from cavmae.finetune.inference.shots import interpolate_masks, visible_keys
from cavmae.finetune.inference.tracker import Tracker, masks_at
from cavmae.finetune.inference.views import WindowView
from cavmae.finetune.speaker import prediction
from cavmae.finetune.speaker.cues import KINDS, no_cues
from cavmae.finetune.speaker.model_tensors import Inputs, SlotPredictions, VoicePredictions
from tests.finetune.speaker.scenes import ENCODER, SHAPE, model

LENGTH, KEYS = 16, np.array([2, 6, 10, 14])
THRESHOLDS = Thresholds()


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
    overlap_add = OverlapAdd(starts, length, frames)
    joined = np.zeros(frames, dtype=np.float32)
    newcomer = np.zeros(frames, dtype=np.float32)
    until = 0
    for number, start in enumerate(starts):
        waves = {0: wave[start : start + length]}
        if number >= late:
            waves[7] = np.ones(length, dtype=np.float32)
        first, parts = overlap_add.add(waves)
        assert first == until  # nothing is left out and nothing comes twice
        until = first + len(parts[0])
        joined[first:until] = parts[0]
        newcomer[first:until] = parts.get(7, 0)
    assert until == frames
    np.testing.assert_allclose(joined, wave[:frames], atol=1e-5)
    if late and late < len(starts):
        # A voice is silent before its first window, and then fades in.
        assert not newcomer[: starts[late]].any()
        rising = newcomer[starts[late] : starts[late] + length // 2]
        assert (np.diff(rising) > -1e-5).all()
    elif late == 0:
        np.testing.assert_allclose(newcomer, 1, atol=1e-5)


def test_absent_people_use_no_memory() -> None:
    """An hour with hundreds of people who come and go keeps no more than two windows of each."""
    starts = list(range(0, 8 * 300, 8))
    overlap_add = OverlapAdd(starts, 16, 8 * 300 + 8)
    for number in range(300):
        _, parts = overlap_add.add(
            {0: np.ones(16, np.float32), 1 + number: np.ones(16, np.float32)}
        )
        assert len(parts) <= 3
        assert len(overlap_add._pending) <= 3


# --- tracking ---


def person(place: float, color: int, tone: float = 0.0, masks: int = 24) -> DetectedPerson:
    """A still person, a fifth of the frame wide, centered at ``place``."""
    return moving(lambda _: place, color, tone, 0, masks)


def moving(where, color: int, tone: float, start: int, size: int = 24) -> DetectedPerson:  # type: ignore[no-untyped-def]
    values = np.zeros((len(KEYS), size, size), dtype=np.uint8)
    for number, key in enumerate(KEYS):
        middle = where(start + key)
        left, right = round((middle - 0.1) * size), round((middle + 0.1) * size)
        values[number, 4:, max(0, left) : max(0, right)] = 255
    time = (start * 40 + np.arange(LENGTH * 40)) / 1000
    colors = np.zeros((len(KEYS), 1, 1, 64), dtype=np.float32)
    colors[..., color] = 1
    voice = np.sin(2 * np.pi * tone * time).astype(np.float32)
    still = np.zeros(LENGTH, np.float32)
    return DetectedPerson(0, 0.9, np.ones(LENGTH, np.float32), WHOLE, values, voice, colors, still)


def make_tracker(starts: list[int], thresholds: Thresholds = THRESHOLDS) -> Tracker:
    return Tracker(starts, KEYS, LENGTH, 40, 25, thresholds)


def test_numbers_do_not_depend_on_the_order_of_people() -> None:
    tracker = make_tracker([0, 8, 16])
    a, b = person(0.25, 1), person(0.75, 1)
    assert tracker.assign_numbers([a, b]) == [1, 2]
    assert tracker.assign_numbers([b, a]) == [2, 1]
    # A newcomer between them.
    assert tracker.assign_numbers([person(0.5, 9), b, a]) == [3, 2, 1]


def test_numbers_survive_a_crossing() -> None:
    """Two people of one color change places; every window lists them from left to right."""
    starts = list(range(0, 120, 8))
    tracker = make_tracker(starts)
    expected = {}
    for start in starts:
        left = moving(lambda t: 0.2 + 0.6 * t / 120, 1, 5.0, start)
        right = moving(lambda t: 0.8 - 0.6 * t / 120, 1, 8.0, start)
        people = [left, right]
        if start > 56:
            people.reverse()
        numbers = tracker.assign_numbers(people)
        numbered = dict(zip(("a", "b") if start <= 56 else ("b", "a"), numbers, strict=True))
        expected.setdefault("a", numbered["a"])
        expected.setdefault("b", numbered["b"])
        assert numbered == expected
    assert len(tracker.tracks) == 2


def test_colors_identify_returning_people_but_no_strangers() -> None:
    starts = list(range(0, 200, 8))
    tracker = make_tracker(starts)
    assert tracker.assign_numbers([person(0.3, 1), person(0.7, 2)]) == [1, 2]
    for _ in range(5):
        assert tracker.assign_numbers([person(0.3, 1)]) == [1]
    assert tracker.assign_numbers([person(0.3, 1), person(0.6, 2)]) == [1, 2]
    for _ in range(3):
        assert tracker.assign_numbers([]) == []
    assert tracker.assign_numbers([person(0.7, 5)]) == [3]
    assert tracker.assign_numbers([person(0.1, 1), person(0.7, 5)]) == [1, 3]


def test_tracks_end_after_a_long_absence() -> None:
    starts = list(range(0, 400, 8))
    tracker = make_tracker(starts)
    tracker.assign_numbers([person(0.3, 1)])
    for _ in range(40):
        tracker.assign_numbers([])
    assert tracker.assign_numbers([person(0.3, 1)]) == [2]


@pytest.mark.parametrize(
    ("change", "numbers"),
    [
        ({}, [1, 1, 1]),
        ({"min_track_score": 0.8, "min_color_similarity": 1.0}, [1, 2, 1]),
        ({"min_track_score": 0.8, "min_color_similarity": 1.0, "voice_weight": 2.0}, [1, 1, 2]),
        ({"min_color_similarity": 0.99}, [1, 1, 2]),
        ({"max_absence": 0.1}, [1, 1, 2]),
    ],
)
def test_each_threshold_of_tracks_has_an_effect(
    change: dict[str, float], numbers: list[int]
) -> None:
    """A person moves by a part of their width, changes color a little, and leaves for a second."""
    tracker = make_tracker(list(range(0, 80, 8)), Thresholds(**change))
    first = moving(lambda _: 0.5, 1, 5.0, 0)
    second = moving(lambda _: 0.6, 1, 5.0, 8)
    second.colors[..., 2] = 1 / 19  # a similarity of 0.97
    assigned = [*tracker.assign_numbers([first]), *tracker.assign_numbers([second])]
    for _ in range(4):
        tracker.assign_numbers([])
    assert [*assigned, *tracker.assign_numbers([moving(lambda _: 0.1, 1, 9.0, 48)])] == numbers


def part(whole: DetectedPerson, *keys: int) -> DetectedPerson:
    """A person who is visible in some key frames only."""
    masks = np.zeros_like(whole.masks)
    masks[list(keys)] = whole.masks[list(keys)]
    return whole._replace(masks=masks)


def test_a_person_before_and_after_a_cut_is_one() -> None:
    """Two people change places at a cut in the second window; each has a slot on either side."""
    tracker = make_tracker([0, 8, 16, 24])
    assert tracker.assign_numbers([person(0.3, 1), person(0.7, 2)]) == [1, 2]
    before = part(person(0.3, 1), 0, 1), part(person(0.7, 2), 0, 1)
    after = part(person(0.2, 2), 2, 3), part(person(0.8, 1), 2, 3)
    assert tracker.assign_numbers([*after, *before]) == [2, 1, 1, 2]
    # In the third window, too, the first frames are those after the cut.
    assert tracker.assign_numbers([person(0.8, 1), person(0.2, 2)]) == [1, 2]
    assert tracker.assign_numbers([person(0.2, 2), person(0.8, 1)]) == [2, 1]


def test_both_sides_of_a_cut_in_a_first_window() -> None:
    tracker = make_tracker([0, 8])
    sides = [part(person(0.8, 1), 2, 3), part(person(0.2, 1), 0, 1), part(person(0.5, 4), 2, 3)]
    assert tracker.assign_numbers(sides) == [1, 1, 2]
    # Windows overlap: both sides are in the next one as well.
    again = [part(person(0.2, 1), 0), part(person(0.8, 1), 1, 2, 3), part(person(0.5, 4), 1, 2, 3)]
    assert tracker.assign_numbers(again) == [1, 1, 2]


def test_people_of_one_key_frame_never_share_a_number() -> None:
    """Look-alikes: the one after the cut is either, but not both."""
    tracker = make_tracker([0, 8, 16])
    twins = [person(0.2, 1), person(0.8, 1)]
    assert tracker.assign_numbers(twins) == [1, 2]
    cut = [part(twins[0], 0, 1), part(twins[1], 0, 1, 2), part(person(0.5, 1), 2, 3)]
    assert tracker.assign_numbers(cut) == [1, 2, 1]
    other = part(person(0.5, 1), 1, 2, 3)
    assert sorted(tracker.assign_numbers([*twins, other])) == [1, 2, 3]


@given(seed=st.integers(0, 500))
@settings(max_examples=30, deadline=None)
def test_numbers_of_a_window_are_apart_in_time(seed: int) -> None:
    """Two detections with one number share no key frame, for random detections."""
    rng = np.random.default_rng(seed)
    tracker = make_tracker(list(range(0, 8 * 6, 8)))
    for _ in range(6):
        people = []
        for _ in range(rng.integers(0, 6)):
            whole = person(rng.uniform(0.1, 0.9), int(rng.integers(3)))
            people.append(part(whole, *np.flatnonzero(rng.random(4) < 0.6)))
        numbers = tracker.assign_numbers(people)
        assert all(numbers)
        for (a, first), (b, second) in itertools.combinations(zip(numbers, people, strict=True), 2):
            assert a != b or not (visible_keys(first) & visible_keys(second)).any()


def test_memory_of_ended_tracks_is_freed() -> None:
    """An hour of cuts has hundreds of people; memory stays bounded."""
    tracker = make_tracker(list(range(0, 8 * 3000, 8)))
    for number in range(3000):
        assert tracker.assign_numbers([person(0.3, number % 64)] if number % 3 == 0 else []) != [0]
        assert sum(bool(track.detections) for track in tracker.tracks) <= 2
        assert len(tracker.tracks) <= 32  # those of the last ten seconds


def test_masks_lie_in_their_region_of_the_frame() -> None:
    whole = person(0.5, 0, masks=48)
    part = whole._replace(masks=whole.masks[:, :, 12:36], box=(0.25, 0.0, 0.75, 1.0))
    frames = np.array([2, 4, 9])
    np.testing.assert_allclose(masks_at(part, frames, KEYS), masks_at(whole, frames, KEYS))
    middle = interpolate_masks(whole.masks, np.array([2, 4, 6]), KEYS)
    np.testing.assert_allclose(middle[1], (middle[0] + middle[2]) / 2, atol=1e-6)


# --- a window ---


@pytest.mark.parametrize("frame_size", [(32, 48), (100, 50), (54, 96), (480, 720)])
@pytest.mark.parametrize("box", [WHOLE, (0.25, 0.5, 0.75, 1.0)])
def test_a_region_of_the_frame_fits_into_the_input(
    frame_size: tuple[int, int], box: tuple[float, float, float, float]
) -> None:
    letterbox = Letterbox.of(box, frame_size, (32, 48))
    frames = torch.full((1, 1, *frame_size), 200, dtype=torch.uint8)
    resized = letterbox.resize(frames, (32, 48))
    assert resized.shape == (1, 1, 32, 48)
    masks = resized[0, :, ::4, ::4].float()
    assert (letterbox.crop_masks(masks) == 200).all()  # its masks are of that part,
    assert masks.sum() == letterbox.crop_masks(masks).sum()  # and of nothing else
    _, _, height, width = letterbox.inner
    aspect = (box[3] - box[1]) * frame_size[0] / ((box[2] - box[0]) * frame_size[1])
    assert height == 8 or width == 12  # as large as can be
    assert abs(height - width * aspect) <= max(1, aspect)
    mapped = letterbox.map_box(box, frame_size)  # to half a pixel of the frame
    top, left = letterbox.inner[0] / 8, letterbox.inner[1] / 12
    assert mapped == pytest.approx((left, top, left + width / 12, top + height / 8), abs=0.02)


def make_predictor(**changes: object) -> WindowPredictor:
    speaker = model(**changes)
    with torch.no_grad():
        speaker.state_head[-1].bias.copy_(torch.tensor([3.0, 0.0, -3.0, -3.0]))
    return WindowPredictor(speaker.eval(), Statistics(-6.0, 4.0))


def scene() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    height, width = ENCODER.image_size
    frames = rng.integers(0, 255, size=(SHAPE.frames, height, width, 3)).astype(np.uint8)
    return frames, rng.normal(size=SHAPE.samples).astype(np.float32) * 0.1


def view_of(
    predictor: WindowPredictor, frames: Sequence[np.ndarray] | np.ndarray, box: Box = WHOLE
) -> WindowView:
    """View of a region of the frames of a window, uint8 [h, w, 3] each."""
    return WindowView(
        box,
        (frames[0].shape[0], frames[0].shape[1]),
        torch.stack([predictor.sizes.motion_of(frame, box) for frame in frames]),
        [predictor.sizes.key_of(frames[key], box) for key in predictor.keys],
    )


@pytest.mark.parametrize("is_large", [False, True])
def test_a_large_model_returns_its_memory_after_each_step(
    monkeypatch: pytest.MonkeyPatch, is_large: bool
) -> None:
    """A small one, whose windows share the heap, does not; the results are the same."""
    steps: list[str] = []
    frames, wave = scene()
    expected = make_predictor()
    people = expected.predict(view_of(expected, frames), expected.prepare(wave))
    monkeypatch.setattr(prediction, "trim_memory", lambda: steps.append("returned"))
    monkeypatch.setattr(predictor_module, "LARGE_WEIGHTS", 0 if is_large else 50_000_000)
    predictor = make_predictor()
    speaker = predictor.speaker.model
    for name in ("encode_mixture", "encode_frames", "predict_masks", "decode_voices"):
        whole = getattr(speaker, name)

        def step(*args: Any, name: str = name, whole: Any = whole, **options: Any) -> Any:
            steps.append(name)
            return whole(*args, **options)

        monkeypatch.setattr(speaker, name, step)
    view = view_of(predictor, frames)
    tokens = predictor.encode_key_views(view.key_views)[None]
    detected = predictor.predict(view, predictor.prepare(wave), tokens=tokens)
    names = ["encode_frames", "encode_mixture", "predict_masks", "decode_voices"]
    returned = ["returned"] if is_large else []
    assert steps == [step for name in names for step in (name, *returned)]
    assert [person.slot for person in detected] == [person.slot for person in people]
    np.testing.assert_allclose(detected[0].voice, people[0].voice, atol=1e-6)


def test_a_window_of_the_models_size_is_one_forward_pass() -> None:
    predictor = make_predictor(motion_height=32, motion_width=48)
    frames, wave = scene()
    people = predictor.predict(view_of(predictor, frames), predictor.prepare(wave))
    assert people
    grey = (torch.from_numpy(frames).float() @ torch.tensor([0.299, 0.587, 0.114])).round().byte()
    mixture = torch.from_numpy(wave)[None]
    inputs = Inputs(
        mixture=mixture,
        fbank=predictor.speaker.fbank(mixture),
        frames=torch.from_numpy(frames[predictor.keys])[None],
        motion=grey[None],
        cues=no_cues(1, ENCODER.image_grid, (64, 128), torch.device("cpu")),
        hint=torch.zeros(1, dtype=torch.int64),
    )
    with torch.no_grad():
        slot_predictions, voice_predictions = predictor.speaker.model(inputs)
    waves = voice_predictions.waves(len(wave))[0]
    masks = slot_predictions.masks[-1][0].sigmoid()
    for detected in people:
        slot = detected.slot
        torch.testing.assert_close(torch.from_numpy(detected.voice), waves[slot])
        torch.testing.assert_close(
            torch.from_numpy(detected.activity_prob),
            voice_predictions.activity_logits[0, slot].sigmoid(),
        )
        person_masks = torch.from_numpy(detected.masks).float() / 255
        # Specks are removed from the masks.
        speck = (person_masks - masks[slot]).abs() >= 0.01
        assert not person_masks[speck].any()
        assert (masks[slot][speck] > 0.5).all()
        assert speck.float().mean() < 0.02
        pixels = detected.masks[detected.masks > 127].sum() / 255
        assert detected.colors[:, 2].sum() == pytest.approx(pixels, rel=1e-2)


def make_alike(predictor: WindowPredictor) -> None:
    """Slots that all cover the same pixels."""
    speaker = predictor.speaker.model
    with torch.no_grad():
        speaker.center_voting.initial_centers.copy_(torch.tensor([0.5, 0.6] * 4))
        speaker.slot_pos.weight.copy_(speaker.slot_pos.weight[:1].expand(5, -1))
        for parameter in speaker.query_generator.parameters():
            parameter.zero_()


def record_voices(
    predictor: WindowPredictor,
) -> list[tuple[SlotPredictions, VoicePredictions]]:
    """List to which the following predictions of its speaker model are appended."""
    predictions = []
    predict = predictor.speaker.predict_voices

    def recorded(*inputs: Any) -> tuple[SlotPredictions, VoicePredictions]:
        predictions.append(predict(*inputs))
        return predictions[-1]

    predictor.speaker.predict_voices = recorded  # type: ignore[method-assign]
    return predictions


def test_slots_on_the_same_pixels_are_one_person_before_their_lips_are_read() -> None:
    predictor = make_predictor(head_size=16)
    predictor.thresholds = Thresholds(min_presence_prob=0.5)
    make_alike(predictor)
    predictions = record_voices(predictor)
    frames, wave = scene()
    (detected,) = predictor.predict(view_of(predictor, frames), predictor.prepare(wave))
    ((slots, voices),) = predictions
    others = [slot for slot in range(4) if slot != detected.slot]
    assert (slots.masks[-1][:, others] < -10).all()
    assert predictor.speaker.model.presence_prob(slots)[:, others].max() < 1e-6
    waves = voices.waves(len(wave))[0]
    assert not waves[others].any()
    torch.testing.assert_close(torch.from_numpy(detected.voice), waves[detected.slot])


def test_voices_of_parts_that_only_voices_show_to_be_people_add_up() -> None:
    predictor = make_predictor()
    predictor.thresholds = Thresholds(min_presence_prob=0.9)
    make_alike(predictor)
    with torch.no_grad():
        predictor.speaker.model.state_head[-1].bias.zero_()
        predictor.speaker.model.voice_state_head[-1].bias.copy_(torch.tensor([6.0, 0, -3, -3]))
    predictions = record_voices(predictor)
    frames, wave = scene()
    (detected,) = predictor.predict(view_of(predictor, frames), predictor.prepare(wave))
    ((slots, voices),) = predictions
    assert predictor.speaker.model.presence_prob(slots).max() < 0.9
    torch.testing.assert_close(
        torch.from_numpy(detected.voice), voices.waves(len(wave))[0, :-1].sum(0)
    )


@pytest.mark.parametrize("kind", ["box", "point", "mask", "voice"])
def test_cues_reach_slot_0(kind: str) -> None:
    predictor = make_predictor()
    frames, wave = scene()
    mask = np.zeros((64, 96), dtype=bool)
    mask[32:, :32] = True
    cue = {
        "box": Cue("box", box=(0.0, 0.5, 0.33, 1.0)),
        "point": Cue("point", box=(0.1, 0.8, 0.1, 0.8)),
        "mask": Cue("mask", box=(0.0, 0.5, 0.33, 1.0), mask=mask),
        "voice": Cue("voice", voice=wave[::-1].copy()),
    }[kind]
    letterbox = Letterbox.of(WHOLE, (64, 96), ENCODER.image_size)
    cues = predictor._cues(cue, 1, letterbox, (64, 96))
    assert int(cues.kind) == KINDS.index(kind)
    if kind == "voice":
        expected = predictor.speaker.fbank(torch.from_numpy(wave[::-1].copy())[None])
        torch.testing.assert_close(cues.voice, expected)
    else:
        assert int(cues.frame) == 1
        torch.testing.assert_close(cues.box[0], torch.tensor(cue.box), atol=1e-6, rtol=0)
        region = torch.zeros(2, 3)
        region[1, 0] = 1.0
        assert (cues.region[0] - region).abs().max() < 0.02
    plain = predictor.predict(view_of(predictor, frames), predictor.prepare(wave))
    cued = predictor.predict(view_of(predictor, frames), predictor.prepare(wave), cue, 1)
    assert [p.presence_prob for p in plain] != [p.presence_prob for p in cued]


@pytest.mark.parametrize(("kind", "expected"), [("box", [True, True]), ("voice", [False, True])])
def test_the_target_of_a_voice_is_in_slot_0_once_voices_are_there(
    kind: str, expected: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    cued = []
    merge = predictor_module.merge_slots

    def recorded(*inputs: Any) -> list[list[int]]:
        cued.append(inputs[3])
        return merge(*inputs)

    monkeypatch.setattr(predictor_module, "merge_slots", recorded)
    predictor = make_predictor()
    frames, wave = scene()
    cue = Cue("voice", voice=wave) if kind == "voice" else Cue("box", box=(0.0, 0.0, 0.5, 1.0))
    predictor.predict(view_of(predictor, frames), predictor.prepare(wave), cue, 1)
    assert cued == expected
