"""A speaker model on a fixed list of scenes, beside what it has to be compared with.

The references are made of the same scenes in the same pass: the model with its pictures blanked
(what sound alone gives), with a still picture (no motion), with the picture of another scene, and
the mixture under an oracle ratio mask (what a mask can give).
"""

import math
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cavmae.datasets.stream.collate import Batch
from cavmae.finetune.speaker.cues import CueKind, Cues
from cavmae.finetune.speaker.losses import Targets, loss_weights, targets_of
from cavmae.finetune.speaker.metrics import SceneMetrics, assigned, measure
from cavmae.finetune.speaker.model import Inputs, SlotPredictions
from cavmae.finetune.speaker.motion import GREY_MEAN
from cavmae.finetune.speaker.stft import oracle_masks, spectrum, wave
from cavmae.finetune.speaker.task import SpeakerTask, scale_of

Way = Literal["model", "frames_blanked", "frames_frozen", "frames_swapped", "oracle_ratio_mask"]
WAYS: tuple[Way, ...] = (
    "model", "frames_blanked", "frames_frozen", "frames_swapped", "oracle_ratio_mask",
)  # fmt: skip


class EvaluationResult(NamedTuple):
    """Of a list of scenes.

    Attributes:
        scenes: measures of each, by way.
        dependence: share of a scene's masks that change, means: when the sound is ``muted``, and
            when it is that of another scene (``swapped``).
        real_time: seconds that the model takes for a second of scene.
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
) -> EvaluationResult:
    """Measures of all scenes.

    Args:
        task: in evaluation mode, on the device of the batches.
        batches: of a :class:`~cavmae.datasets.mixtures.scene_stream.FixedSceneStream`.
        ways: what is measured.
        cue: kind of cue that says whom slot 0 means; ``none``: everybody is matched.
        quality: of ``stoi`` and ``pesq`` what is measured of the model's own voices, too.
        hints: the class of each scene's target is told.
    """
    found: dict[Way, list[SceneMetrics]] = {way: [] for way in ways}
    changes: dict[str, list[float]] = {"muted": [], "swapped": []}
    before: Inputs | None = None  # the scene before this batch
    took = shown = 0.0
    for batch in batches:
        inputs, target = _inputs(task, batch, cue, hints)
        before = _row(inputs, len(inputs.mixture) - 1) if before is None else before
        # Each scene's other scene is the one before it, however they are batched.
        other = _joined([before, _row(inputs, slice(0, -1))])
        before = _row(inputs, len(inputs.mixture) - 1)
        truth = targets_of(batch, target, scale_of(batch))
        for way in found:
            if way == "oracle_ratio_mask":
                found[way] += _oracle(batch["key"], truth)
                continue
            own = way == "model"
            started = _now(inputs.mixture.device)
            looked, voices = task.predict(_seen(inputs, other, way))
            if own:
                took += _now(inputs.mixture.device) - started
                shown += len(inputs.mixture) * task.model.config.seconds
            waves, slots = assigned(looked, voices, truth, loss_weights(task.loss))
            found[way] += measure(
                batch["key"], waves, slots, truth, looked, voices.states, quality if own else ()
            )
            if own:
                _note_changes(changes, task, inputs, other, looked)
    means = {name: sum(v) / len(v) for name, v in changes.items() if v}
    return EvaluationResult(found, means, took / shown if shown else math.nan)


def _now(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _inputs(task: SpeakerTask, batch: Batch, cue: CueKind, hints: bool) -> tuple[Inputs, Tensor]:
    """What the model is given, and whom cues mean; a scene's cue depends on the scene alone."""
    if cue == "none":
        return task.inputs_of(batch, 0.0, hints=float(hints))
    made = []
    for row, key in enumerate(batch["key"]):
        torch.manual_seed(zlib.crc32(key.encode()))
        one = {k: v[row : row + 1] for k, v in batch.items()}
        made.append(task.inputs_of(one, 1.0, (cue,), float(hints)))
    return _joined([inputs for inputs, _ in made]), torch.cat([target for _, target in made])


def _row(inputs: Inputs, which: int | slice) -> Inputs:
    """Some of the scenes."""
    some = slice(which, which + 1) if isinstance(which, int) else which
    return _over(lambda one: one[0][some], [inputs])


def _joined(parts: Sequence[Inputs]) -> Inputs:
    """Scenes one after the other."""
    return _over(torch.cat, parts)


def _over(work: Callable[[list[Tensor]], Tensor], parts: Sequence[Inputs]) -> Inputs:
    """The same with every tensor of the inputs."""
    cues = Cues(*(work([getattr(p.cues, name) for p in parts]) for name in Cues._fields))
    names = [name for name in Inputs._fields if name != "cues"]
    return Inputs(**{name: work([getattr(p, name) for p in parts]) for name in names}, cues=cues)


def _seen(inputs: Inputs, other: Inputs, way: Way) -> Inputs:
    """What the model is shown."""
    if way == "frames_blanked":
        grey = round(GREY_MEAN)
        return inputs._replace(
            frames=torch.full_like(inputs.frames, grey), motion=torch.full_like(inputs.motion, grey)
        )
    if way == "frames_frozen":
        middle = inputs.motion.shape[1] // 2
        key = inputs.frames.shape[1] // 2
        return inputs._replace(
            frames=inputs.frames[:, key : key + 1].expand_as(inputs.frames),
            motion=inputs.motion[:, middle : middle + 1].expand_as(inputs.motion),
        )
    if way == "frames_swapped":
        return inputs._replace(frames=other.frames, motion=other.motion)
    return inputs


def _note_changes(
    changes: dict[str, list[float]],
    task: SpeakerTask,
    inputs: Inputs,
    other: Inputs,
    looked: SlotPredictions,
) -> None:
    """Shares of masks that are others without the sound, or with that of another scene."""
    before = looked.masks[-1] > 0
    silence = torch.zeros_like(inputs.mixture)
    others = {
        "muted": inputs._replace(mixture=silence, fbank=task.fbank(silence)),
        "swapped": inputs._replace(mixture=other.mixture, fbank=other.fbank),
    }
    for name, changed in others.items():
        after = task.model.predict_masks(changed).masks[-1] > 0
        both = (before & after).flatten(1).sum(1)
        either = (before | after).flatten(1).sum(1)
        share = 1 - both / either.clamp(min=1)
        changes[name] += share[either > 0].tolist()


def _oracle(keys: Sequence[str], truth: Targets) -> list[SceneMetrics]:
    """What ratio masks made of the true voices give."""
    parts = torch.cat([truth.people.voices, truth.residual[:, None]], dim=1)
    found = oracle_masks(spectrum(truth.mixture), spectrum(parts))
    waves = wave(found, truth.mixture.shape[-1])
    n, p = truth.people.present.shape
    return measure(keys, waves, torch.arange(p, device=waves.device).expand(n, -1), truth)
