"""Metrics of the masks, voices and states of scenes, and their summary.

Masks are measured at the scene's own resolution, *including* frames in which a person is absent: to
skip them would hide false alarms. Voices are compared with each person's voice in the mixture;
silent people are measured by the energy of their output.

Shapes: N scenes, Q slots (Q' without the residual), P people at most, K voices, F key frames,
S samples.
"""

import dataclasses
import importlib
import math
import statistics
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.finetune.speaker.activity_metrics import (
    SceneActivity,
    activity_scores,
    diarization_scores,
)
from cavmae.finetune.speaker.losses import Targets
from cavmae.finetune.speaker.matcher import (
    ACTIVE_DB,
    FLOOR_DB,
    assign,
    energies_db,
    grid_points,
    joint_costs,
)
from cavmae.finetune.speaker.model_tensors import (
    NONE,
    OFF_SCREEN,
    SILENT,
    SPEAKING,
    SlotPredictions,
    VoicePredictions,
)
from cavmae.finetune.speaker.settings import LossSettings

BETA2 = 0.3  # squared beta of the F score, as in AVSBench
WORST_DB = -30.0  # (SI-)SDR of a silent output, for which it is undefined
TALKED_OVER = 0.9  # fraction of a person's speech from which on it counts as overlapped
ALONE_DB = 30.0  # SI-SDR from which on a mixture is the clean voice


@dataclasses.dataclass
class PersonMetrics:
    """Metrics of one person; NaN where they are undefined.

    Attributes:
        active: whether their voice is audible in the mixture.
        si_sdr, si_sdr_mixture, sdr, sdr_mixture: in dB, of the estimated voice and of the mixture.
        level: energy of a silent person's output relative to the mixture, in dB.
        iou, f: IoU and F score of the mask, means over key frames.
        size: fraction of the frame that the true mask covers.
        binding: whether the same slot has the best mask and the best voice.
        confusion: whether the estimate is nearer to another person's voice.
        state_acc: whether the state, speaking or silent, is right.
        overlap: fraction of their active time in which another person is active, too.
        stoi, stoi_mixture, pesq, pesq_mixture: if requested.
        is_target: whether the cue selects them.
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
    """Metrics of a scene.

    Attributes:
        key: name of the scene.
        people: in the scene's order.
        false_slots: number of slots with the state of a person, but without
            one; NaN: not measured.
        residual_acc: whether the state of the residual is right; NaN: not measured.
        activity: when people talk; None: not measured.
    """

    key: str
    people: list[PersonMetrics]
    false_slots: float = math.nan
    residual_acc: float = math.nan
    activity: SceneActivity | None = None


def assign_slots(
    predictions: SlotPredictions, voices: VoicePredictions, targets: Targets, weights: LossSettings
) -> tuple[Tensor, Tensor]:
    """Waveforms of slots at the level of the targets [N, Q, S], and slots of people int64 [N, P].

    The assignment has the joint cost of training, with pixels of a regular grid instead of random
    ones. A cue assigns its person to slot 0.
    """
    waves = voices.waves(targets.mixture.shape[-1]) / voices.scale
    points = grid_points(predictions.masks[-1], targets.masks)
    states = voices.states[:, :-1]
    costs = joint_costs(targets.people, weights, states, points, waves[:, :-1], targets.mixture)
    return waves, assign(costs, targets.people.present, targets.target)


def measure(
    keys: Sequence[str],
    waves: Tensor,
    slots: Tensor,
    targets: Targets,
    predictions: SlotPredictions | None = None,
    states: Tensor | None = None,
    quality: Sequence[str] = (),
) -> list[SceneMetrics]:
    """Metrics of the scenes of a batch.

    Args:
        keys: names of the scenes.
        waves: [N, K, S].
        slots: int64 [N, P], the slot of each person.
        targets: of the batch.
        predictions: of masks; None: masks are not measured.
        states: [N, Q, 4], logits; None: states are not measured.
        quality: additional metrics of voices, of ``stoi`` and ``pesq``.
    """
    people = targets.people
    scenes = []
    pairs = _si_sdr_pairs(waves, people.voices)
    energy_db = energies_db(waves, targets.mixture)
    for row, key in enumerate(keys):
        scene = SceneMetrics(key, [])
        count = int(people.present[row].sum())
        references = people.voices[row, :count]
        masks = ious = None
        if predictions is not None:
            masks = binary_masks(
                predictions.masks[-1][row], (targets.masks.shape[-2], targets.masks.shape[-1])
            )
            ious = _ious(masks, targets.masks[row, :count])
            # Slots that are no person are not part of the output. SI-SDR would rate a faint copy
            # of a voice in one of them as high as the voice.
            is_person = torch.ones(len(ious), dtype=torch.bool, device=ious.device)
            if states is not None:
                is_person = states[row, :-1].argmax(-1) < OFF_SCREEN
        for person in range(count):
            slot = int(slots[row, person])
            active = bool(people.active[row, person])
            has_mask = bool(people.masked[row, person])
            metrics = PersonMetrics(active, is_target=person == int(targets.target[row]))
            if states is not None:
                metrics.state_acc = float(int(states[row, slot].argmax()) == (0 if active else 1))
            if masks is not None and ious is not None and has_mask:
                true = targets.masks[row, person]
                metrics.iou, metrics.f = float(ious[slot, person]), _f_measure(masks[slot], true)
                metrics.size = float(true.float().mean())
            if active:
                _measure_voice(
                    metrics, waves[row, slot], references, person, targets.mixture[row], quality
                )
                if ious is not None and has_mask:
                    best = int(ious[:, person].masked_fill(~is_person, -1).argmax())
                    scores = pairs[row, : len(ious), person].masked_fill(~is_person, -torch.inf)
                    # A person whose slot has the state none is not bound.
                    metrics.binding = float(bool(is_person[slot]) and best == int(scores.argmax()))
            elif bool(targets.mixture[row].any()):  # a silent mixture has silent parts
                metrics.level = float(energy_db[row, slot])
            scene.people.append(metrics)
        if states is not None:
            slot_states = states[row, :-1].argmax(-1)
            slot_states[slots[row, :count]] = -1
            is_false = (slot_states == SPEAKING) | (slot_states == SILENT)
            scene.false_slots = float(is_false.sum())
            residual_active = bool(
                energies_db(targets.residual[row, None, None], targets.mixture[row, None])
                > ACTIVE_DB
            )
            scene.residual_acc = float(
                int(states[row, -1].argmax()) == (OFF_SCREEN if residual_active else NONE)
            )
        scenes.append(scene)
    return scenes


def _si_sdr_pairs(waves: Tensor, targets: Tensor) -> Tensor:
    """SI-SDR of all pairs of estimates [N, K, S] and true voices [N, P, S]: [N, K, P], in dB."""
    n, k, p = len(waves), waves.shape[1], targets.shape[1]
    return _si_sdr(waves[:, :, None].expand(n, k, p, -1), targets[:, None].expand(n, k, p, -1))


def binary_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks at the scene's resolution: logits [Q', F, h, w] -> bool [Q', F, H, W]."""
    return functional.interpolate(masks.float(), size, mode="bilinear", align_corners=False) > 0


def _ious(masks: Tensor, targets: Tensor) -> Tensor:
    """Mean IoU over frames of each slot with each person: [Q', P]; 1 where both are empty."""
    a, b = masks.flatten(2).float(), targets.flatten(2).float()  # [Q', F, H W], [P, F, H W]
    intersection = torch.einsum("qfn,pfn->qpf", a, b)
    union = a.sum(-1)[:, None] + b.sum(-1)[None] - intersection
    return torch.where(union > 0, intersection / union.clamp(min=1), torch.ones(())).mean(-1)


def _f_measure(masks: Tensor, true: Tensor) -> float:
    """F score with beta^2 = 0.3 of masks [F, H, W], mean over frames; 1 where both are empty."""
    a, b = masks.flatten(1).float(), true.flatten(1).float()
    intersection = (a * b).sum(-1)
    precision = intersection / a.sum(-1).clamp(min=1)
    recall = intersection / b.sum(-1).clamp(min=1)
    score = (1 + BETA2) * precision * recall / (BETA2 * precision + recall).clamp(min=1e-9)
    empty = (a.sum(-1) == 0) & (b.sum(-1) == 0)
    return float(torch.where(empty, torch.ones(()), score).mean())


def _measure_voice(
    metrics: PersonMetrics,
    wave: Tensor,
    references: Tensor,
    person: int,
    mixture: Tensor,
    quality: Sequence[str],
) -> None:
    """Write the metrics of an active person's voice into ``metrics``.

    Args:
        wave: [S], the estimate.
        references: [P, S], voices of all people in the scene.
        person: index of the person.
        mixture: [S].
        quality: of ``stoi`` and ``pesq``.
    """
    true = references[person]
    audible = bool(energies_db(wave[None, None], mixture[None])[0, 0] > FLOOR_DB + 1)
    for name, function in _SDR_METRICS.items():
        value = float(function(wave, true)) if audible else WORST_DB
        setattr(metrics, name, max(WORST_DB, value))
        setattr(metrics, f"{name}_mixture", float(function(mixture, true)))
    for name in quality:
        function = _QUALITY_METRICS[name]
        setattr(metrics, name, float(function(wave.cpu(), true.cpu())))
        setattr(metrics, f"{name}_mixture", float(function(mixture.cpu(), true.cpu())))
    others = [n for n in range(len(references)) if n != person and bool(references[n].any())]
    if others:
        scores = [float(_si_sdr(wave, references[n])) for n in others]
        metrics.confusion = float(max(scores) > metrics.si_sdr)
        active = _active_frames(true)
        others_active = torch.stack([_active_frames(references[n]) for n in others]).any(0)
        metrics.overlap = float((active & others_active).sum() / active.sum().clamp(min=1))


# torchmetrics takes as long to import as PyTorch, and training without evaluation needs none.
def _si_sdr(wave: Tensor, true: Tensor) -> Tensor:
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

    return scale_invariant_signal_distortion_ratio(wave, true)


def _sdr(wave: Tensor, true: Tensor) -> Tensor:
    from torchmetrics.functional.audio import signal_distortion_ratio

    return signal_distortion_ratio(wave, true)


def _stoi(wave: Tensor, true: Tensor) -> Tensor:
    from torchmetrics.functional.audio.stoi import short_time_objective_intelligibility

    with warnings.catch_warnings():
        # pystoi gives 1e-5 to what it cannot measure.
        warnings.filterwarnings("error", message="Not enough STFT frames")
        try:
            return short_time_objective_intelligibility(wave, true, SAMPLE_RATE)
        except RuntimeWarning:  # the voice has less than 0.4 s of speech
            return torch.tensor(math.nan)


def _pesq(wave: Tensor, true: Tensor) -> Tensor:
    from torchmetrics.functional.audio.pesq import perceptual_evaluation_speech_quality

    pesq = importlib.import_module("pesq")
    try:
        return perceptual_evaluation_speech_quality(wave, true, SAMPLE_RATE, "wb")
    except pesq.PesqError:  # the voice is too short for an utterance
        return torch.tensor(math.nan)


_SDR_METRICS: dict[str, Callable[..., Tensor]] = {
    "si_sdr": _si_sdr,
    "sdr": _sdr,
}
_QUALITY_METRICS: dict[str, Callable[..., Tensor]] = {"stoi": _stoi, "pesq": _pesq}


def _active_frames(wave: Tensor) -> Tensor:
    """Active frames of 20 ms, at most 40 dB below the loudest: [S] -> bool [S / 320]."""
    power = wave[: len(wave) // 320 * 320].reshape(-1, 320).square().mean(1)
    return power > power.max() * 1e-4


def mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def median(values: Sequence[float]) -> float:
    """Median of the values that are not NaN; NaN if there is none."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def summary(scenes: Sequence[SceneMetrics], cued: bool = False) -> dict[str, float]:
    """Means over people, without those for whom a metric is undefined.

    ``si_sdri`` and the other metrics of voices are of scenes with two speaking people on screen.
    Scenes with three, and with one voice beside noise or off-screen speech, have keys of their
    own. A few people without overlap gain tens of dB: hence the median, and the mean over people
    whose speech is overlapped for nine tenths of its time.

    Args:
        scenes: metrics of each.
        cued: only the targets of cues count.
    """
    voices: dict[int, list[PersonMetrics]] = {1: [], 2: [], 3: []}
    people = []
    for scene in scenes:
        count = sum(p.active for p in scene.people)
        selected = [p for p in scene.people if p.is_target or not cued]
        people += selected
        voices.get(count, []).extend(p for p in selected if p.active)
    pairs = voices[2]
    single = [p for p in voices[1] if p.si_sdr_mixture < ALONE_DB]
    overlapped = [p for p in pairs if p.overlap >= TALKED_OVER]
    means = {
        "si_sdri": mean([p.si_sdr - p.si_sdr_mixture for p in pairs]),
        "si_sdri_median": median([p.si_sdr - p.si_sdr_mixture for p in pairs]),
        "si_sdri_overlapped": mean([p.si_sdr - p.si_sdr_mixture for p in overlapped]),
        "sdri": mean([p.sdr - p.sdr_mixture for p in pairs]),
        "si_sdr": mean([p.si_sdr for p in pairs]),
        "sdr": mean([p.sdr for p in pairs]),
        "si_sdri_one_voice": mean([p.si_sdr - p.si_sdr_mixture for p in single]),
        "si_sdri_three_voices": mean([p.si_sdr - p.si_sdr_mixture for p in voices[3]]),
        "stoi": mean([p.stoi for p in pairs]),
        "stoi_mixture": mean([p.stoi_mixture for p in pairs]),
        "pesq": mean([p.pesq for p in pairs]),
        "pesq_mixture": mean([p.pesq_mixture for p in pairs]),
        "iou": mean([p.iou for p in people]),
        "f_score": mean([p.f for p in people]),
        "binding": mean([p.binding for p in people]),
        "confusion": mean([p.confusion for p in people]),
        "confusion_overlapped": mean([p.confusion for p in overlapped]),
        "silence_db": mean([p.level for p in people]),
        "state_acc": mean([p.state_acc for p in people]),
        "false_slots": mean([s.false_slots for s in scenes]),
        "residual_acc": mean([s.residual_acc for s in scenes]),
    }
    activities = [
        (s.activity, [n for n, p in enumerate(s.people) if p.is_target or not cued])
        for s in scenes
        if s.activity is not None
    ]
    means |= activity_scores(activities) | diarization_scores([a for a, _ in activities])
    return {name: value for name, value in means.items() if not math.isnan(value)}
