"""Events over time in a recording of any length.

>>> predictor = EventPredictor.from_pretrained("runs/events/checkpoints/000001000")
>>> prediction = predictor.predict("street.mp4")
>>> prediction.timeline.probs.shape
"""

import dataclasses
import functools
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cavmae.common.device import device_of
from cavmae.common.errors import NonFiniteError, UsageError
from cavmae.datasets.media import MediaError, Probe, probe
from cavmae.datasets.media.playback import extent
from cavmae.datasets.sharding.sources import local_copy
from cavmae.datasets.stream.features import FBANK_RATE
from cavmae.datasets.stream.view import View
from cavmae.finetune.events.conditions import Conditions, frames_text
from cavmae.finetune.events.config import EventConfig, Mode
from cavmae.finetune.events.model import uses_audio, uses_video
from cavmae.finetune.events.task import EventTask
from cavmae.finetune.inference.digests import weights_digest
from cavmae.finetune.inference.event_model import (
    checked_frames,
    checked_mode,
    load_task,
    weights_text,
)
from cavmae.finetune.inference.event_settings import PredictSettings
from cavmae.finetune.inference.event_timeline import EventTimeline, WindowPlan
from cavmae.finetune.inference.event_windows import EventWindows, MotionInput, WindowInput
from cavmae.finetune.inference.naming import source_facts
from cavmae.finetune.inference.progress import ProgressCallback, ignore_progress
from cavmae.finetune.inference.recording_errors import recording_errors
from cavmae.finetune.inference.unread_media import UnreadMedia

log = logging.getLogger("cavmae")
BATCH = 8  # windows of a forward pass
MESSAGES = {
    "no_audio": "it has no audio, which this mode needs",
    "no_video": "it has no video, which this mode needs",
}


@dataclasses.dataclass(frozen=True)
class EventPrediction:
    """Events over time in one recording.

    Attributes:
        timeline: probabilities of the classes.
        conditions: mode, frames and weights that gave them.
        seconds: duration of the recording.
        plan: windows.
        remarks: sentences about what is missing or was not read.
    """

    timeline: EventTimeline
    conditions: Conditions
    seconds: float
    plan: WindowPlan
    remarks: tuple[str, ...]


class EventPredictor:
    """Event classifier for recordings of any length.

    Args:
        task: the classifier with its preprocessing, on its device, in evaluation mode.
        name: source of the model, for the record.
    """

    def __init__(self, task: EventTask, name: str):
        self._task, self._name = task, name

    @classmethod
    def from_pretrained(cls, name: str, device: str = "auto") -> "EventPredictor":
        """Loads an event classifier.

        Args:
            name: checkpoint of `cavmae finetune events`, or a name in the box or on the hub.
            device: ``auto``: a GPU if there is one.

        Raises:
            CavmaeError: the model or the device does not exist, or the model is of another kind.
        """
        usable_device = device_of(device)
        return cls(load_task(name).to(usable_device).eval(), name)

    @property
    def config(self) -> EventConfig:
        """Configuration of the model."""
        return self._task.model.config

    def check(self, settings: PredictSettings) -> None:
        """Checks the options that depend on the model.

        Raises:
            UsageError: the model does not take the mode, frames or window, or lacks a class.
        """
        mode = checked_mode(settings.mode, self.config)
        checked_frames(settings.frames, mode, self.config)
        for name in settings.classes:
            if name not in self.config.classes:
                known = ", ".join(self.config.classes[:20])
                more = ", ..." if len(self.config.classes) > 20 else ""
                raise UsageError(
                    f"--classes: {name!r} is no class of the model; they are {known}{more}."
                )
        if len({*settings.classes}) < len(settings.classes):
            raise UsageError("--classes: name each class once.")
        longest = self.config.encoder.audio_frames / FBANK_RATE
        if settings.window is not None and not 0.1 <= settings.window <= longest:
            raise UsageError(
                f"--window {settings.window:g}: the model takes windows of 0.1 to {longest:g} s."
            )

    def provenance(self, video: str, settings: PredictSettings) -> dict[str, Any]:
        """Inputs that a prediction depends on, as ``events.json`` records them."""
        options = dataclasses.asdict(settings)
        return {
            **source_facts(video),
            "model": self._name,
            "weights": self._weights,
            "settings": options | {"classes": list(settings.classes)},
        }

    @functools.cached_property
    def _weights(self) -> str:
        """Digest of weights and configuration, the statistics of fbanks and the padding."""
        transform = self._task.transform
        return weights_digest(
            self._task.model, (self.config, transform.statistics, transform.padding)
        )

    def predict(
        self,
        video: str | Path,
        settings: PredictSettings | None = None,
        progress: ProgressCallback | None = None,
        folder: Path | None = None,
    ) -> EventPrediction:
        """Predicts the events of a recording.

        Args:
            video: file with video, audio or both, or its URL.
            settings: options; None: the defaults.
            progress: called with the fraction done, from 0 to 1.
            folder: for the copy of a URL; None: a temporary one.

        Raises:
            UsageError: see :meth:`check`.
            CavmaeError: the recording lacks a modality that the mode needs, or too much of it does
                not decode; the output of the model is not finite.
        """
        settings, name = settings or PredictSettings(), str(video)
        self.check(settings)
        with (
            recording_errors(name, self._name, None, MESSAGES),
            tempfile.TemporaryDirectory(dir=folder, prefix="cavmae-") as scratch,
            local_copy(name, Path(scratch)) as local,
        ):
            info = probe(local, settings.video_stream, settings.audio_stream, partial=True)
            return self._predict(name, info, settings, progress or ignore_progress)

    def _predict(
        self, name: str, info: Probe, settings: PredictSettings, progress: ProgressCallback
    ) -> EventPrediction:
        mode, remarks = usable_mode(checked_mode(settings.mode, self.config), info)
        remarks = [*info.remarks, *remarks]
        encoder = self.config.encoder
        count = checked_frames(settings.frames, mode, self.config) if uses_video(mode) else 0
        seconds = max(info.span[1], 1 / FBANK_RATE)
        length = encoder.audio_frames
        if settings.window is not None:
            length = round(settings.window * FBANK_RATE)
        plan = WindowPlan.of(extent(seconds)[1], length, settings.hop)
        if plan.rows < plan.length:
            remarks.append(
                f"it lasts {seconds:.2f} s, less than a window of {plan.length / FBANK_RATE:g} s, "
                "and is padded as in training"
            )
        probs: list[np.ndarray] = []
        motion = None
        if (size := self.config.motion_size) is not None:
            times = View(fbank_frames=encoder.audio_frames).motion_times
            motion = MotionInput(times, size)
        windows = EventWindows(info, plan, count, encoder.image_size, uses_audio(mode), motion)
        with windows:
            packets = info.audio_packets if uses_audio(mode) else 0
            unread = UnreadMedia(windows, packets, settings.max_missing)
            batch: list[WindowInput] = []
            for window in windows:
                unread.check()
                batch.append(window)
                if len(batch) == BATCH:
                    probs.append(self._probs(batch, mode))
                    batch = []
                    progress(len(probs) * BATCH / len(plan.starts))
            if batch:
                probs.append(self._probs(batch, mode))
        if uses_audio(mode) and not windows.peak:
            remarks.append("its audio is digital silence")
        remarks += unread.remarks()
        for remark in remarks:
            log.warning("%s: %s.", name, remark)
        progress(1.0)
        timeline = EventTimeline(
            self.config.classes, plan.bounds, plan.smoothed(np.concatenate(probs))
        )
        conditions = Conditions(
            mode, frames_text(mode, count, self.config), weights_text(self._name)
        )
        return EventPrediction(timeline, conditions, seconds, plan, tuple(remarks))

    def _probs(self, windows: Sequence[WindowInput], mode: Mode) -> np.ndarray:
        """Probabilities of windows, float32 [W, K]."""
        device = self._task.model.modality_a.device
        batch: dict[str, Any] = {}
        if windows[0].fbank is not None:
            batch["fbank"] = torch.from_numpy(
                np.stack([self._padded(window.fbank) for window in windows])
            ).to(device)
        if windows[0].frames is not None:
            frames = np.stack([w.frames for w in windows if w.frames is not None])
            batch["frames"] = torch.from_numpy(frames).to(device)
        if windows[0].motion is not None:
            motion = np.stack([w.motion for w in windows if w.motion is not None])
            batch["motion"] = torch.from_numpy(motion).to(device)
        probs: np.ndarray = self._task.probs(batch, mode).mean(dim=1).cpu().numpy()
        if not np.isfinite(probs).all():
            raise NonFiniteError("probabilities")
        return probs

    def _padded(self, fbank: np.ndarray | None) -> np.ndarray:
        """Fbank of the model's length, padded as in training: float16 [frames, 128]."""
        assert fbank is not None
        rows = self.config.encoder.audio_frames
        value = View(padding=self._task.transform.padding).padding_value
        return np.pad(fbank, ((0, rows - len(fbank)), (0, 0)), constant_values=value)


def usable_mode(mode: Mode, info: Probe) -> tuple[Mode, list[str]]:
    """Mode for the modalities that a recording has, and a sentence if it is another one.

    Args:
        mode: of the options or of the model.
        info: probe of the recording.

    Raises:
        MediaError: ``no_audio`` or ``no_video``: the mode needs what the recording lacks.
    """
    has_audio, has_video = info.audio_packets > 0, len(info.frame_times) > 0
    if mode == "multimodal" and not has_audio:
        return "missing_audio", ["it has no audio: predicted from its frames (missing_audio)"]
    if mode == "multimodal" and not has_video:
        return "missing_video", ["it has no video: predicted from its audio (missing_video)"]
    if uses_audio(mode) and not has_audio:
        raise MediaError("no_audio", f"mode {mode}")
    if uses_video(mode) and not has_video:
        raise MediaError("no_video", f"mode {mode}")
    return mode, []
