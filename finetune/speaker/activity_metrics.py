"""Metrics of when each person talks, in frames of 40 ms and in speech spans.

Frame-level average precision is that of active speaker detection (AVA-ActiveSpeaker, arXiv
1901.01342), pooled over all frames of all visible people; of a random score it is the fraction of
active frames. The diarization error rate is that of pyannote.metrics. Pairs of scenes with the same
frames (:mod:`cavmae.datasets.mixtures.voice_pairs`) measure whether a person's own voice is
distinguished from another on the same moving mouth.

Shapes: N scenes, Q slots (Q' without the residual), P people at most, T frames of 40 ms.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cavmae.datasets.mixtures.voice_pairs import PairedScene
from cavmae.finetune.speaker.losses import Targets
from cavmae.finetune.speaker.matcher import (
    FRAME_ACTIVE_DB,
    assign,
    frame_energies_db,
    grid_points,
    presence_costs,
)
from cavmae.finetune.speaker.model_tensors import (
    NONE,
    OFF_SCREEN,
    SlotPredictions,
    VoicePredictions,
)
from cavmae.finetune.speaker.settings import LossSettings


class DiarizationErrors(NamedTuple):
    """Durations in seconds, as in pyannote.metrics; overlapped speech counts for every speaker.

    Attributes:
        total: speech of all people.
        missed: speech that no predicted person has.
        false_alarm: predicted speech without a person.
        confusion: speech that another predicted person has.
    """

    total: float
    missed: float
    false_alarm: float
    confusion: float

    @property
    def rate(self) -> float:
        """Diarization error rate; NaN without speech."""
        errors = self.missed + self.false_alarm + self.confusion
        return errors / self.total if self.total else math.nan


class SceneActivity(NamedTuple):
    """When the people of a scene talk, predicted and true.

    Attributes:
        talking_prob: float32 [people, T], probability that each person talks.
        active: bool [people, T], whether their voice is in the mixture.
        voice_score: in a paired scene, mean probability that the person of the pair talks while the
            voice of the pair, theirs or another, is active; NaN: no paired scene.
        own_voice: whether that voice is their own.
        diarization: by collar in seconds; empty: not measured.
    """

    talking_prob: np.ndarray
    active: np.ndarray
    voice_score: float = math.nan
    own_voice: bool = False
    diarization: Mapping[float, DiarizationErrors] = {}


def talking_probs(voices: VoicePredictions) -> tuple[Tensor, Tensor]:
    """Probability that each slot is a person, and that it is one who talks in each frame.

    Returns:
        float32 [N, Q'] and [N, Q', T]; the second is the first times the activity.
    """
    states = voices.states[:, :-1].float().softmax(-1)
    presence_prob = 1 - states[..., NONE] - states[..., OFF_SCREEN]
    activity_prob = voices.activity_logits[:, :-1].float().sigmoid()
    return presence_prob, activity_prob * presence_prob[..., None]


def _assign_without_voices(
    predictions: SlotPredictions, voices: VoicePredictions, targets: Targets, joint: Tensor
) -> Tensor:
    """Slots int64 [N, P] of people by masks, among those that are said to be people.

    An assignment that compares voices, or who is said to speak, would, of several slots that cover
    a person, choose the slot that is right about who talks.

    Args:
        joint: int64 [N, P], the assignment of scenes with a person whose mask is not known.
    """
    people = targets.people
    points = grid_points(predictions.masks[-1], targets.masks)
    costs = presence_costs(people, LossSettings(), voices.states[:, :-1], points)
    slots = assign(costs, people.present, targets.target)
    has_masks = (people.masked | ~people.present).all(1, keepdim=True)
    return torch.where(has_masks, slots, joint)


def scene_activities(
    keys: Sequence[str],
    predictions: SlotPredictions,
    voices: VoicePredictions,
    targets: Targets,
    slots: Tensor,
    pairs: Mapping[str, PairedScene],
) -> list[SceneActivity]:
    """Activity of the people of each scene of a batch.

    Args:
        keys: names of the scenes.
        slots: int64 [N, P], the joint assignment.
        pairs: paired scenes, by key.
    """
    people = targets.people
    slots = _assign_without_voices(predictions, voices, targets, slots)
    frames = voices.activity_logits.shape[-1]
    sources = torch.cat([people.voices, targets.residual[:, None]], dim=1)
    active = frame_energies_db(sources, targets.mixture, frames) > FRAME_ACTIVE_DB  # [N, P + 1, T]
    active_npt = active.cpu().numpy()
    _, talking_prob = talking_probs(voices)
    index = slots.clamp(min=0)[..., None].expand(-1, -1, frames)
    prob_npt = talking_prob.gather(1, index).cpu().numpy()
    scenes = []
    for row, key in enumerate(keys):
        count = int(people.present[row].sum())
        activity = SceneActivity(prob_npt[row, :count], active_npt[row, :count])
        if key in pairs:
            person, own_voice = pairs[key]
            voice_frames = active_npt[row, person if own_voice else -1]
            score = voice_score(prob_npt[row, person], voice_frames)
            activity = activity._replace(voice_score=score, own_voice=own_voice)
        scenes.append(activity)
    return scenes


def voice_score(talking_prob: np.ndarray, voice_frames: np.ndarray) -> float:
    """Mean probability [T] that a person talks, over the frames bool [T] of a voice; NaN: none."""
    return float(talking_prob[voice_frames].mean()) if voice_frames.any() else math.nan


def activity_scores(
    activities: Sequence[tuple[SceneActivity, Sequence[int]]],
) -> dict[str, float]:
    """Pooled scores of activity; NaN where they are undefined.

    Args:
        activities: activity of each scene, and the numbers of the people who count.

    Returns:
        ``activity_ap`` and ``activity_auc`` over the frames of all people, ``own_voice_auc`` over
        all pairs of a scene with the own voice and a scene with another.
    """
    frames = [(a.talking_prob[people], a.active[people]) for a, people in activities]
    paired = [(a.voice_score, a.own_voice) for a, _ in activities if math.isfinite(a.voice_score)]
    prob = _pool([prob for prob, _ in frames], torch.float32)
    active = _pool([active for _, active in frames], torch.int64)
    scores = torch.tensor([score for score, _ in paired], dtype=torch.float32)
    own_voice = torch.tensor([own for _, own in paired], dtype=torch.int64)
    return {
        "activity_ap": average_precision(prob, active),
        "activity_auc": roc_auc(prob, active),
        "own_voice_auc": roc_auc(scores, own_voice),
    }


def _pool(parts: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
    """All values of several arrays, in one dimension."""
    flat = [torch.from_numpy(part).flatten() for part in parts]
    return torch.cat(flat).to(dtype) if flat else torch.zeros(0, dtype=dtype)


# torchmetrics takes as long to import as PyTorch, and training without evaluation needs none.
def average_precision(scores: Tensor, truth: Tensor) -> float:
    """Average precision of scores [M], 0 to 1, with truth [M], 0 or 1; NaN without a positive."""
    if not truth.any():
        return math.nan
    from torchmetrics.functional.classification import binary_average_precision

    return float(binary_average_precision(scores, truth))


def roc_auc(scores: Tensor, truth: Tensor) -> float:
    """Area under the ROC curve of scores [M] with truth [M]; NaN unless both classes occur."""
    if not truth.any() or truth.all():
        return math.nan
    from torchmetrics.functional.classification import binary_auroc

    return float(binary_auroc(scores, truth))


def diarization_scores(activities: Sequence[SceneActivity]) -> dict[str, float]:
    """Diarization error rates over all scenes, and the parts of that without a collar."""
    scores: dict[str, float] = {}
    for collar in dict.fromkeys(collar for a in activities for collar in a.diarization):
        parts = [a.diarization[collar] for a in activities if collar in a.diarization]
        errors = DiarizationErrors(*(math.fsum(values) for values in zip(*parts, strict=True)))
        scores["der_collar" if collar else "der"] = errors.rate
        if not collar and errors.total:
            for name in ("missed", "false_alarm", "confusion"):
                scores[f"der_{name}"] = getattr(errors, name) / errors.total
    return scores
