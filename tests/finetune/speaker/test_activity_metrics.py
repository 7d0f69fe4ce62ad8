"""Metrics of when people talk, of predictions of known quality."""

import math

import numpy as np
import pytest
import torch

from cavmae.datasets.mixtures.voice_pairs import PairedScene
from cavmae.finetune.inference.settings import Thresholds
from cavmae.finetune.speaker.activity_metrics import (
    DiarizationErrors,
    SceneActivity,
    activity_scores,
    average_precision,
    diarization_scores,
    roc_auc,
    scene_activities,
)
from cavmae.finetune.speaker.losses import Targets
from cavmae.finetune.speaker.model_tensors import SlotPredictions, VoicePredictions
from tests.finetune.speaker.scenes import SAMPLES, SHAPE
from tests.finetune.speaker.test_metrics import outputs, truth

FRAMES = SHAPE.frames
HALF = SAMPLES // 2


def turns() -> Targets:
    """Two people of whom the first talks in the first half and the second in the second half."""
    targets = truth()
    targets.people.voices[:, 0, HALF:] = 0
    targets.people.voices[:, 1, :HALF] = 0
    mixture = targets.people.voices.sum(1) + targets.residual
    return targets._replace(mixture=mixture)


def predicted(
    targets: Targets, talking: torch.Tensor
) -> tuple[SlotPredictions, VoicePredictions, torch.Tensor]:
    """Outputs with true masks and voices, and talking people bool [N, P, T] by their activity."""
    predictions, voices = outputs(targets)
    n, p = targets.people.present.shape
    logits = torch.full((n, p + 3, FRAMES), -6.0)
    logits[:, :p][talking] = 6.0
    slots = torch.arange(p).expand(n, -1)
    _, _, f, h, w = targets.masks.shape
    predictions = predictions._replace(votes=torch.zeros(n, 2, f, h, w))
    return predictions, voices._replace(activity_logits=logits), slots


def first_half(first: bool) -> torch.Tensor:
    """Talking bool [2, 2, T]: one person in the first half, the other in the second half."""
    talking = torch.zeros(2, 2, FRAMES, dtype=torch.bool)
    talking[:, 0 if first else 1, : FRAMES // 2] = True
    talking[:, 1 if first else 0, FRAMES // 2 :] = True
    return talking


def scores_of(targets: Targets, talking: torch.Tensor) -> dict[str, float]:
    predictions, voices, slots = predicted(targets, talking)
    activities = scene_activities(["a", "b"], predictions, voices, targets, slots, {})
    return activity_scores([(activity, [0, 1]) for activity in activities])


def test_true_activity_is_perfect_and_swapped_activity_is_the_worst() -> None:
    perfect = scores_of(turns(), first_half(True))
    assert perfect["activity_ap"] == perfect["activity_auc"] == 1
    swapped = scores_of(turns(), first_half(False))
    assert swapped["activity_auc"] == 0
    assert swapped["activity_ap"] == pytest.approx(0.5)  # all frames, at the lower threshold
    assert math.isnan(perfect["own_voice_auc"])


def test_only_people_who_count_are_pooled() -> None:
    right = SceneActivity(np.array([[0.9, 0.1], [0.1, 0.9]]), np.array([[1, 0], [1, 0]], bool))
    assert activity_scores([(right, [0])])["activity_auc"] == 1
    assert activity_scores([(right, [1])])["activity_auc"] == 0
    assert activity_scores([(right, [0, 1])])["activity_auc"] == pytest.approx(0.5)


def test_average_precision_and_auc_by_hand() -> None:
    scores, active = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([1, 0, 1, 0])
    assert average_precision(scores, active) == pytest.approx((1 + 2 / 3) / 2)
    assert roc_auc(scores, active) == pytest.approx(3 / 4)
    rng = torch.Generator().manual_seed(0)
    scores, active = torch.rand(20_000, generator=rng), torch.rand(20_000, generator=rng) < 0.3
    assert average_precision(scores, active.long()) == pytest.approx(0.3, abs=0.02)
    assert roc_auc(scores, active.long()) == pytest.approx(0.5, abs=0.02)
    assert math.isnan(average_precision(scores, torch.zeros(20_000)))
    assert math.isnan(roc_auc(scores, torch.ones(20_000)))


def test_a_slot_without_a_person_does_not_talk() -> None:
    targets = turns()
    predictions, voices, slots = predicted(targets, first_half(True))
    voices.states[:, 0] = torch.tensor([0.0, 0.0, 0.0, 9.0])
    activities = scene_activities(["a", "b"], predictions, voices, targets, slots, {})
    assert activities[0].talking_prob[0].max() < 0.01
    assert activities[0].talking_prob[1].max() > 0.9


def test_people_are_matched_by_their_masks() -> None:
    """The joint assignment, which has compared voices, is used where a mask is not known."""
    targets = turns()
    predictions, voices, slots = predicted(targets, first_half(True))
    right, again = (
        scene_activities(["a", "b"], predictions, voices, targets, joint, {})
        for joint in (slots, slots.flip(1))
    )
    assert np.array_equal(right[0].talking_prob, again[0].talking_prob)
    targets.people.masked[0, 1] = False
    without = scene_activities(["a", "b"], predictions, voices, targets, slots.flip(1), {})
    assert np.array_equal(without[0].talking_prob, right[0].talking_prob[::-1])
    assert np.array_equal(without[1].talking_prob, right[1].talking_prob)


def test_a_copy_of_a_person_that_is_said_to_be_nobody_is_not_the_person() -> None:
    """Its mask is a little better than that of the slot which is said to be the person."""
    targets = turns()
    predictions, voices, slots = predicted(targets, first_half(True))
    masks, unused = predictions.masks[-1], targets.masks.shape[1]
    masks[:, unused] = masks[:, 0]
    masks[:, 0] *= 0.1
    activities = scene_activities(["a", "b"], predictions, voices, targets, slots, {})
    assert activities[0].talking_prob[0].max() > 0.9
    voices.states[:, unused] = voices.states[:, 0]
    activities = scene_activities(["a", "b"], predictions, voices, targets, slots, {})
    assert activities[0].talking_prob[0].max() < 0.01  # the better one of two, which never talks


def test_own_voice_against_another() -> None:
    """A model that hears whose voice it is, one that sees a moving mouth, and one that is wrong."""
    own = turns()
    other = own._replace(  # the voice of person 0 is off-screen, and there is no noise
        residual=own.people.voices[:, 0].clone(),
        people=own.people._replace(voices=own.people.voices.clone()),
    )
    other.people.voices[:, 0] = 0

    def auc(talking_own: bool, talking_other: bool) -> float:
        activities = []
        for targets, is_own, talks in ((own, True, talking_own), (other, False, talking_other)):
            talking = torch.zeros(2, 2, FRAMES, dtype=torch.bool)
            talking[:, 0, : FRAMES // 2] = talks
            predictions, voices, slots = predicted(targets, talking)
            pairs = {"a": PairedScene(0, is_own)}
            activities += scene_activities(["a", "b"], predictions, voices, targets, slots, pairs)
        assert [math.isnan(a.voice_score) for a in activities] == [False, True] * 2
        assert activities[0].active[0, : FRAMES // 2].all()
        assert not activities[2].active[0].any()
        return activity_scores([(a, [0, 1]) for a in activities])["own_voice_auc"]

    assert auc(True, False) == 1
    assert auc(True, True) == 0.5
    assert auc(False, True) == 0


def test_only_frames_of_the_voice_are_scored() -> None:
    targets = turns()
    talking = torch.zeros(2, 2, FRAMES, dtype=torch.bool)
    talking[:, 0, FRAMES // 2 :] = True  # while person 0 is silent
    predictions, voices, slots = predicted(targets, talking)
    pairs = {"a": PairedScene(0, True)}
    activities = scene_activities(["a", "b"], predictions, voices, targets, slots, pairs)
    assert activities[0].voice_score < 0.01


def test_diarization_errors_by_hand() -> None:
    """Speech of 1 s and 2 s: 0.5 s are missed, 0.25 s false, and a third person talks for 1 s."""
    pytest.importorskip("pyannote.metrics")
    from cavmae.finetune.speaker.diarization import diarization_errors

    true = [[(0.0, 1.0)], [(1.0, 3.0)]]
    predicted_spans = [[(1.0, 2.5)], [(0.0, 1.25)], [(3.0, 4.0)]]
    errors = diarization_errors(true, predicted_spans, 4.0, 0.0)
    assert errors == pytest.approx((3.0, 0.5, 1.25, 0.0))
    assert errors.rate == pytest.approx(1.75 / 3)
    # 0.25 s on either side of the boundaries at 0, 1 and 3 s do not count.
    errors = diarization_errors(true, predicted_spans, 4.0, 0.25)
    assert errors == pytest.approx((2.0, 0.25, 0.75, 0.0))
    # Overlapped speech counts for both people; the mapping is the best of all.
    both = [[(0.0, 2.0)], [(0.0, 2.0)]]
    assert diarization_errors(both, [[(0.0, 2.0)]], 4.0, 0.0) == pytest.approx((4, 2, 0, 0))
    turn = [[(0.0, 1.0), (2.0, 3.0)], [(1.0, 2.0)]]
    one_person = [[(0.0, 3.0)]]
    assert diarization_errors(turn, one_person, 4.0, 0.0) == pytest.approx((3, 0, 0, 1))
    assert math.isnan(diarization_errors([], one_person, 4.0, 0.0).rate)


def test_diarization_of_true_and_of_false_people() -> None:
    pytest.importorskip("pyannote.metrics")
    from cavmae.finetune.speaker.diarization import diarize

    targets = turns()

    def scores(
        predictions: SlotPredictions, voices: VoicePredictions, slots: torch.Tensor
    ) -> dict[str, float]:
        activities = scene_activities(["a", "b"], predictions, voices, targets, slots, {})
        thresholds = Thresholds(max_pause=0.04)
        return diarization_scores(diarize(activities, predictions, voices, targets, thresholds))

    perfect = scores(*predicted(targets, first_half(True)))
    assert perfect["der"] == 0
    assert perfect["der_missed"] == perfect["der_false_alarm"] == perfect["der_confusion"] == 0
    predictions, voices, slots = predicted(targets, first_half(True))
    voices.states[:, 1] = torch.tensor([0.0, 0.0, 0.0, 9.0])
    missed = scores(predictions, voices, slots)  # of two people
    assert missed["der"] == missed["der_missed"] == pytest.approx(0.5)
    # A false person in slot 2, with the voice and the times of the first person.
    predictions, voices, slots = predicted(targets, first_half(True))
    voices.states[:, 2] = torch.tensor([9.0, 0.0, 0.0, 0.0])
    predictions.masks[-1][:, 2, :, :8] = 9.0  # above the other two, with another center
    predictions.votes[:, :, :, :8] = 0.9
    voices.activity_logits[:, 2] = voices.activity_logits[:, 0]
    voices.spectra[:, 2] = voices.spectra[:, 0]
    false = scores(predictions, voices, slots)
    assert false["der"] == false["der_false_alarm"] == pytest.approx(0.5)


def test_rates_are_pooled_over_scenes() -> None:
    def scene(*errors: float) -> SceneActivity:
        empty = np.zeros((0, FRAMES), np.float32)
        diarization = {0.0: DiarizationErrors(*errors), 0.25: DiarizationErrors(1.0, 0, 0, 0)}
        return SceneActivity(empty, empty > 0, diarization=diarization)

    scores = diarization_scores([scene(3.0, 1.0, 0.0, 0.5), scene(0.0, 0.0, 0.5, 0.0)])
    assert scores == {
        "der": pytest.approx(2 / 3), "der_missed": pytest.approx(1 / 3),
        "der_false_alarm": pytest.approx(0.5 / 3), "der_confusion": pytest.approx(0.5 / 3),
        "der_collar": 0.0,
    }  # fmt: skip
    assert diarization_scores([]) == {}
