"""Measures of what a speaker model found in a scene, and their summary.

Masks are measured at the scene's own size, *with* frames in which nobody is to be seen there: a
measure that skips them hides false alarms. Voices are measured against what each person's voice is
in the mixture; silence by its energy.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.audio import (
    scale_invariant_signal_distortion_ratio,
    signal_distortion_ratio,
)

from cavmae.finetune.losses import Truth
from cavmae.finetune.matching import (
    Weights,
    assign,
    energies_db,
    joint_costs,
    points_of,
    si_sdr_pairs,
)
from cavmae.finetune.speaker import Looked, Voices

BETA2 = 0.3  # of the F measure, as AVSBench has it


@dataclasses.dataclass
class PersonMeasures:
    """What was found of one person; NaN where it cannot be told.

    Attributes:
        active: whether their voice is in the mixture.
        si_sdr, si_sdr_mixture, sdr, sdr_mixture: in dB, of the voice found and of the mixture.
        level: of the voice found of somebody silent, relative to the mixture, in dB.
        iou, f: of the mask, means over key frames.
        size: share of the frame that they cover.
        bound: whether the slot whose mask is best for them is the one whose voice is.
        confused: whether the voice is nearer to somebody else's.
        state: whether speaking or silent was told rightly.
        overlap: share of their active samples in which somebody else is active, too.
    """

    active: bool
    si_sdr: float = math.nan
    si_sdr_mixture: float = math.nan
    sdr: float = math.nan
    sdr_mixture: float = math.nan
    level: float = math.nan
    iou: float = math.nan
    f: float = math.nan
    size: float = math.nan
    bound: float = math.nan
    confused: float = math.nan
    state: float = math.nan
    overlap: float = math.nan


@dataclasses.dataclass
class SceneMeasures:
    """Of a scene.

    Attributes:
        key: its name.
        people: in the scene's order.
    """

    key: str
    people: list[PersonMeasures]


def measure(
    keys: Sequence[str],
    looked: Looked,
    voices: Voices,
    truth: Truth,
    weights: Weights,
) -> list[SceneMeasures]:
    """Measures of a batch; people are assigned to slots by the joint cost, or by the cue."""
    people = truth.people
    waves = voices.waves(truth.mixture.shape[-1]) / voices.scale
    n, _, f, h, w = truth.masks.shape
    pixels = torch.arange(h * w, device=waves.device)[None, None, ::7].expand(n, f, -1)
    points = points_of(looked.masks[-1], truth.masks, pixels)
    costs = joint_costs(people, weights, voices.states, points, waves[:, :-1], truth.mixture)
    slots = assign(costs, people.present, truth.target)
    said = voices.states.argmax(-1)
    pairs = si_sdr_pairs(waves[:, :-1], people.voices)
    loud = energies_db(waves, truth.mixture)
    found = []
    for row, key in enumerate(keys):
        scene = SceneMeasures(key, [])
        count = int(people.present[row].sum())
        shown = _shown(looked.masks[-1][row], (h, w))
        ious = _ious(shown, truth.masks[row, :count])  # [Q', P]
        sounds = people.voices[row, :count]
        for person in range(count):
            slot = int(slots[row, person])
            active = bool(people.active[row, person])
            one = PersonMeasures(active, state=float(said[row, slot] == (0 if active else 1)))
            if bool(people.masked[row, person]):
                true = truth.masks[row, person]
                one.iou = float(ious[slot, person])
                one.f = _f_measure(shown[slot], true)
                one.size = float(true.float().mean())
            if active:
                _hear(one, waves[row, slot], sounds, person, truth.mixture[row])
                if bool(people.masked[row, person]):
                    best = int(ious[:, person].argmax())
                    one.bound = float(best == int(pairs[row, :, person].argmax()))
            else:
                one.level = float(loud[row, slot])
            scene.people.append(one)
        found.append(scene)
    return found


def _shown(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks at the scene's size: [Q', F, h, w] -> bool [Q', F, H, W]."""
    return functional.interpolate(masks.float(), size, mode="bilinear", align_corners=False) > 0


def _ious(shown: Tensor, truth: Tensor) -> Tensor:
    """Mean IoU over frames of each slot with each person: [Q', P]; 1 where both are empty."""
    a, b = shown.flatten(2).float(), truth.flatten(2).float()  # [Q', F, n], [P, F, n]
    both = torch.einsum("qfn,pfn->qpf", a, b)
    either = a.sum(-1)[:, None] + b.sum(-1)[None] - both
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones(())).mean(-1)


def _f_measure(shown: Tensor, true: Tensor) -> float:
    """F with beta^2 = 0.3, mean over frames; 1 where both are empty."""
    a, b = shown.flatten(1).float(), true.flatten(1).float()
    both = (a * b).sum(-1)
    precision = both / a.sum(-1).clamp(min=1)
    recall = both / b.sum(-1).clamp(min=1)
    score = (1 + BETA2) * precision * recall / (BETA2 * precision + recall).clamp(min=1e-9)
    nothing = (a.sum(-1) == 0) & (b.sum(-1) == 0)
    return float(torch.where(nothing, torch.ones(()), score).mean())


def _hear(one: PersonMeasures, wave: Tensor, sounds: Tensor, person: int, mixture: Tensor) -> None:
    true = sounds[person]
    measures: tuple[tuple[str, Callable[..., Tensor]], ...] = (
        ("si_sdr", scale_invariant_signal_distortion_ratio),
        ("sdr", signal_distortion_ratio),
    )
    for name, function in measures:
        setattr(one, name, float(function(wave, true)))
        setattr(one, f"{name}_mixture", float(function(mixture, true)))
    others = [n for n in range(len(sounds)) if n != person and bool(sounds[n].any())]
    if others:
        nearer = [float(scale_invariant_signal_distortion_ratio(wave, sounds[n])) for n in others]
        one.confused = float(max(nearer) > one.si_sdr)
        here = _frames(true)
        there = torch.stack([_frames(sounds[n]) for n in others]).any(0)
        one.overlap = float((here & there).sum() / here.sum().clamp(min=1))


def _frames(wave: Tensor) -> Tensor:
    """Which frames of 20 ms of a voice are active (at most 40 dB below the loudest)."""
    power = wave[: len(wave) // 320 * 320].reshape(-1, 320).square().mean(1)
    return power > power.max() * 1e-4


def mean(values: Sequence[float]) -> float:
    """Of those that could be told; NaN if none could."""
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def summary(scenes: Sequence[SceneMeasures]) -> dict[str, float]:
    """Means over people, those that could be told."""
    people = [person for scene in scenes for person in scene.people]
    pairs = [
        p for s in scenes if sum(q.active for q in s.people) == 2 for p in s.people if p.active
    ]
    silent = [p for p in people if not p.active]
    told = {
        "SI-SDR improvement": mean([p.si_sdr - p.si_sdr_mixture for p in pairs]),
        "SDR improvement": mean([p.sdr - p.sdr_mixture for p in pairs]),
        "SI-SDR": mean([p.si_sdr for p in pairs]),
        "IoU": mean([p.iou for p in people]),
        "F": mean([p.f for p in people]),
        "binding": mean([p.bound for p in people]),
        "confusion": mean([p.confused for p in people]),
        "silence dB": mean([p.level for p in silent]),
        "states": mean([p.state for p in people]),
    }
    return {name: value for name, value in told.items() if math.isfinite(value)}
