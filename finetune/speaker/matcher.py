"""Which slot is which person: one assignment for masks, voices and states together.

Separate assignments for masks and for voices would destroy the index that both share.

Shapes: N clips, Q' slots of people (without the residual), P people at most, K sampled pixels,
S samples.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

CAP_DB = 30.0  # more SI-SDR than this is not asked for
FLOOR_DB = -60.0  # nor more silence than this, relative to the mixture
ACTIVE_DB = -40.0  # a voice softer than this, relative to the mixture, is not there
HEARD_DB = -30.0  # likewise 40 ms of a voice, relative to the mean of its mixture


class Points(NamedTuple):
    """Pixels of key frames, drawn at random, as many in each.

    Attributes:
        predicted: [N, Q', K], logits.
        truth: [N, P, K], 0 or 1.
    """

    predicted: Tensor
    truth: Tensor


def draw_points(shape: tuple[int, ...], count: int, device: torch.device) -> Tensor:
    """Numbers of pixels: int64 [N, F, count].

    Args:
        shape: of the true masks, [N, P, F, H, W].
    """
    n, _, f, h, w = shape
    return torch.randint(h * w, (n, f, count), device=device)


def points_of(logits: Tensor, truth: Tensor, pixels: Tensor) -> Points:
    """Predictions and truth in some pixels.

    Args:
        logits: [N, Q', F, h, w], of any size; read bilinearly.
        truth: bool [N, P, F, H, W].
        pixels: of :func:`draw_points`.
    """
    n, slots = logits.shape[:2]
    height, width = truth.shape[-2:]
    y = (pixels // width + 0.5) / height * 2 - 1
    x = (pixels % width + 0.5) / width * 2 - 1
    grid = torch.stack([x, y], dim=-1).flatten(0, 1)[:, :, None].float()  # [N F, K, 1, 2]
    maps = logits.transpose(1, 2).flatten(0, 1).float()
    read = functional.grid_sample(maps, grid, mode="bilinear", align_corners=False)[..., 0]
    read = read.unflatten(0, (n, -1)).transpose(1, 2).flatten(2)
    true = truth.flatten(3).gather(3, pixels[:, None].expand(-1, truth.shape[1], -1, -1))
    return Points(read.view(n, slots, -1), true.flatten(2).float())


def mask_costs(points: Points) -> tuple[Tensor, Tensor]:
    """Cross-entropy and dice loss of every slot with every person's mask: [N, Q', P] each."""
    x, t = points
    count = x.shape[-1]
    entropy = functional.softplus(-x) @ t.transpose(1, 2)
    entropy = entropy + functional.softplus(x) @ (1 - t).transpose(1, 2)
    p = x.sigmoid()
    both = p @ t.transpose(1, 2)
    total = p.sum(-1)[:, :, None] + t.sum(-1)[:, None]
    return entropy / count, 1 - (2 * both + 1) / (total + 1)


def energies_db(waves: Tensor, mixture: Tensor) -> Tensor:
    """Energy of voices [N, K, S] relative to that of their mixture [N, S] in dB: [N, K].

    -60 dB is the least; so the gradient is finite also for digital silence.
    """
    energy = waves.float().square().sum(-1)
    whole = mixture.float().square().sum(-1, keepdim=True) + 1e-8
    return 10 * torch.log10(energy / whole + 10 ** (FLOOR_DB / 10))


def frame_energies_db(waves: Tensor, mixture: Tensor, frames: int) -> Tensor:
    """Power of voices [N, K, S] in each frame, relative to their mixture's [N, S]: [N, K, frames].

    In dB, -60 at least.
    """
    power = waves.float().square().unflatten(-1, (frames, -1)).mean(-1)
    whole = mixture.float().square().mean(-1)[:, None, None] + 1e-8
    return 10 * torch.log10(power / whole + 10 ** (FLOOR_DB / 10))


def sdr_pairs(estimates: Tensor, truth: Tensor) -> Tensor:
    """SDR of every estimate [N, K, S] with every true voice [N, P, S]: [N, K, P], in dB.

    The plain one, energy of the truth over that of the difference: voices are to add up to the
    mixture, and what does not depend on scale lets masks grow until they are saturated (seen).
    Approaches 30 dB smoothly. For a silent truth the value means nothing, but it and its gradient
    are finite.
    """
    estimates, truth = estimates.float(), truth.float()
    cross = estimates @ truth.transpose(1, 2)
    own = estimates.square().sum(-1)[:, :, None]
    true = truth.square().sum(-1)[:, None]
    return _sdr((own - 2 * cross + true).clamp(min=0), true)


def sdr(estimates: Tensor, truth: Tensor) -> Tensor:
    """:func:`sdr_pairs` of estimates [..., S] with a truth of their own [..., S]: [...]."""
    estimates, truth = estimates.float(), truth.float()
    return _sdr((estimates - truth).square().sum(-1), truth.square().sum(-1))


def _sdr(noise: Tensor, true: Tensor) -> Tensor:
    small = 1e-4  # of energies of waves of an RMS of about 1, thousands of samples long
    least = 10 ** (-CAP_DB / 10)
    return 10 * torch.log10((true + small) / (noise + least * true + small))


class People(NamedTuple):
    """The truth about who is seen.

    Attributes:
        present: bool [N, P].
        active: bool [N, P], whose voice is in the mixture.
        masked: bool [N, P], whose pixels are known.
        voices: float [N, P, S].
    """

    present: Tensor
    active: Tensor
    masked: Tensor
    voices: Tensor


class LossWeights(NamedTuple):
    """Weights of the joint cost; see :class:`cavmae.finetune.speaker.settings.LossSettings`."""

    state: float
    entropy: float
    dice: float
    sdr: float
    silence: float


def joint_costs(
    people: People,
    weights: LossWeights,
    states: Tensor,
    points: Points,
    waves: Tensor,
    mixture: Tensor,
) -> Tensor:
    """What it would cost that a slot is a person: [N, Q', P], without gradient.

    Args:
        states: [N, Q', 4], logits.
        waves: [N, Q', S], at the level of the truth.
        mixture: [N, S].
    """
    with torch.no_grad():
        entropy, dice = mask_costs(points)
        seen = (weights.entropy * entropy + weights.dice * dice) * people.masked[:, None]
        odds = states.float().log_softmax(-1)
        state = -torch.where(people.active[:, None], odds[..., :1], odds[..., 1:2])
        sounds = -weights.sdr * sdr_pairs(waves, people.voices)
        silent = weights.silence * energies_db(waves, mixture)[:, :, None].expand_as(sounds)
        heard = torch.where(people.active[:, None], sounds, silent)
        return seen + weights.state * state + heard


def assign(costs: Tensor, present: Tensor, fixed: Tensor | None = None) -> Tensor:
    """The cheapest assignment of people to slots.

    Args:
        costs: [N, Q', P].
        present: bool [N, P].
        fixed: int64 [N], who slot 0 is, as a cue says; -1: nobody in particular. None: never.

    Returns:
        int64 [N, P], the slot of each person; -1 for who is not present.

    Raises:
        ValueError: more people than slots.
    """
    told = costs.detach().float().nan_to_num(1e4, 1e4, -1e4).cpu().numpy()
    here = present.cpu().numpy()
    target = np.full(len(told), -1) if fixed is None else fixed.cpu().numpy()
    found = np.full(here.shape, -1)
    for row, cost, who, one in zip(found, told, here, target, strict=True):
        people = np.flatnonzero(who)
        if len(people) > len(cost):
            raise ValueError(f"{len(people)} people for {len(cost)} slots: give the model more.")
        slots = np.arange(len(cost))
        if one >= 0:
            row[one] = 0
            people, slots = people[people != one], slots[1:]
        chosen, whom = linear_sum_assignment(cost[np.ix_(slots, people)])
        row[people[whom]] = slots[chosen]
    return torch.from_numpy(found).to(costs.device)
