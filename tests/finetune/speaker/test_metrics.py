"""Measures of predictions whose worth is known."""

import math

import pytest
import torch

from cavmae.finetune.separators import MixtureFeatures
from cavmae.finetune.speaker.losses import Targets, loss_weights, targets_of
from cavmae.finetune.speaker.metrics import (
    PersonMetrics,
    SceneMetrics,
    assigned,
    measure,
    summary,
)
from cavmae.finetune.speaker.model import SlotPredictions, VoicePredictions
from cavmae.finetune.speaker.settings import LossSettings
from cavmae.finetune.speaker.stft import spectrum
from tests.finetune.speaker.scenes import SAMPLES, batch


def truth(people: int = 2, target: int = -1) -> Targets:
    told = batch(2, people)
    scale = told["mixture"].square().mean(1, keepdim=True).sqrt()
    return targets_of(told, torch.full((2,), target), scale)


def found(
    known: Targets, masks: torch.Tensor | None = None, voices: torch.Tensor | None = None
) -> tuple[SlotPredictions, VoicePredictions]:
    """A model's output: by default all of the truth, in the order of people, two slots unused."""
    n, p, f, h, w = known.masks.shape
    shown = known.masks if masks is None else masks
    logits = torch.full((n, p + 2, f, h, w), -9.0)
    logits[:, :p][shown] = 9.0
    sounds = known.people.voices if voices is None else voices
    waves = torch.cat([sounds, torch.zeros(n, 2, SAMPLES), known.residual[:, None]], dim=1)
    states = torch.zeros(n, p + 3, 4)
    states[:, :p, 0] = 5.0
    states[:, p:-1, 3] = 5.0
    states[:, -1, 2] = 5.0  # there is noise
    empty = torch.zeros(1)
    looked = SlotPredictions(
        empty, empty, [states], [logits], empty, empty, MixtureFeatures(empty, empty), empty
    )
    return looked, VoicePredictions(spectrum(waves), states, empty, torch.ones(n, 1, 1))


def measured(
    known: Targets, looked: SlotPredictions, voices: VoicePredictions
) -> list[SceneMetrics]:
    waves, slots = assigned(looked, voices, known, loss_weights(LossSettings()))
    return measure(["a", "b"], waves, slots, known, looked, voices.states)


def test_the_truth_is_perfect() -> None:
    told = summary(measured(truth(), *found(truth())))
    assert told["iou"] == 1
    assert told["f_score"] == 1
    assert told["binding"] == 1
    assert told["confusion"] == 0
    assert told["state_acc"] == told["residual_acc"] == 1
    assert told["si_sdr"] > 40
    assert told["si_sdri"] > 30


def test_the_mixture_is_no_improvement() -> None:
    known = truth()
    same = known.mixture[:, None].expand(-1, 2, -1)
    told = summary(measured(known, *found(known, voices=same)))
    assert told["si_sdri"] == pytest.approx(0, abs=0.1)


def test_voices_of_the_other_masks_are_not_bound() -> None:
    """Masks and voices are each perfect, but not under one index."""
    known = truth()
    told = summary(measured(known, *found(known, voices=known.people.voices.flip(1))))
    assert told["binding"] == 0
    # One of both is right: the assignment is one.
    assert told["confusion"] == 1 or told["iou"] < 0.1


def test_only_who_is_said_to_be_somebody_binds() -> None:
    """A slot that is nobody holds a faint copy of a voice, better than the person's own."""
    known = truth()
    rough = known.people.voices + 0.2 * known.mixture[:, None]
    looked, voices = found(known, voices=rough)
    waves, slots = assigned(looked, voices, known, loss_weights(LossSettings()))
    waves[:, 2] = 1e-3 * known.people.voices[:, 0]

    def binding(states: torch.Tensor) -> float:
        return summary(measure(["a", "b"], waves, slots, known, looked, states))["binding"]

    assert binding(voices.states) == 1
    claimed = voices.states.clone()
    claimed[:, 2] = torch.tensor([9.0, 0.0, 0.0, 0.0])  # it claims to be somebody who speaks
    assert binding(claimed) == 0.5
    nobody = voices.states.clone()
    nobody[:, 0] = torch.tensor([0.0, 0.0, 0.0, 9.0])  # and a person who is denied is not bound
    assert binding(nobody) == 0.5


def test_frames_in_which_nobody_is_to_be_seen_count() -> None:
    known = truth()
    known.masks[:, 0, 0] = False
    clean = summary(measured(known, *found(known)))
    assert clean["iou"] == 1
    alarm = known.masks.clone()
    alarm[:, 0, 0, :10, :10] = True
    told = summary(measured(known, *found(known, masks=alarm)))
    assert told["iou"] == pytest.approx(0.75)  # one of two people, one of two frames
    assert told["f_score"] == pytest.approx(0.75)


def test_half_a_mask() -> None:
    known = truth()
    half = known.masks.clone()
    half[:, :, :, 20:] = False  # rows 8 to 20 of 8 to 32
    told = summary(measured(known, *found(known, masks=half)))
    assert told["iou"] == pytest.approx(0.5)
    assert told["f_score"] == pytest.approx(1.3 * 0.5 / (0.3 + 0.5))


def test_silence_is_measured_by_its_energy() -> None:
    known = truth()
    known.people.active[:, 1] = False
    known.people.voices[:, 1] = 0
    leak = known.people.voices.clone()
    leak[:, 1] = 0.1 * known.mixture
    told = summary(measured(known, *found(known, voices=leak)))
    assert told["silence_db"] == pytest.approx(-20, abs=0.2)


def test_a_voice_that_is_not_there_is_the_worst() -> None:
    known = truth()
    nothing = torch.zeros_like(known.people.voices)
    told = summary(measured(known, *found(known, voices=nothing)))
    assert told["si_sdr"] == told["sdr"] == -30


def test_of_silence_no_level_is_told() -> None:
    known = truth()
    silent = known._replace(
        people=known.people._replace(
            active=torch.zeros_like(known.people.active),
            voices=torch.zeros_like(known.people.voices),
        ),
        mixture=torch.zeros_like(known.mixture),
    )
    assert "silence_db" not in summary(measured(silent, *found(silent)))


def test_slots_that_claim_to_be_people_are_counted() -> None:
    known = truth()
    looked, voices = found(known)
    assert summary(measured(known, looked, voices))["false_slots"] == 0
    voices.states[:, 2, 0] = 99
    assert summary(measured(known, looked, voices))["false_slots"] == 1


def test_with_a_cue_only_whom_it_means_counts() -> None:
    known = truth(target=0)
    wrong = known.masks.clone()
    wrong[:, 1] = False
    told = summary(measured(known, *found(known, masks=wrong)), cued=True)
    assert told["iou"] == 1
    swapped = found(known, masks=known.masks.flip(1), voices=known.people.voices.flip(1))
    told = summary(measured(known, *swapped), cued=True)
    assert told["iou"] < 0.1  # slot 0 is meant, however well slot 1 would fit
    assert told["confusion"] == 1


def test_what_cannot_be_told_is_left_out() -> None:
    known = truth()
    known.people.masked[:] = False
    told = summary(measured(known, *found(known)))
    assert "iou" not in told
    assert "binding" not in told
    assert math.isfinite(told["si_sdri"])


def test_whom_nobody_talks_over_does_not_hide_the_others() -> None:
    def spoke(gain: float, overlap: float, confused: float) -> PersonMetrics:
        return PersonMetrics(
            True, si_sdr=gain, si_sdr_mixture=0.0, overlap=overlap, confusion=confused
        )

    scenes = [
        SceneMetrics("a", [spoke(30.0, 0.0, 0.0), spoke(2.0, 0.95, 0.0)]),
        SceneMetrics("b", [spoke(1.0, 1.0, 1.0), spoke(3.0, 0.5, 0.0)]),
    ]
    found = summary(scenes)
    assert found["si_sdri"] == pytest.approx(9.0)
    assert found["si_sdri_median"] == pytest.approx(2.5)
    assert found["si_sdri_overlapped"] == pytest.approx(1.5)
    assert found["confusion"] == pytest.approx(0.25)
    assert found["confusion_overlapped"] == pytest.approx(0.5)
