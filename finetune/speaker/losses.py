"""Losses of the speaker model. Spectra, energies and SDR are computed in float32.

Shapes: N clips, Q slots (Q' without the residual), P people at most, F key frames, K sampled
pixels, S samples.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cavmae.finetune.laterals.sync_loss import SyncLoss
from cavmae.finetune.separators.stft import compressed, spectrum
from cavmae.finetune.speaker.articulation_loss import articulation_loss
from cavmae.finetune.speaker.matcher import (
    ACTIVE_DB,
    FRAME_ACTIVE_DB,
    People,
    Points,
    assign,
    draw_points,
    energies_db,
    frame_energies_db,
    joint_costs,
    mask_costs,
    points_of,
    presence_costs,
    sdr,
    visual_costs,
)
from cavmae.finetune.speaker.model import SpeakerModel
from cavmae.finetune.speaker.model_tensors import (
    NONE,
    OFF_SCREEN,
    SILENT,
    SPEAKING,
    SlotPredictions,
    VoicePredictions,
)
from cavmae.finetune.speaker.settings import LossSettings

LEAST_PRESENCE = 0.05  # probability below which no lips are read in training


class Targets(NamedTuple):
    """Ground truth of a batch of composed scenes.

    Attributes:
        people: on-screen people; their voices at the level at which the mixture's RMS is 1.
        residual: [N, S], noise and off-screen voices, at that level.
        mixture: [N, S], at that level.
        masks: bool [N, P, F, H, W].
        articulation: [N, P, T, 4], articulation cues of the speech that people's lips show.
        articulated: bool [N, P], whose are known.
        target: int64 [N], the person that a cue assigns to slot 0; -1: no cue.
    """

    people: People
    residual: Tensor
    mixture: Tensor
    masks: Tensor
    articulation: Tensor
    articulated: Tensor
    target: Tensor


class SpeakerLosses(NamedTuple):
    """Total loss, its parts by name, and the slot of each person: int64 [N, P]."""

    total: Tensor
    parts: dict[str, Tensor]
    slots: Tensor


def assign_before_voices(
    predictions: SlotPredictions, targets: Targets, settings: LossSettings
) -> tuple[Tensor, Tensor]:
    """Assignment of people to slots by masks and presence, for teacher forcing.

    Returns:
        slots int64 [N, P] (:func:`cavmae.finetune.speaker.matcher.assign`), and the sampled pixels
        int64 [N, F, count].
    """
    pixels = draw_points(targets.masks.shape, settings.points, targets.masks.device)
    points = points_of(predictions.masks[-1].detach(), targets.masks, pixels)
    costs = presence_costs(targets.people, settings, predictions.states[-1][:, :-1], points)
    return assign(costs, targets.people.present, targets.target), pixels


def teacher_force_masks(
    masks: Tensor, targets: Targets, slots: Tensor, below: float
) -> tuple[Tensor, Tensor]:
    """Replace the masks of assigned slots by the true ones while their IoU is low.

    Voices decoded from wrong pixels, early or late in training, learn to ignore the pixels.

    Args:
        masks: [N, Q', F, h, w], 0 to 1.
        slots: int64 [N, P], the slot of each person.
        below: IoU over all key frames below which a mask is replaced.

    Returns:
        masks of the same shape, without gradient; and bool [N, P], where one was replaced.
    """
    size = masks.shape[-2], masks.shape[-1]
    true = functional.adaptive_avg_pool2d(targets.masks.flatten(0, 1).float(), size)
    true = true.unflatten(0, targets.masks.shape[:2])  # [N, P, F, h, w]
    forced = masks.detach().clone()
    replaced = targets.people.present & targets.people.masked
    rows, people = replaced.nonzero(as_tuple=True)
    predicted = forced[rows, slots[rows, people]] > 0.5
    wanted = true[rows, people] > 0.5
    intersection = (predicted & wanted).flatten(1).sum(1)
    union = (predicted | wanted).flatten(1).sum(1).clamp(min=1)
    replaced[rows, people] = intersection < below * union
    rows, people = replaced.nonzero(as_tuple=True)
    forced[rows, slots[rows, people]] = true[rows, people].to(forced.dtype)
    return forced, replaced


def without_idle_masks(
    masks: Tensor, presence_prob: Tensor, people: People, slots: Tensor
) -> Tensor:
    """Masks in which slots that are hardly people are empty, so that no lips are read under them.

    Args:
        masks: [N, Q', F, h, w].
        presence_prob: [N, Q'].
        people: who are in ``slots``, int64 [N, P]; those keep their masks.
    """
    read = presence_prob >= LEAST_PRESENCE
    rows, persons = people.present.nonzero(as_tuple=True)
    read[rows, slots[rows, persons]] = True
    return masks * read[..., None, None, None]


def presence_targets(
    presence_prob: Tensor, targets: Targets, slots: Tensor, replaced: Tensor
) -> Tensor:
    """Presence of slots by their assignment, in clips with a teacher-forced mask.

    Clips in which some person has no mask keep the predicted presence, since their assignment is
    uncertain.

    Args:
        presence_prob: [N, Q'], of the predicted states.
        slots: int64 [N, P], the slot of each person.
        replaced: bool [N, P], of :func:`teacher_force_masks`.

    Returns:
        [N, Q'], 0 to 1.
    """
    people = targets.people
    forced = replaced.any(1) & (people.masked | ~people.present).all(1)
    presence = torch.where(forced[:, None], torch.zeros_like(presence_prob), presence_prob)
    rows, persons = (people.present & forced[:, None]).nonzero(as_tuple=True)
    presence[rows, slots[rows, persons]] = 1.0
    return presence


def speaker_losses(
    predictions: SlotPredictions,
    voices: VoicePredictions,
    targets: Targets,
    pixels: Tensor,
    settings: LossSettings,
) -> SpeakerLosses:
    """All losses under one joint assignment of people to slots.

    Args:
        pixels: of :func:`assign_before_voices`.
        settings: weights of the losses.
    """
    people = targets.people
    waves = voices.waves(targets.mixture.shape[-1]) / voices.scale
    points = points_of(predictions.masks[-1].detach(), targets.masks, pixels)
    costs = joint_costs(
        people, settings, voices.states[:, :-1], points, waves[:, :-1], targets.mixture
    )
    slots = assign(costs, people.present, targets.target)
    states = [*predictions.states, voices.states]
    parts = _visual_parts(
        predictions, states, voices.articulation, targets, slots, pixels, settings
    )
    parts |= _voice_losses(voices, waves, targets, slots)
    return SpeakerLosses(_weighted_sum(parts, settings), parts, slots)


def visual_losses(
    predictions: SlotPredictions,
    articulation: Tensor | None,
    targets: Targets,
    pixels: Tensor,
    settings: LossSettings,
) -> SpeakerLosses:
    """Losses of masks, states and articulation cues, for training that decodes no voices.

    Args:
        articulation: [N, Q', T, 4], cues of all slots; None: they were not read.
        pixels: of :func:`assign_before_voices`.
        settings: weights of the losses.
    """
    people, states = targets.people, predictions.states
    points = points_of(predictions.masks[-1].detach(), targets.masks, pixels)
    costs = visual_costs(people, settings, states[-1][:, :-1], points)
    slots = assign(costs, people.present, targets.target)
    parts = _visual_parts(predictions, states, articulation, targets, slots, pixels, settings)
    return SpeakerLosses(_weighted_sum(parts, settings), parts, slots)


def _weighted_sum(parts: dict[str, Tensor], settings: LossSettings) -> Tensor:
    factors = {
        "state": settings.state_weight,
        "mask_bce": settings.entropy_weight,
        "dice": settings.dice_weight,
        "center_vote": settings.center_vote_weight,
        "mixer": settings.mixer_weight,
        "activity": settings.activity_weight,
        "articulation": settings.articulation_weight,
        "sdr": -settings.sdr_weight,
        "spectrum": settings.spectrum_weight,
        "silence": settings.silence_weight,
    }
    return torch.stack([factors[name] * part for name, part in parts.items()]).sum()


def _visual_parts(
    predictions: SlotPredictions, state_logits: list[Tensor], articulation: Tensor | None,
    targets: Targets, slots: Tensor, pixels: Tensor, settings: LossSettings,
) -> dict[str, Tensor]:  # fmt: skip
    """Losses of states, masks and articulation cues of people in slots int64 [N, P]."""
    people = targets.people
    all_points = [points_of(masks, targets.masks, pixels) for masks in predictions.masks]
    rows, persons = people.present.nonzero(as_tuple=True)
    person_slots = slots[rows, persons]
    parts: dict[str, Tensor] = {}
    states = torch.full(state_logits[-1].shape[:2], NONE, device=slots.device)
    states[rows, person_slots] = torch.where(people.active[rows, persons], SPEAKING, SILENT)
    residual_audible = energies_db(targets.residual[:, None], targets.mixture)[:, 0] > ACTIVE_DB
    states[residual_audible, -1] = OFF_SCREEN
    parts["state"] = torch.stack(
        [_state_loss(logits, states, settings.no_object_weight) for logits in state_logits]
    ).mean()
    has_mask = people.masked[rows, persons]
    pairs = rows[has_mask], person_slots[has_mask], persons[has_mask]
    mask_parts = [_mask_losses(points, pairs) for points in all_points]
    parts["mask_bce"] = torch.stack([entropy for entropy, _ in mask_parts]).mean()
    parts["dice"] = torch.stack([dice for _, dice in mask_parts]).mean()
    parts["center_vote"] = vote_loss(predictions.votes, targets, pixels)
    parts["mixer"] = _mixer_loss(predictions.mixed, targets, pixels)
    if articulation is not None:
        parts["articulation"] = _articulation_loss(articulation, targets, slots)
    return parts


def _state_loss(logits: Tensor, states: Tensor, no_object: float) -> Tensor:
    weight = torch.where(states == NONE, no_object, 1.0)
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), states.flatten(), reduction="none"
    )
    return (losses * weight.flatten()).sum() / weight.sum()


def _mask_losses(points: Points, pairs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Cross-entropy and dice loss of pairs of (clip, slot, person); 0 without pairs."""
    rows, slots, people = pairs
    matched = Points(points.predicted[rows, slots][:, None], points.truth[rows, people][:, None])
    entropy, dice = mask_costs(matched)
    count = max(1, len(rows))
    return entropy.sum() / count, dice.sum() / count


def vote_loss(votes: Tensor, targets: Targets, pixels: Tensor) -> Tensor:
    """Mean L1 distance of votes of people's pixels from their person's center.

    Args:
        votes: [N, 2, F, h, w], as fractions of the frame.
    """
    has_mask = targets.people.masked & targets.people.present
    masks = (targets.masks & has_mask[:, :, None, None, None]).float()  # [N, P, F, H, W]
    height, width = masks.shape[-2:]
    x = (torch.arange(width, device=masks.device) + 0.5) / width
    y = (torch.arange(height, device=masks.device) + 0.5) / height
    total = masks.flatten(2).sum(-1).clamp(min=1)
    centers = torch.stack(
        [(masks.sum((2, 3)) * x).sum(-1) / total, (masks.sum((2, 4)) * y).sum(-1) / total], dim=1
    )  # [N, 2, P]
    points = points_of(votes, targets.masks & has_mask[:, :, None, None, None], pixels)
    distance = (points.predicted - centers @ points.truth).abs().sum(1)
    masked_pixels = points.truth.sum(1)
    return (distance * masked_pixels).sum() / masked_pixels.sum().clamp(min=1)


def _mixer_loss(mixed: Tensor, targets: Targets, pixels: Tensor) -> Tensor:
    """Dice loss of the mixer's channel mean [N, F, h, w] with the union of speaking people's masks.

    Clips with a speaking person without a mask do not count.
    """
    people = targets.people
    audible = (targets.masks & people.active[:, :, None, None, None]).any(1, keepdim=True)
    _, dice = mask_costs(points_of(mixed[:, None], audible, pixels))
    complete = ~(people.active & ~people.masked).any(1)
    return (dice[:, 0, 0] * complete).sum() / complete.sum().clamp(min=1)


def _articulation_loss(predicted: Tensor, targets: Targets, slots: Tensor) -> Tensor:
    """Loss of cues [N, Q', T, 4] of assigned slots, where they are known."""
    rows, persons = (targets.people.present & targets.articulated).nonzero(as_tuple=True)
    return articulation_loss(
        predicted[rows, slots[rows, persons]], targets.articulation[rows, persons]
    )


def _voice_losses(
    voices: VoicePredictions, waves: Tensor, targets: Targets, slots: Tensor
) -> dict[str, Tensor]:
    """Losses of assigned slots and of the residual; inactive ones are to be silent."""
    people = targets.people
    n, q = waves.shape[:2]
    # Reference waveform of each slot: its person's voice, the residual, or silence.
    wanted = torch.zeros_like(waves)
    rows, persons = people.present.nonzero(as_tuple=True)
    wanted[rows, slots[rows, persons]] = people.voices[rows, persons]
    wanted[:, -1] = targets.residual
    assigned = torch.zeros(n, q, dtype=torch.bool, device=waves.device)
    assigned[rows, slots[rows, persons]] = True
    assigned[:, -1] = True
    active = assigned & (energies_db(wanted, targets.mixture) > ACTIVE_DB)
    count = active.sum().clamp(min=1)
    frames = voices.activity_logits.shape[-1]
    audible_frames = frame_energies_db(wanted, targets.mixture, frames) > FRAME_ACTIVE_DB
    activity = functional.binary_cross_entropy_with_logits(
        voices.activity_logits.float(), audible_frames.float(), reduction="none"
    ).mean(2)
    ratio = (sdr(waves, wanted) * active).sum() / count
    predicted = compressed(voices.spectra[active][..., :-1, :-1])
    true = compressed(spectrum(wanted[active])[..., :-1, :-1])
    energy = energies_db(waves, targets.mixture)
    silent = assigned & ~active
    return {
        "activity": (activity * assigned).sum() / assigned.sum(),
        "sdr": ratio,
        "spectrum": (predicted - true).abs().mean(dim=(1, 2, 3)).sum() / count,
        "silence": (energy * silent).sum() / silent.sum().clamp(min=1),
    }


def targets_of(batch: dict[str, Tensor], target: Tensor, scale: Tensor) -> Targets:
    """Targets of a batch of :func:`cavmae.datasets.mixtures.scene_stream.collate`.

    Args:
        target: int64 [N], the person that a cue assigns to slot 0; -1: no cue.
        scale: [N, 1], RMS of the mixtures.
    """
    voices = batch["voices"].float() / scale[:, None]
    mixture = batch["mixture"].float() / scale
    audible = energies_db(voices, mixture) > ACTIVE_DB
    people = People(batch["present"], batch["speaking"] & audible, batch["masked"], voices)
    return Targets(
        people, batch["residual"].float() / scale, mixture, batch["masks"],
        batch["articulation"], batch["articulated"], target,
    )  # fmt: skip


def person_sync_loss(
    sync: SyncLoss,
    model: SpeakerModel,
    grey: Tensor,
    predictions: SlotPredictions,
    targets: Targets,
    fbanks: Tensor,
    log_mel: Tensor,
    progress: float,
) -> Tensor:
    """Synchronisation of the motion of each person with the person's clean voice.

    The motion of a whole scene with several people is in step with no single voice. Each person is
    a clip of their own instead: motion under the true mask, before audio joins it, and the clean
    voice. People who are silent or without a mask do not count.

    Args:
        sync: the loss with its projections.
        grey: uint8 [N, T, h, w], grey frames.
        fbanks: [N P, 4 T, mel] of clean voices, normalised.
        log_mel: the same, not normalised.
        progress: fraction of training that is done.
    """
    people = targets.people
    video = model.slot_motion(grey, predictions.visual_motion, targets.masks.float()).flatten(0, 1)
    assert model.lateral.audio is not None
    audio = model.lateral.audio(fbanks)  # [N P, channels, 4 T]
    audio = functional.adaptive_avg_pool1d(audio, video.shape[1]).transpose(1, 2)
    ids = torch.arange(len(video), device=video.device)
    usable = (people.present & people.masked & people.active).flatten()
    return sync(video, audio, log_mel, ids, ids, usable, progress)
