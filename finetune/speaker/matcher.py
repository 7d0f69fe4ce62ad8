"""Hungarian matching of people to slots, by one joint cost of masks, voices and states.

Separate assignments of masks and of voices would break the index that both share.

Shapes: N clips, Q' slots of people (without the residual), P people at most, F key frames,
K sampled pixels, S samples.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from cavmae.finetune.speaker.settings import LossSettings

CAP_DB = 30.0  # upper limit of the SDR as a loss
FLOOR_DB = -60.0  # lower limit of energies, relative to the mixture
ACTIVE_DB = -40.0  # energy of a voice, relative to the mixture, from which on it is active
FRAME_ACTIVE_DB = -30.0  # likewise of 40 ms of a voice, relative to the mean of its mixture
PIXEL_STRIDE = 7  # stride of the pixels that the assignment of an evaluation compares


class Points(NamedTuple):
    """Predictions and targets at sampled pixels, K in all key frames together.

    Attributes:
        predicted: [N, Q', K], logits.
        truth: [N, P, K], 0 or 1.
    """

    predicted: Tensor
    truth: Tensor


def draw_points(shape: tuple[int, ...], count: int, device: torch.device) -> Tensor:
    """Random pixel indices, ``count`` in each key frame: int64 [N, F, count].

    Args:
        shape: of the true masks, [N, P, F, H, W].
    """
    n, _, f, h, w = shape
    return torch.randint(h * w, (n, f, count), device=device)


def grid_points(logits: Tensor, truth: Tensor) -> Points:
    """Predictions and true masks at every seventh pixel; arguments of :func:`points_of`."""
    n, _, f, h, w = truth.shape
    pixels = torch.arange(0, h * w, PIXEL_STRIDE, device=truth.device).expand(n, f, -1)
    return points_of(logits, truth, pixels)


def points_of(logits: Tensor, truth: Tensor, pixels: Tensor) -> Points:
    """Predictions and true masks at sampled pixels.

    Args:
        logits: [N, Q', F, h, w], of any resolution; sampled bilinearly.
        truth: bool [N, P, F, H, W].
        pixels: of :func:`draw_points`.
    """
    n, slots = logits.shape[:2]
    height, width = truth.shape[-2:]
    y = (pixels // width + 0.5) / height * 2 - 1
    x = (pixels % width + 0.5) / width * 2 - 1
    grid = torch.stack([x, y], dim=-1).flatten(0, 1)[:, :, None].float()  # [N F, count, 1, 2]
    maps = logits.transpose(1, 2).flatten(0, 1).float()  # [N F, Q', h, w]
    predicted = functional.grid_sample(maps, grid, mode="bilinear", align_corners=False)[..., 0]
    predicted = predicted.unflatten(0, (n, -1)).transpose(1, 2).flatten(2)  # [N, Q', K]
    # [N, P, F, count]
    true = truth.flatten(3).gather(3, pixels[:, None].expand(-1, truth.shape[1], -1, -1))
    return Points(predicted.view(n, slots, -1), true.flatten(2).float())


def mask_costs(points: Points) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice loss of all pairs of slots and people: [N, Q', P] each."""
    x, t = points
    count = x.shape[-1]
    entropy = functional.softplus(-x) @ t.transpose(1, 2)
    entropy = entropy + functional.softplus(x) @ (1 - t).transpose(1, 2)
    p = x.sigmoid()
    intersection = p @ t.transpose(1, 2)
    total = p.sum(-1)[:, :, None] + t.sum(-1)[:, None]
    return entropy / count, 1 - (2 * intersection + 1) / (total + 1)


def energies_db(waves: Tensor, mixture: Tensor) -> Tensor:
    """Energy of voices [N, K, S] relative to that of their mixture [N, S] in dB: [N, K].

    The floor of -60 dB keeps the gradient finite for digital silence.
    """
    energy = waves.float().square().sum(-1)
    reference = mixture.float().square().sum(-1, keepdim=True) + 1e-8
    return 10 * torch.log10(energy / reference + 10 ** (FLOOR_DB / 10))


def frame_energies_db(waves: Tensor, mixture: Tensor, frames: int) -> Tensor:
    """Power of voices [N, K, S] in each frame, relative to their mixture's [N, S]: [N, K, frames].

    In dB, with a floor of -60.
    """
    power = waves.float().square().unflatten(-1, (frames, -1)).mean(-1)
    reference = mixture.float().square().mean(-1)[:, None, None] + 1e-8
    return 10 * torch.log10(power / reference + 10 ** (FLOOR_DB / 10))


def sdr_pairs(estimates: Tensor, truth: Tensor) -> Tensor:
    """SDR of all pairs of estimates [N, K, S] and true voices [N, P, S]: [N, K, P], in dB.

    Energy of the truth over that of the error, with a smooth limit at 30 dB. It depends on scale,
    since voices add up to the mixture and a scale-invariant loss let masks grow until they
    saturated. For a silent truth the value has no meaning, but it and its gradient are finite.
    """
    estimates, truth = estimates.float(), truth.float()
    dot = estimates @ truth.transpose(1, 2)
    energy = estimates.square().sum(-1)[:, :, None]
    true = truth.square().sum(-1)[:, None]
    return _sdr((energy - 2 * dot + true).clamp(min=0), true)


def sdr(estimates: Tensor, truth: Tensor) -> Tensor:
    """SDR of estimates [..., S] with one true voice each [..., S]: [...]; see :func:`sdr_pairs`."""
    estimates, truth = estimates.float(), truth.float()
    return _sdr((estimates - truth).square().sum(-1), truth.square().sum(-1))


def _sdr(noise: Tensor, true: Tensor) -> Tensor:
    small = 1e-4  # of energies of waves of an RMS of about 1, thousands of samples long
    least = 10 ** (-CAP_DB / 10)
    return 10 * torch.log10((true + small) / (noise + least * true + small))


class People(NamedTuple):
    """Ground truth of on-screen people.

    Attributes:
        present: bool [N, P].
        active: bool [N, P], whether their voice is audible in the mixture.
        masked: bool [N, P], whether their mask is known.
        voices: float [N, P, S].
    """

    present: Tensor
    active: Tensor
    masked: Tensor
    voices: Tensor


def joint_costs(
    people: People,
    weights: LossSettings,
    states: Tensor,
    points: Points,
    waves: Tensor,
    mixture: Tensor,
) -> Tensor:
    """Matching cost of all pairs of slots and people: [N, Q', P], without gradient.

    Args:
        states: [N, Q', 4], logits.
        points: of the masks of all slots and people.
        waves: [N, Q', S], at the level of the true voices.
        mixture: [N, S].
    """
    with torch.no_grad():
        active_cost = -weights.sdr_weight * sdr_pairs(waves, people.voices)
        energy = energies_db(waves, mixture)[:, :, None]
        silent_cost = weights.silence_weight * energy.expand_as(active_cost)
        voice_cost = torch.where(people.active[:, None], active_cost, silent_cost)
        return visual_costs(people, weights, states, points) + voice_cost


@torch.no_grad()
def visual_costs(people: People, weights: LossSettings, states: Tensor, points: Points) -> Tensor:
    """Matching cost of all pairs by masks and states alone: [N, Q', P]; see :func:`joint_costs`."""
    log_prob = states.float().log_softmax(-1)
    state_cost = -torch.where(people.active[:, None], log_prob[..., :1], log_prob[..., 1:2])
    return _weighted_mask_costs(people, weights, points) + weights.state_weight * state_cost


@torch.no_grad()
def presence_costs(people: People, weights: LossSettings, states: Tensor, points: Points) -> Tensor:
    """Matching cost by masks and by whether a slot is a person, whoever speaks: [N, Q', P].

    Of several slots with the mask of one person, those that are said to be nobody are not that
    person. Arguments of :func:`joint_costs`.
    """
    log_prob = states.float().log_softmax(-1)[..., :2].logsumexp(-1, keepdim=True)
    return _weighted_mask_costs(people, weights, points) - weights.state_weight * log_prob


def _weighted_mask_costs(people: People, weights: LossSettings, points: Points) -> Tensor:
    entropy, dice = mask_costs(points)
    costs = weights.entropy_weight * entropy + weights.dice_weight * dice
    return costs * people.masked[:, None]


def assign(costs: Tensor, present: Tensor, fixed: Tensor | None = None) -> Tensor:
    """Assignment of people to slots of the least total cost.

    Args:
        costs: [N, Q', P].
        present: bool [N, P].
        fixed: int64 [N], the person that a cue assigns to slot 0; -1: no cue. None: no cues.

    Returns:
        int64 [N, P], the slot of each person; -1 for absent people.

    Raises:
        ValueError: there are more people than slots.
    """
    finite = costs.detach().float().nan_to_num(1e4, 1e4, -1e4).cpu().numpy()
    is_present = present.cpu().numpy()
    targets = np.full(len(finite), -1) if fixed is None else fixed.cpu().numpy()
    assignment = np.full(is_present.shape, -1)
    for row, cost, mask, target in zip(assignment, finite, is_present, targets, strict=True):
        people = np.flatnonzero(mask)
        if len(people) > len(cost):
            raise ValueError(f"{len(people)} people for {len(cost)} slots: raise model.slots.")
        slots = np.arange(len(cost))
        if target >= 0:
            row[target] = 0
            people, slots = people[people != target], slots[1:]
        slot_places, person_places = linear_sum_assignment(cost[np.ix_(slots, people)])
        row[people[person_places]] = slots[slot_places]
    return torch.from_numpy(assignment).to(costs.device)
