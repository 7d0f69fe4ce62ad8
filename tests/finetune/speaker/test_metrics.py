"""Metrics of predictions of known quality."""

import math

import pytest
import torch

from cavmae.finetune.separators.stft import spectrum
from cavmae.finetune.speaker.losses import Targets, targets_of
from cavmae.finetune.speaker.metrics import (
    PersonMetrics,
    SceneMetrics,
    assign_slots,
    measure,
    summary,
)
from cavmae.finetune.speaker.model_tensors import SlotPredictions, VoicePredictions
from cavmae.finetune.speaker.settings import LossSettings
from tests.finetune.speaker.scenes import SAMPLES, batch


def truth(people: int = 2, target: int = -1) -> Targets:
    scenes = batch(2, people)
    scale = scenes["mixture"].square().mean(1, keepdim=True).sqrt()
    return targets_of(scenes, torch.full((2,), target), scale)


def outputs(
    targets: Targets, masks: torch.Tensor | None = None, voices: torch.Tensor | None = None
) -> tuple[SlotPredictions, VoicePredictions]:
    """Outputs of a model: by default the ground truth in the order of people, two slots unused."""
    n, p, f, h, w = targets.masks.shape
    predicted = targets.masks if masks is None else masks
    logits = torch.full((n, p + 2, f, h, w), -9.0)
    logits[:, :p][predicted] = 9.0
    references = targets.people.voices if voices is None else voices
    waves = torch.cat([references, torch.zeros(n, 2, SAMPLES), targets.residual[:, None]], dim=1)
    states = torch.zeros(n, p + 3, 4)
    states[:, :p, 0] = 5.0
    states[:, p:-1, 3] = 5.0
    states[:, -1, 2] = 5.0  # there is noise
    empty = torch.zeros(1)
    predictions = SlotPredictions(empty, empty, [states], [logits], *[empty] * 4)
    return predictions, VoicePredictions(spectrum(waves), states, empty, empty, torch.ones(n, 1, 1))


def measured(
    targets: Targets, predictions: SlotPredictions, voices: VoicePredictions
) -> list[SceneMetrics]:
    waves, slots = assign_slots(predictions, voices, targets, LossSettings())
    return measure(["a", "b"], waves, slots, targets, predictions, voices.states)


def test_the_truth_is_perfect() -> None:
    scores = summary(measured(truth(), *outputs(truth())))
    assert scores["iou"] == 1
    assert scores["f_score"] == 1
    assert scores["binding"] == 1
    assert scores["confusion"] == 0
    assert scores["state_acc"] == scores["residual_acc"] == 1
    assert scores["si_sdr"] > 40
    assert scores["si_sdri"] > 30


def test_the_mixture_is_no_improvement() -> None:
    targets = truth()
    same = targets.mixture[:, None].expand(-1, 2, -1)
    scores = summary(measured(targets, *outputs(targets, voices=same)))
    assert scores["si_sdri"] == pytest.approx(0, abs=0.1)


def test_voices_of_the_other_masks_are_not_bound() -> None:
    """Masks and voices are each perfect, but not under one index."""
    targets = truth()
    scores = summary(measured(targets, *outputs(targets, voices=targets.people.voices.flip(1))))
    assert scores["binding"] == 0
    # One of both is right: the assignment is one.
    assert scores["confusion"] == 1 or scores["iou"] < 0.1


def test_only_slots_with_the_state_of_a_person_bind() -> None:
    """A slot without a person has a faint copy of a voice, better than the person's own."""
    targets = truth()
    rough = targets.people.voices + 0.2 * targets.mixture[:, None]
    predictions, voices = outputs(targets, voices=rough)
    waves, slots = assign_slots(predictions, voices, targets, LossSettings())
    waves[:, 2] = 1e-3 * targets.people.voices[:, 0]

    def binding(states: torch.Tensor) -> float:
        return summary(measure(["a", "b"], waves, slots, targets, predictions, states))["binding"]

    assert binding(voices.states) == 1
    false_person = voices.states.clone()
    false_person[:, 2] = torch.tensor([9.0, 0.0, 0.0, 0.0])  # its state says speaking
    assert binding(false_person) == 0.5
    denied = voices.states.clone()
    denied[:, 0] = torch.tensor([0.0, 0.0, 0.0, 9.0])  # a person with the state none is not bound
    assert binding(denied) == 0.5


def test_frames_without_the_person_count() -> None:
    targets = truth()
    targets.masks[:, 0, 0] = False
    clean = summary(measured(targets, *outputs(targets)))
    assert clean["iou"] == 1
    alarm = targets.masks.clone()
    alarm[:, 0, 0, :10, :10] = True
    scores = summary(measured(targets, *outputs(targets, masks=alarm)))
    assert scores["iou"] == pytest.approx(0.75)  # one of two people, one of two frames
    assert scores["f_score"] == pytest.approx(0.75)


def test_half_a_mask() -> None:
    targets = truth()
    half = targets.masks.clone()
    half[:, :, :, 20:] = False  # rows 8 to 20 of 8 to 32
    scores = summary(measured(targets, *outputs(targets, masks=half)))
    assert scores["iou"] == pytest.approx(0.5)
    assert scores["f_score"] == pytest.approx(1.3 * 0.5 / (0.3 + 0.5))


def test_silence_is_measured_by_its_energy() -> None:
    targets = truth()
    targets.people.active[:, 1] = False
    targets.people.voices[:, 1] = 0
    leak = targets.people.voices.clone()
    leak[:, 1] = 0.1 * targets.mixture
    scores = summary(measured(targets, *outputs(targets, voices=leak)))
    assert scores["silence_db"] == pytest.approx(-20, abs=0.2)


def test_a_voice_that_is_not_there_is_the_worst() -> None:
    targets = truth()
    nothing = torch.zeros_like(targets.people.voices)
    scores = summary(measured(targets, *outputs(targets, voices=nothing)))
    assert scores["si_sdr"] == scores["sdr"] == -30


def test_a_silent_mixture_has_no_level() -> None:
    targets = truth()
    silent = targets._replace(
        people=targets.people._replace(
            active=torch.zeros_like(targets.people.active),
            voices=torch.zeros_like(targets.people.voices),
        ),
        mixture=torch.zeros_like(targets.mixture),
    )
    assert "silence_db" not in summary(measured(silent, *outputs(silent)))


def test_slots_that_claim_to_be_people_are_counted() -> None:
    targets = truth()
    predictions, voices = outputs(targets)
    assert summary(measured(targets, predictions, voices))["false_slots"] == 0
    voices.states[:, 2, 0] = 99
    assert summary(measured(targets, predictions, voices))["false_slots"] == 1


def test_with_a_cue_only_its_target_counts() -> None:
    targets = truth(target=0)
    wrong = targets.masks.clone()
    wrong[:, 1] = False
    scores = summary(measured(targets, *outputs(targets, masks=wrong)), cued=True)
    assert scores["iou"] == 1
    swapped = outputs(targets, masks=targets.masks.flip(1), voices=targets.people.voices.flip(1))
    scores = summary(measured(targets, *swapped), cued=True)
    assert scores["iou"] < 0.1  # the target is in slot 0, however well slot 1 fits
    assert scores["confusion"] == 1


def test_undefined_metrics_are_left_out() -> None:
    targets = truth()
    targets.people.masked[:] = False
    scores = summary(measured(targets, *outputs(targets)))
    assert "iou" not in scores
    assert "binding" not in scores
    assert math.isfinite(scores["si_sdri"])


def test_voices_too_short_for_stoi_do_not_count_as_unintelligible() -> None:
    """Of 0.64 s, the first person's voice lasts 0.2 s; STOI needs 0.4 s."""
    targets = truth()
    targets.people.voices[:, 0, 3200:] = 0
    predictions, voices = outputs(targets)
    waves, slots = assign_slots(predictions, voices, targets, LossSettings())
    scenes = measure(
        ["a", "b"], waves, slots, targets, predictions, voices.states, quality=["stoi"]
    )
    for scene in scenes:
        first, second = scene.people
        assert math.isnan(first.stoi) and math.isnan(first.stoi_mixture)
        assert second.stoi == pytest.approx(1, abs=0.01) and 0 < second.stoi_mixture < 1
    assert summary(scenes)["stoi"] == pytest.approx(1, abs=0.01)


def test_people_without_overlap_do_not_hide_the_others() -> None:
    def person(gain: float, overlap: float, confused: float) -> PersonMetrics:
        return PersonMetrics(
            True, si_sdr=gain, si_sdr_mixture=0.0, overlap=overlap, confusion=confused
        )

    scenes = [
        SceneMetrics("a", [person(30.0, 0.0, 0.0), person(2.0, 0.95, 0.0)]),
        SceneMetrics("b", [person(1.0, 1.0, 1.0), person(3.0, 0.5, 0.0)]),
    ]
    scores = summary(scenes)
    assert scores["si_sdri"] == pytest.approx(9.0)
    assert scores["si_sdri_median"] == pytest.approx(2.5)
    assert scores["si_sdri_overlapped"] == pytest.approx(1.5)
    assert scores["confusion"] == pytest.approx(0.25)
    assert scores["confusion_overlapped"] == pytest.approx(0.5)
