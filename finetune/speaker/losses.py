"""What the speaker model is to learn. Spectra, energies and SDR in float32.

Shapes: N clips, Q slots (Q' without the residual), P people at most, S samples.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cavmae.finetune.speaker.matcher import (
    ACTIVE_DB,
    HEARD_DB,
    LossWeights,
    People,
    Points,
    assign,
    draw_points,
    energies_db,
    frame_energies_db,
    joint_costs,
    mask_costs,
    points_of,
    sdr,
)
from cavmae.finetune.speaker.model import (
    NONE,
    OFF_SCREEN,
    SILENT,
    SPEAKING,
    SlotPredictions,
    VoicePredictions,
)
from cavmae.finetune.speaker.settings import LossSettings
from cavmae.finetune.speaker.stft import compressed, spectrum


class Targets(NamedTuple):
    """What is known of a batch of composed scenes.

    Attributes:
        people: who is seen and heard; voices at the level at which the mixture's RMS is 1.
        rest: [N, S], what belongs to nobody seen, at that level.
        mixture: [N, S], likewise.
        masks: bool [N, P, F, H, W].
        target: int64 [N], who slot 0 is; -1: there is no cue.
    """

    people: People
    residual: Tensor
    mixture: Tensor
    masks: Tensor
    target: Tensor


class SpeakerLosses(NamedTuple):
    """A loss, its parts for the log, and which slot is who: int64 [N, P]."""

    total: Tensor
    parts: dict[str, Tensor]
    slots: Tensor


def loss_weights(settings: LossSettings) -> LossWeights:
    """Of the joint cost: those of the losses."""
    return LossWeights(
        settings.state, settings.entropy, settings.dice, settings.sdr, settings.silence
    )


def seen_slots(
    looked: SlotPredictions, truth: Targets, settings: LossSettings
) -> tuple[Tensor, Tensor]:
    """Which slot is who by masks alone, and the pixels that were looked at.

    To let true masks stand in for the slots' own before there are voices.

    Returns:
        int64 [N, P] (:func:`cavmae.finetune.speaker.matcher.assign`), and int64 [N, F, K].
    """
    pixels = draw_points(truth.masks.shape, settings.points, truth.masks.device)
    with torch.no_grad():
        points = points_of(looked.masks[-1], truth.masks, pixels)
        entropy, dice = mask_costs(points)
        costs = (settings.entropy * entropy + settings.dice * dice) * truth.people.masked[:, None]
    return assign(costs, truth.people.present, truth.target), pixels


def teacher_force_masks(
    masks: Tensor, truth: Targets, slots: Tensor, below: float
) -> tuple[Tensor, Tensor]:
    """Masks in which true ones stand in for those of people's slots that are still wrong.

    For as long as they are: voices that were given wrong pixels before they had learned to look at
    pixels at all, or after, learned to do without them.

    Args:
        masks: [N, Q', F, h, w], 0 to 1.
        slots: int64 [N, P].
        below: IoU of a slot's mask with its person's, over all key frames, that is wrong.

    Returns:
        the same shape, without gradient; and bool [N, P], whose mask was replaced.
    """
    size = masks.shape[-2], masks.shape[-1]
    true = functional.adaptive_avg_pool2d(truth.masks.flatten(0, 1).float(), size)
    true = true.unflatten(0, truth.masks.shape[:2])
    found = masks.detach().clone()
    replaced = truth.people.present & truth.people.masked
    rows, people = replaced.nonzero(as_tuple=True)
    own, wanted = found[rows, slots[rows, people]] > 0.5, true[rows, people] > 0.5
    both = (own & wanted).flatten(1).sum(1)
    either = (own | wanted).flatten(1).sum(1).clamp(min=1)
    replaced[rows, people] = both < below * either
    rows, people = replaced.nonzero(as_tuple=True)
    found[rows, slots[rows, people]] = true[rows, people].to(found.dtype)
    return found, replaced


def presence_targets(there: Tensor, truth: Targets, slots: Tensor, replaced: Tensor) -> Tensor:
    """Which slots are somebody, by what they are assigned, where a true mask had to stand in.

    Only in clips in which the pixels of all people are known, so that all slots are.

    Args:
        there: [N, Q'], of the slots' own states.
        slots: int64 [N, P].
        replaced: bool [N, P], of :func:`with_true_masks`.

    Returns:
        the same shape.
    """
    people = truth.people
    known = replaced.any(1) & (people.masked | ~people.present).all(1)
    found = torch.where(known[:, None], torch.zeros_like(there), there)
    rows, whom = (people.present & known[:, None]).nonzero(as_tuple=True)
    found[rows, slots[rows, whom]] = 1.0
    return found


def speaker_losses(
    looked: SlotPredictions,
    voices: VoicePredictions,
    truth: Targets,
    pixels: Tensor,
    settings: LossSettings,
) -> SpeakerLosses:
    """One assignment, and what it costs.

    Args:
        pixels: of :func:`seen_slots`.
    """
    people = truth.people
    waves = voices.waves(truth.mixture.shape[-1]) / voices.scale
    weights = loss_weights(settings)
    all_points = [points_of(masks, truth.masks, pixels) for masks in looked.masks]
    costs = joint_costs(
        people, weights, voices.states[:, :-1], all_points[-1], waves[:, :-1], truth.mixture
    )
    slots = assign(costs, people.present, truth.target)
    rows, whom = people.present.nonzero(as_tuple=True)
    which = slots[rows, whom]

    parts: dict[str, Tensor] = {}
    wanted = torch.full(voices.states.shape[:2], NONE, device=costs.device)
    wanted[rows, which] = torch.where(people.active[rows, whom], SPEAKING, SILENT)
    unseen = energies_db(truth.residual[:, None], truth.mixture)[:, 0] > ACTIVE_DB
    wanted[unseen, -1] = OFF_SCREEN
    parts["state"] = torch.stack(
        [_state_loss(s, wanted, settings.no_object) for s in (*looked.states, voices.states)]
    ).mean()
    known = people.masked[rows, whom]
    pairs = rows[known], which[known], whom[known]
    seen = [_mask_losses(points, pairs) for points in all_points]
    parts["mask_bce"] = torch.stack([entropy for entropy, _ in seen]).mean()
    parts["dice"] = torch.stack([dice for _, dice in seen]).mean()
    parts["votes"] = vote_loss(looked.votes, truth, pixels)
    parts["mixer"] = _mixer_loss(looked.mixed, truth, pixels)
    parts |= _voice_losses(voices, waves, truth, slots)
    factors = {
        "state": settings.state, "mask_bce": settings.entropy, "dice": settings.dice,
        "votes": settings.center_vote, "mixer": settings.mixer, "when": settings.activity,
        "sdr": -settings.sdr, "spectrum": settings.spectrum, "silence": settings.silence,
    }  # fmt: skip
    total = torch.stack([factor * parts[name] for name, factor in factors.items()]).sum()
    return SpeakerLosses(total, parts, slots)


def _state_loss(logits: Tensor, wanted: Tensor, no_object: float) -> Tensor:
    weight = torch.where(wanted == NONE, no_object, 1.0)
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), wanted.flatten(), reduction="none"
    )
    return (losses * weight.flatten()).sum() / weight.sum()


def _mask_losses(points: Points, pairs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Cross-entropy and dice loss of pairs of (clip, slot, person); 0 if there is none."""
    rows, slots, people = pairs
    one = Points(points.predicted[rows, slots][:, None], points.truth[rows, people][:, None])
    entropy, dice = mask_costs(one)
    count = max(1, len(rows))
    return entropy.sum() / count, dice.sum() / count


def vote_loss(votes: Tensor, truth: Targets, pixels: Tensor) -> Tensor:
    """How far, on average, pixels of people vote beside their person's middle, along both axes.

    Args:
        votes: [N, 2, F, h, w].
    """
    known = truth.people.masked & truth.people.present
    masks = (truth.masks & known[:, :, None, None, None]).float()
    height, width = masks.shape[-2:]
    x = (torch.arange(width, device=masks.device) + 0.5) / width
    y = (torch.arange(height, device=masks.device) + 0.5) / height
    total = masks.flatten(2).sum(-1).clamp(min=1)
    middle = torch.stack(
        [(masks.sum((2, 3)) * x).sum(-1) / total, (masks.sum((2, 4)) * y).sum(-1) / total], dim=1
    )  # [N, 2, P]
    points = points_of(votes, truth.masks & known[:, :, None, None, None], pixels)
    apart = (points.predicted - middle @ points.truth).abs().sum(1)
    here = points.truth.sum(1)
    return (apart * here).sum() / here.sum().clamp(min=1)


def _mixer_loss(mixed: Tensor, truth: Targets, pixels: Tensor) -> Tensor:
    """Dice loss of the mixed map's channel mean with the pixels of all who are heard.

    Clips in which the pixels of somebody heard are not known do not count.
    """
    people = truth.people
    heard = (truth.masks & people.active[:, :, None, None, None]).any(1, keepdim=True)
    _, dice = mask_costs(points_of(mixed[:, None], heard, pixels))
    known = ~(people.active & ~people.masked).any(1)
    return (dice[:, 0, 0] * known).sum() / known.sum().clamp(min=1)


def _voice_losses(
    voices: VoicePredictions, waves: Tensor, truth: Targets, slots: Tensor
) -> dict[str, Tensor]:
    """Of people in their slots and of the residual; whoever is not heard is to be silent."""
    people = truth.people
    n, q = waves.shape[:2]
    # What each slot is to sound like: its person's voice, the rest, or nothing.
    wanted = torch.zeros_like(waves)
    rows, whom = people.present.nonzero(as_tuple=True)
    wanted[rows, slots[rows, whom]] = people.voices[rows, whom]
    wanted[:, -1] = truth.residual
    assigned = torch.zeros(n, q, dtype=torch.bool, device=waves.device)
    assigned[rows, slots[rows, whom]] = True
    assigned[:, -1] = True
    active = assigned & (energies_db(wanted, truth.mixture) > ACTIVE_DB)
    count = active.sum().clamp(min=1)
    loud = frame_energies_db(wanted, truth.mixture, voices.activity_logits.shape[-1]) > HEARD_DB
    when = functional.binary_cross_entropy_with_logits(
        voices.activity_logits.float(), loud.float(), reduction="none"
    ).mean(2)
    ratio = (sdr(waves, wanted) * active).sum() / count
    own = compressed(voices.spectra[active][..., :-1, :-1])
    true = compressed(spectrum(wanted[active])[..., :-1, :-1])
    loudness = energies_db(waves, truth.mixture)
    silent = assigned & ~active
    return {
        "when": (when * assigned).sum() / assigned.sum(),
        "sdr": ratio,
        "spectrum": (own - true).abs().mean(dim=(1, 2, 3)).sum() / count,
        "silence": (loudness * silent).sum() / silent.sum().clamp(min=1),
    }


def targets_of(batch: dict[str, Tensor], target: Tensor, scale: Tensor) -> Targets:
    """The truth about a batch of :func:`cavmae.datasets.mixtures.scene_stream.collate`.

    Args:
        target: int64 [N], who slot 0 is; -1: there is no cue.
        scale: [N, 1], RMS of the mixtures.
    """
    voices = batch["voices"].float() / scale[:, None]
    mixture = batch["mixture"].float() / scale
    loud = energies_db(voices, mixture) > ACTIVE_DB
    people = People(batch["present"], batch["speaking"] & loud, batch["masked"], voices)
    return Targets(people, batch["rest"].float() / scale, mixture, batch["masks"], target)
