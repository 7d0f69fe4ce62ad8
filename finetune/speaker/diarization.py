"""Diarization errors of the speech spans of scenes, thresholded as in `cavmae separate`."""

from collections.abc import Sequence

from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.finetune.inference.audio import Span, loudness, spans_of, speech_spans
from cavmae.finetune.inference.settings import Thresholds
from cavmae.finetune.inference.slot_merging import merge_slots
from cavmae.finetune.speaker.activity_metrics import (
    DiarizationErrors,
    SceneActivity,
    talking_probs,
)
from cavmae.finetune.speaker.losses import Targets
from cavmae.finetune.speaker.model_tensors import SlotPredictions, VoicePredictions

COLLARS = (0.0, 0.25)  # s before and after each boundary of the true spans that do not count


def diarize(
    activities: Sequence[SceneActivity],
    predictions: SlotPredictions,
    voices: VoicePredictions,
    targets: Targets,
    thresholds: Thresholds,
) -> list[SceneActivity]:
    """Activities of the scenes of a batch with their diarization errors.

    The true spans are those of frames with an audible voice; their gaps are closed and blips are
    dropped by the same thresholds as those of the prediction.

    Args:
        activities: of :func:`~cavmae.finetune.speaker.activity_metrics.scene_activities`.
        thresholds: of people and speech.
    """
    samples = targets.mixture.shape[-1]
    waves = voices.waves(samples).float().cpu().numpy()
    mixtures = (targets.mixture * voices.scale[:, 0]).float().cpu().numpy()
    masks = predictions.masks[-1].float().sigmoid().cpu()
    votes = predictions.votes.float().cpu()
    presence_prob, _ = talking_probs(voices)
    activity_prob = voices.activity_logits.float().sigmoid().cpu().numpy()
    presence_prob = presence_prob.cpu()
    measured = []
    for row, activity in enumerate(activities):
        mixture_level = loudness(mixtures[row])
        people = merge_slots(masks[row], votes[row], presence_prob[row], False, thresholds)
        predicted = [
            speech_spans(
                loudness(waves[row, slots].sum(0)), mixture_level, activity_prob[row, slots[0]],
                thresholds,
            )
            for slots in people
        ]  # fmt: skip
        true = [spans_of(active, thresholds) for active in activity.active]
        errors = {
            collar: diarization_errors(true, predicted, samples / SAMPLE_RATE, collar)
            for collar in COLLARS
        }
        measured.append(activity._replace(diarization=errors))
    return measured


def diarization_errors(
    true: Sequence[Sequence[Span]],
    predicted: Sequence[Sequence[Span]],
    seconds: float,
    collar: float,
) -> DiarizationErrors:
    """Diarization errors under the best mapping of predicted to true people.

    Args:
        true: speech spans of each person, in seconds.
        predicted: speech spans of each predicted person.
        seconds: length of the scene.
        collar: seconds that do not count before and after each boundary of a true span, as in
            NIST's md-eval.
    """
    from pyannote.core import Annotation, Segment, Timeline
    from pyannote.metrics.diarization import DiarizationErrorRate

    def annotation(people: Sequence[Sequence[Span]]) -> Annotation:
        spans = Annotation()
        for person, person_spans in enumerate(people):
            for first, last in person_spans:
                spans[Segment(first, last), person] = person
        return spans

    # pyannote's collar is the sum of both sides.
    metric = DiarizationErrorRate(collar=2 * collar)
    extent = Timeline([Segment(0, seconds)])
    parts = metric.compute_components(annotation(true), annotation(predicted), uem=extent)
    return DiarizationErrors(
        total=float(parts["total"]),
        missed=float(parts["missed detection"]),
        false_alarm=float(parts["false alarm"]),
        confusion=float(parts["confusion"]),
    )
