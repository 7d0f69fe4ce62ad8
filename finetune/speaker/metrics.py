"""Measures of what a speaker model found in a scene, and their summary.

Masks are measured at the scene's own size, *with* frames in which nobody is to be seen there: a
measure that skips them hides false alarms. Voices are measured against what each person's voice is
in the mixture; silence by its energy.
"""

import dataclasses
import importlib
import math
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.finetune.speaker.losses import Targets
from cavmae.finetune.speaker.matcher import (
    ACTIVE_DB,
    FLOOR_DB,
    LossWeights,
    assign,
    energies_db,
    joint_costs,
    points_of,
)
from cavmae.finetune.speaker.model import (
    NONE,
    OFF_SCREEN,
    SILENT,
    SPEAKING,
    SlotPredictions,
    VoicePredictions,
)

GRID = 7  # every so manyeth pixel counts in the assignment
BETA2 = 0.3  # of the F measure, as AVSBench has it
WORST_DB = -30.0  # (SI-)SDR of a voice that is not there, which has none
TALKED_OVER = 0.9  # of somebody's time, in which another speaks, too
ALONE_DB = 30.0  # SI-SDR of a mixture in which there is nothing but the voice


@dataclasses.dataclass
class PersonMetrics:
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
        overlap: share of their active time in which somebody else is active, too.
        stoi, stoi_mixture, pesq, pesq_mixture: where they were asked for.
        meant: whether a cue means them.
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
    binding: float = math.nan
    confusion: float = math.nan
    state_acc: float = math.nan
    overlap: float = math.nan
    stoi: float = math.nan
    stoi_mixture: float = math.nan
    pesq: float = math.nan
    pesq_mixture: float = math.nan
    is_target: bool = False


@dataclasses.dataclass
class SceneMetrics:
    """Of a scene.

    Attributes:
        key: its name.
        people: in the scene's order.
        phantoms: how many slots claim to be people, and nobody is theirs; NaN: not measured.
        unseen: whether the residual tells rightly if there is anything of nobody seen to be heard.
    """

    key: str
    people: list[PersonMetrics]
    false_slots: float = math.nan
    residual_acc: float = math.nan


def assigned(
    looked: SlotPredictions, voices: VoicePredictions, truth: Targets, weights: LossWeights
) -> tuple[Tensor, Tensor]:
    """The slots' waves at the truth's level [N, Q, S], and which slot is who: int64 [N, P].

    By the joint cost that training uses, with pixels of a regular grid instead of random ones;
    where there is a cue, slot 0 is whom it means.
    """
    waves = voices.waves(truth.mixture.shape[-1]) / voices.scale
    n, _, f, h, w = truth.masks.shape
    pixels = torch.arange(0, h * w, GRID, device=waves.device).expand(n, f, -1)
    points = points_of(looked.masks[-1], truth.masks, pixels)
    states = voices.states[:, :-1]
    costs = joint_costs(truth.people, weights, states, points, waves[:, :-1], truth.mixture)
    return waves, assign(costs, truth.people.present, truth.target)


def measure(
    keys: Sequence[str],
    waves: Tensor,
    slots: Tensor,
    truth: Targets,
    looked: SlotPredictions | None = None,
    states: Tensor | None = None,
    quality: Sequence[str] = (),
) -> list[SceneMetrics]:
    """Measures of the scenes of a batch.

    Args:
        waves: [N, K, S].
        slots: int64 [N, P], whose wave, mask and state a person's are.
        truth: of the batch.
        looked: for masks; None: only voices are measured.
        states: [N, Q, 4], logits; None: they are not measured.
        quality: of ``stoi`` and ``pesq`` what is measured, too.
    """
    people = truth.people
    found = []
    pairs = _si_sdr_pairs(waves, people.voices)
    loud = energies_db(waves, truth.mixture)
    for row, key in enumerate(keys):
        scene = SceneMetrics(key, [])
        count = int(people.present[row].sum())
        sounds = people.voices[row, :count]
        shown = ious = None
        if looked is not None:
            shown = shown_masks(
                looked.masks[-1][row], (truth.masks.shape[-2], truth.masks.shape[-1])
            )
            ious = _ious(shown, truth.masks[row, :count])
            # Who is said to be nobody is not given out, and a faint copy of a voice, which
            # SI-SDR takes for as good as the voice, binds nothing.
            somebody = torch.ones(len(ious), dtype=torch.bool, device=ious.device)
            if states is not None:
                somebody = states[row, :-1].argmax(-1) < OFF_SCREEN
        for person in range(count):
            slot = int(slots[row, person])
            active = bool(people.active[row, person])
            masked = bool(people.masked[row, person])
            one = PersonMetrics(active, is_target=person == int(truth.target[row]))
            if states is not None:
                one.state_acc = float(int(states[row, slot].argmax()) == (0 if active else 1))
            if shown is not None and ious is not None and masked:
                true = truth.masks[row, person]
                one.iou, one.f = float(ious[slot, person]), _f_measure(shown[slot], true)
                one.size = float(true.float().mean())
            if active:
                _hear(one, waves[row, slot], sounds, person, truth.mixture[row], quality)
                if ious is not None and masked:
                    best = int(ious[:, person].masked_fill(~somebody, -1).argmax())
                    heard = pairs[row, : len(ious), person].masked_fill(~somebody, -torch.inf)
                    # Who is denied is not bound, whoever is left.
                    one.binding = float(bool(somebody[slot]) and best == int(heard.argmax()))
            elif bool(truth.mixture[row].any()):  # of silence nothing but silence can be made
                one.level = float(loud[row, slot])
            scene.people.append(one)
        if states is not None:
            told = states[row, :-1].argmax(-1)
            told[slots[row, :count]] = -1
            scene.false_slots = float(((told == SPEAKING) | (told == SILENT)).sum())
            rest = bool(
                energies_db(truth.residual[row, None, None], truth.mixture[row, None]) > ACTIVE_DB
            )
            scene.residual_acc = float(
                int(states[row, -1].argmax()) == (OFF_SCREEN if rest else NONE)
            )
        found.append(scene)
    return found


def _si_sdr_pairs(waves: Tensor, truth: Tensor) -> Tensor:
    """Of every wave [N, K, S] with every true voice [N, P, S]: [N, K, P], in dB."""
    n, k, p = len(waves), waves.shape[1], truth.shape[1]
    return _si_sdr(waves[:, :, None].expand(n, k, p, -1), truth[:, None].expand(n, k, p, -1))


def shown_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits of masks as masks of the scene's size: [Q', F, h, w] -> bool [Q', F, H, W]."""
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


def _hear(
    one: PersonMetrics,
    wave: Tensor,
    sounds: Tensor,
    person: int,
    mixture: Tensor,
    quality: Sequence[str],
) -> None:
    true = sounds[person]
    audible = bool(energies_db(wave[None, None], mixture[None])[0, 0] > FLOOR_DB + 1)
    for name, function in _MEASURES.items():
        value = float(function(wave, true)) if audible else WORST_DB
        setattr(one, name, max(WORST_DB, value))
        setattr(one, f"{name}_mixture", float(function(mixture, true)))
    for name in quality:
        function = _QUALITY[name]
        setattr(one, name, float(function(wave.cpu(), true.cpu())))
        setattr(one, f"{name}_mixture", float(function(mixture.cpu(), true.cpu())))
    others = [n for n in range(len(sounds)) if n != person and bool(sounds[n].any())]
    if others:
        nearer = [float(_si_sdr(wave, sounds[n])) for n in others]
        one.confusion = float(max(nearer) > one.si_sdr)
        here = _frames(true)
        there = torch.stack([_frames(sounds[n]) for n in others]).any(0)
        one.overlap = float((here & there).sum() / here.sum().clamp(min=1))


# torchmetrics takes as long to import as PyTorch, and training that measures nothing needs none.
def _si_sdr(wave: Tensor, true: Tensor) -> Tensor:
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

    return scale_invariant_signal_distortion_ratio(wave, true)


def _sdr(wave: Tensor, true: Tensor) -> Tensor:
    from torchmetrics.functional.audio import signal_distortion_ratio

    return signal_distortion_ratio(wave, true)


def _stoi(wave: Tensor, true: Tensor) -> Tensor:
    from torchmetrics.functional.audio.stoi import short_time_objective_intelligibility

    return short_time_objective_intelligibility(wave, true, SAMPLE_RATE)


def _pesq(wave: Tensor, true: Tensor) -> Tensor:
    from torchmetrics.functional.audio.pesq import perceptual_evaluation_speech_quality

    pesq = importlib.import_module("pesq")
    try:
        return perceptual_evaluation_speech_quality(wave, true, SAMPLE_RATE, "wb")
    except pesq.PesqError:  # too little is said for it to find an utterance
        return torch.tensor(math.nan)


_MEASURES: dict[str, Callable[..., Tensor]] = {
    "si_sdr": _si_sdr,
    "sdr": _sdr,
}
_QUALITY: dict[str, Callable[..., Tensor]] = {"stoi": _stoi, "pesq": _pesq}


def _frames(wave: Tensor) -> Tensor:
    """Which frames of 20 ms of a voice are active (at most 40 dB below the loudest)."""
    power = wave[: len(wave) // 320 * 320].reshape(-1, 320).square().mean(1)
    return power > power.max() * 1e-4


def mean(values: Sequence[float]) -> float:
    """Of those that could be told; NaN if none could."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def median(values: Sequence[float]) -> float:
    """Of those that could be told; NaN if none could."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def summary(scenes: Sequence[SceneMetrics], cued: bool = False) -> dict[str, float]:
    """Means over people, those that could be told.

    "SI-SDR improvement" and what is said of voices beside it are of scenes in which two people,
    both seen, speak; others have rows of their own: of three people, and of one voice with
    something else (noise, somebody unseen). A few whom nobody talks over gain tens of dB: hence
    the median, and the mean of those who are talked over for nine tenths of their time.

    Args:
        cued: only who is meant by a cue counts.
    """
    voices: dict[int, list[PersonMetrics]] = {1: [], 2: [], 3: []}
    people = []
    for scene in scenes:
        count = sum(p.active for p in scene.people)
        told = [p for p in scene.people if p.is_target or not cued]
        people += told
        voices.get(count, []).extend(p for p in told if p.active)
    pairs = voices[2]
    alone = [p for p in voices[1] if p.si_sdr_mixture < ALONE_DB]
    over = [p for p in pairs if p.overlap >= TALKED_OVER]
    found = {
        "si_sdri": mean([p.si_sdr - p.si_sdr_mixture for p in pairs]),
        "si_sdri_median": median([p.si_sdr - p.si_sdr_mixture for p in pairs]),
        "si_sdri_overlapped": mean([p.si_sdr - p.si_sdr_mixture for p in over]),
        "sdri": mean([p.sdr - p.sdr_mixture for p in pairs]),
        "si_sdr": mean([p.si_sdr for p in pairs]),
        "sdr": mean([p.sdr for p in pairs]),
        "si_sdri_one_voice": mean([p.si_sdr - p.si_sdr_mixture for p in alone]),
        "si_sdri_three_voices": mean([p.si_sdr - p.si_sdr_mixture for p in voices[3]]),
        "stoi": mean([p.stoi for p in pairs]),
        "stoi_mixture": mean([p.stoi_mixture for p in pairs]),
        "pesq": mean([p.pesq for p in pairs]),
        "pesq_mixture": mean([p.pesq_mixture for p in pairs]),
        "iou": mean([p.iou for p in people]),
        "f_score": mean([p.f for p in people]),
        "binding": mean([p.binding for p in people]),
        "confusion": mean([p.confusion for p in people]),
        "confusion_overlapped": mean([p.confusion for p in over]),
        "silence_db": mean([p.level for p in people]),
        "state_acc": mean([p.state_acc for p in people]),
        "false_slots": mean([s.false_slots for s in scenes]),
        "residual_acc": mean([s.residual_acc for s in scenes]),
    }
    return {name: value for name, value in found.items() if not math.isnan(value)}
