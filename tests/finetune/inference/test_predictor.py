"""Prediction of a window: its input, its memory, parts of one person, cues."""

from typing import Any

import numpy as np
import pytest
import torch

from cavmae.common.boxes import WHOLE
from cavmae.finetune.inference import predictor as predictor_module
from cavmae.finetune.inference.predictor import Cue, Letterbox, WindowPredictor
from cavmae.finetune.inference.settings import Thresholds
from cavmae.finetune.speaker import prediction
from cavmae.finetune.speaker.cues import KINDS, no_cues
from cavmae.finetune.speaker.model_tensors import Inputs, SlotPredictions, VoicePredictions
from tests.finetune.inference.predictors import make_predictor, scene, view_of
from tests.finetune.speaker.scenes import ENCODER


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
