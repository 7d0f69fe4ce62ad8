"""Evaluation of a speaker model on a fixed list of scenes, with reference conditions.

The conditions ("ways") use the same scenes in the same pass: the model with blanked frames (audio
only), with frozen frames (no motion), with the frames of another scene, voices read under the true
masks (an upper bound for masks), and an oracle ratio mask on the mixture (one for voices).
"""

import math
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cavmae.datasets.mixtures.voice_pairs import PairedScene
from cavmae.datasets.stream.collate import Batch
from cavmae.finetune.inference.settings import Thresholds
from cavmae.finetune.motion.base import GREY_MEAN
from cavmae.finetune.separators.stft import oracle_masks, spectrum, wave
from cavmae.finetune.speaker.activity_metrics import scene_activities
from cavmae.finetune.speaker.cues import CueKind, Cues
from cavmae.finetune.speaker.diarization import diarize
from cavmae.finetune.speaker.losses import (
    Targets,
    presence_targets,
    targets_of,
    teacher_force_masks,
)
from cavmae.finetune.speaker.matcher import assign, grid_points, presence_costs
from cavmae.finetune.speaker.metrics import SceneMetrics, assign_slots, measure
from cavmae.finetune.speaker.model_tensors import Inputs, SlotPredictions
from cavmae.finetune.speaker.task import SpeakerTask, scale_of

Way = Literal[
    "model", "frames_blanked", "frames_frozen", "frames_swapped", "true_masks", "oracle_ratio_mask"
]
WAYS: tuple[Way, ...] = (
    "model", "frames_blanked", "frames_frozen", "frames_swapped", "true_masks", "oracle_ratio_mask",
)  # fmt: skip


class EvaluationResult(NamedTuple):
    """Results on a list of scenes.

    Attributes:
        scenes: metrics of each scene, by way.
        dependence: mean fraction of a scene's masks that changes when its audio is ``muted``, and
            when it is that of another scene (``swapped``).
        real_time: real-time factor, seconds of computation for a second of scene.
    """

    scenes: dict[Way, list[SceneMetrics]]
    dependence: dict[str, float]
    real_time: float


@torch.no_grad()
def evaluate(
    task: SpeakerTask,
    batches: Iterable[Batch],
    ways: Iterable[Way] = WAYS,
    cue: CueKind = "none",
    quality: Sequence[str] = (),
    hints: bool = False,
    pairs: Mapping[str, PairedScene] | None = None,
    diarization: bool = False,
) -> EvaluationResult:
    """Evaluate a model on all scenes.

    Args:
        task: in evaluation mode, on the device of the batches.
        batches: of a :class:`~cavmae.datasets.mixtures.scene_stream.FixedSceneStream`.
        ways: conditions to evaluate.
        cue: kind of cue for the target in slot 0; ``none``: all people are matched.
        quality: additional metrics of the model's voices, of ``stoi`` and ``pesq``.
        hints: whether the model gets the class of each scene's target.
        pairs: paired scenes, by key, for the score of a person's own voice.
        diarization: whether to measure the diarization errors, with pyannote.metrics; not with a
            cue, under which only its person is matched.
    """
    scenes: dict[Way, list[SceneMetrics]] = {way: [] for way in ways}
    changes: dict[str, list[float]] = {"muted": [], "swapped": []}
    previous: Inputs | None = None  # last scene of the batch before
    model_seconds = scene_seconds = 0.0
    for batch in batches:
        inputs, target = _scene_inputs(task, batch, cue, hints)
        previous = _select(inputs, len(inputs.mixture) - 1) if previous is None else previous
        # The other scene is the preceding one, so that results do not depend on the batch size.
        swapped = _concatenate([previous, _select(inputs, slice(0, -1))])
        previous = _select(inputs, len(inputs.mixture) - 1)
        targets = targets_of(batch, target, scale_of(batch))
        for way in scenes:
            if way == "oracle_ratio_mask":
                scenes[way] += _oracle(batch["key"], targets)
                continue
            if way == "true_masks":
                scenes[way] += measure(batch["key"], *_under_true_masks(task, inputs, targets))
                continue
            is_model = way == "model"
            start = _synchronized_time(inputs.mixture.device)
            predictions, voices = task.predict(_modify_inputs(inputs, swapped, way))
            if is_model:
                model_seconds += _synchronized_time(inputs.mixture.device) - start
                scene_seconds += len(inputs.mixture) * task.model.config.seconds
            waves, slots = assign_slots(predictions, voices, targets, task.loss)
            measured = measure(
                batch["key"],
                waves,
                slots,
                targets,
                predictions,
                voices.states,
                quality if is_model else (),
            )
            activities = scene_activities(
                batch["key"], predictions, voices, targets, slots, pairs or {}
            )
            if diarization:
                activities = diarize(activities, predictions, voices, targets, Thresholds())
            for scene, activity in zip(measured, activities, strict=True):
                scene.activity = activity
            scenes[way] += measured
            if is_model:
                _record_mask_changes(changes, task, inputs, swapped, predictions)
    dependence = {name: sum(v) / len(v) for name, v in changes.items() if v}
    return EvaluationResult(
        scenes, dependence, model_seconds / scene_seconds if scene_seconds else math.nan
    )


def _synchronized_time(device: torch.device) -> float:
    """Time in seconds, after all queued work of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _scene_inputs(
    task: SpeakerTask, batch: Batch, cue: CueKind, hints: bool
) -> tuple[Inputs, Tensor]:
    """Inputs and targets int64 [N] of a batch; the cue of a scene depends on its key alone."""
    if cue == "none":
        return task.inputs_of(batch, 0.0, hint_prob=float(hints))
    parts = []
    for row, key in enumerate(batch["key"]):
        torch.manual_seed(zlib.crc32(key.encode()))
        scene = {k: v[row : row + 1] for k, v in batch.items()}
        parts.append(task.inputs_of(scene, 1.0, (cue,), float(hints)))
    return _concatenate([inputs for inputs, _ in parts]), torch.cat([target for _, target in parts])


def _select(inputs: Inputs, index: int | slice) -> Inputs:
    """Inputs of some of the scenes."""
    rows = slice(index, index + 1) if isinstance(index, int) else index
    return _map_tensors(lambda tensors: tensors[0][rows], [inputs])


def _concatenate(parts: Sequence[Inputs]) -> Inputs:
    """Concatenate inputs along the scenes."""
    return _map_tensors(torch.cat, parts)


def _map_tensors(function: Callable[[list[Tensor]], Tensor], parts: Sequence[Inputs]) -> Inputs:
    """Apply a function to every tensor of several inputs, of which nothing is encoded yet."""
    cues = Cues(*(function([getattr(p.cues, name) for p in parts]) for name in Cues._fields))
    names = [name for name in Inputs._fields if name not in ("cues", *Inputs._field_defaults)]
    tensors: dict[str, Any] = {name: function([getattr(p, name) for p in parts]) for name in names}
    return Inputs(**tensors, cues=cues)


def _modify_inputs(inputs: Inputs, swapped: Inputs, way: Way) -> Inputs:
    """Inputs under a condition; unchanged for ``model``."""
    if way == "frames_blanked":
        grey = round(GREY_MEAN)
        return inputs._replace(
            frames=torch.full_like(inputs.frames, grey), motion=torch.full_like(inputs.motion, grey)
        )
    if way == "frames_frozen":
        frame = inputs.motion.shape[1] // 2
        key = inputs.frames.shape[1] // 2
        return inputs._replace(
            frames=inputs.frames[:, key : key + 1].expand_as(inputs.frames),
            motion=inputs.motion[:, frame : frame + 1].expand_as(inputs.motion),
        )
    if way == "frames_swapped":
        return inputs._replace(frames=swapped.frames, motion=swapped.motion)
    return inputs


def _record_mask_changes(
    changes: dict[str, list[float]],
    task: SpeakerTask,
    inputs: Inputs,
    swapped: Inputs,
    predictions: SlotPredictions,
) -> None:
    """Append each scene's fraction of masks that changes without audio, or with another scene's."""
    previous = predictions.masks[-1] > 0
    silence = torch.zeros_like(inputs.mixture)
    conditions = {
        "muted": inputs._replace(mixture=silence, fbank=task.fbank(silence)),
        "swapped": inputs._replace(mixture=swapped.mixture, fbank=swapped.fbank),
    }
    for name, changed in conditions.items():
        after = task.model.predict_masks(changed).masks[-1] > 0
        intersection = (previous & after).flatten(1).sum(1)
        union = (previous | after).flatten(1).sum(1)
        fraction = 1 - intersection / union.clamp(min=1)
        changes[name] += fraction[union > 0].tolist()


def _under_true_masks(
    task: SpeakerTask, inputs: Inputs, targets: Targets
) -> tuple[Tensor, Tensor, Targets]:
    """Waveforms of slots [N, Q, S] under the true masks, slots of people int64 [N, P], targets.

    People without a mask keep that of their slot.
    """
    predictions = task.model.predict_masks(inputs)
    points = grid_points(predictions.masks[-1], targets.masks)
    costs = presence_costs(targets.people, task.loss, predictions.states[-1][:, :-1], points)
    slots = assign(costs, targets.people.present, targets.target)
    masks = predictions.masks[-1].float().sigmoid()
    masks, replaced = teacher_force_masks(masks, targets, slots, below=math.inf)
    presence = presence_targets(task.model.presence_prob(predictions), targets, slots, replaced)
    voices = task.model.decode_voices(inputs, predictions, masks, presence)
    waves = voices.waves(targets.mixture.shape[-1]) / voices.scale
    return waves, slots, targets


def _oracle(keys: Sequence[str], targets: Targets) -> list[SceneMetrics]:
    """Metrics of oracle ratio masks, computed from the true voices."""
    sources = torch.cat([targets.people.voices, targets.residual[:, None]], dim=1)
    spectra = oracle_masks(spectrum(targets.mixture), spectrum(sources))
    waves = wave(spectra, targets.mixture.shape[-1])
    n, p = targets.people.present.shape
    return measure(keys, waves, torch.arange(p, device=waves.device).expand(n, -1), targets)
