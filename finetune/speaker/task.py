"""The task of fine-tuning: voices and masks of people in composed scenes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cavmae.common.errors import CavmaeError, NonFiniteError
from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.features import FFT, HOP, WINDOW, fbank_batch
from cavmae.datasets.stream.transforms import Statistics
from cavmae.finetune.speaker.cue_sampling import draw_cues
from cavmae.finetune.speaker.cues import KINDS, CueKind, no_cues
from cavmae.finetune.speaker.losses import (
    loss_weights,
    presence_targets,
    seen_slots,
    speaker_losses,
    targets_of,
    teacher_force_masks,
)
from cavmae.finetune.speaker.metrics import SceneMetrics, assigned, measure, summary
from cavmae.finetune.speaker.model import (
    QUIETEST,
    Inputs,
    SlotPredictions,
    SpeakerModel,
    VoicePredictions,
)
from cavmae.finetune.speaker.settings import LossSettings
from cavmae.finetune.speaker.voice_matching import target_to_slot0
from cavmae.pretrain.engine.task import Embeddings, Record, StepOutput, Task

# Samples after a mixture's end that its last two fbank frames reach into.
BEYOND = WINDOW - HOP


class SpeakerTask(Task):
    """Tasks 1 to 3: whom a cue means, then everybody.

    Args:
        model: what is trained.
        loss: what it is to learn.
        statistics: of fbanks, those that the encoder was trained with.
        frozen: whether the encoder stays as it is.
        decay: how much slower each block of the encoder learns than the one after it.
    """

    model: SpeakerModel

    def __init__(
        self,
        model: SpeakerModel,
        loss: LossSettings,
        statistics: Statistics,
        frozen: bool = True,
        decay: float = 1.0,
    ):
        super().__init__()
        self.model = model
        self.loss = loss
        self.statistics = statistics
        self.frozen = frozen
        self.decay = decay
        for name, parameter in model.encoder.named_parameters():
            # DDP waits for gradients that never come: no pass takes sound and picture together.
            unused = "pos_embed" in name or _only_together(name)
            if frozen or unused:
                parameter.requires_grad_(False)

    def lr_scale(self, name: str) -> float:
        """See :meth:`Task.lr_scale`."""
        if not name.startswith("model.encoder."):
            return 1.0
        depth = self.model.config.encoder.depth
        joint = self.model.config.encoder.joint_depth
        part, *rest = name.removeprefix("model.encoder.").split(".")
        if part.startswith("blocks_"):
            level = int(rest[0]) + (depth if part == "blocks_u" else 0) + 1
        else:
            level = depth + joint + 1 if part.startswith("norm") else 0
        return float(self.decay ** (depth + joint + 1 - level))

    def fbank(self, waves: Tensor) -> Tensor:
        """Normalised fbanks of mixtures: [N, S] -> [N, S / 160, mel]."""
        with torch.autocast(waves.device.type, enabled=False):
            found = fbank_batch(torch.nn.functional.pad(waves.float(), (0, BEYOND)))
            return (found - self.statistics.mean) / self.statistics.std

    def inputs_of(
        self,
        batch: Batch,
        share: float,
        kinds: tuple[CueKind, ...] = KINDS[1:],
        hints: float = 0.0,
    ) -> tuple[Inputs, Tensor]:
        """What the model is given of a batch, and whom its cues mean (-1: there is none).

        Args:
            share: of clips that get a cue.
            kinds: of cues.
            hints: share of clips whose class is told.
        """
        scale = scale_of(batch)
        truth = targets_of(batch, torch.full_like(batch["target"], -1), scale)
        voice = self.fbank(batch["reference"])
        # Who says nothing here cannot be known by their voice.
        rows = torch.arange(len(voice), device=voice.device)
        active = truth.people.active[rows, batch["target"]]
        known = (batch["reference"].abs().amax(1) > 0) & active
        cues, target = draw_cues(
            truth.people, truth.masks, batch["target"], voice, known,
            self.model.config.encoder.image_grid, share, kinds,
        )  # fmt: skip
        inputs = Inputs(
            mixture=batch["mixture"],
            fbank=self.fbank(batch["mixture"]),
            frames=batch["frames"],
            motion=batch["motion"],
            cues=cues,
            hint=self._hint(batch, hints),
        )
        return inputs, target

    def _hint(self, batch: Batch, share: float) -> Tensor:
        """Number of the first class that the clip of the scene's target has; 0: none is told."""
        classes = self.model.config.classes
        found = [
            next((n + 1 for n, name in enumerate(classes) if name in labels), 0)
            for labels in batch["labels"]
        ]
        told = torch.tensor(found, device=batch["target"].device)
        return told * (torch.rand(len(found), device=told.device) < share)

    def predict(self, inputs: Inputs) -> tuple[SlotPredictions, VoicePredictions]:
        """What the model finds, once it has learned.

        Where the cue is a voice, slot 0 is whoever sounds most like it of those that were found:
        see :mod:`cavmae.finetune.speaker.voice_matching`. The model itself is not told, then: of 43
        minutes of speech it learned too little of how people sound, and found masks and voices less
        well (docs/results.md).

        Raises:
            CavmaeError: the sound has NaN or Inf.
            NonFiniteError: the model gives NaN or Inf.
        """
        if not bool(torch.isfinite(inputs.mixture).all()):
            raise CavmaeError("The sound has NaN or Inf: convert it to 16 bits.")
        by_voice = inputs.cues.kind == KINDS.index("voice")
        if not bool(by_voice.any()):
            found: tuple[SlotPredictions, VoicePredictions] = self.model(inputs)
            _check_finite(*found)
            return found
        kind = inputs.cues.kind.masked_fill(by_voice, 0)
        looked, voices = self.model(inputs._replace(cues=inputs.cues._replace(kind=kind)))
        _check_finite(looked, voices)
        waves = voices.waves(inputs.mixture.shape[-1])
        fbanks = self.fbank(waves.flatten(0, 1)).unflatten(0, waves.shape[:2])
        return target_to_slot0(inputs, looked, voices, waves, fbanks)

    def training_step(
        self, batch: Batch, progress: float, pieces: Sequence[Embeddings], turn: int
    ) -> StepOutput:
        """See :meth:`Task.training_step`."""
        how = self.loss
        share = 1.0 if progress < how.cue_only_until else how.cue_prob
        inputs, target = self.inputs_of(batch, share, hints=how.hint_prob)
        truth = targets_of(batch, target, scale_of(batch))
        looked = self.model.predict_masks(inputs)
        with torch.autocast(inputs.mixture.device.type, enabled=False):
            slots, pixels = seen_slots(looked, truth, how)
        own = looked.masks[-1].float().sigmoid()
        masks, replaced = teacher_force_masks(own, truth, slots, how.teacher_forcing_iou)
        there = presence_targets(self.model.presence_prob(looked), truth, slots, replaced)
        voices = self.model.decode_voices(inputs, looked, masks, there)
        with torch.autocast(masks.device.type, enabled=False):
            losses = speaker_losses(looked, voices, truth, pixels, how)
        seen = (truth.people.present & truth.people.masked).sum().clamp(min=1)
        parts = {**losses.parts, "teacher_forced": replaced.sum() / seen}
        return StepOutput(losses.total, {"loss": losses.total.detach(), **parts})

    @torch.no_grad()
    def validation_step(self, batch: Batch) -> Record:
        """See :meth:`Task.validation_step`: without cues, with the model's own masks."""
        inputs, target = self.inputs_of(batch, 0.0)
        looked, voices = self.model(inputs)
        truth = targets_of(batch, target, scale_of(batch))
        with torch.autocast(inputs.mixture.device.type, enabled=False):
            waves, slots = assigned(looked, voices, truth, loss_weights(self.loss))
            return {"scenes": measure(batch["key"], waves, slots, truth, looked, voices.states)}

    def aggregate(self, records: Sequence[Record]) -> Mapping[str, float]:
        """See :meth:`Task.aggregate`."""
        scenes: list[SceneMetrics] = [scene for record in records for scene in record["scenes"]]
        return summary(scenes)

    def preprocessing(self) -> dict[str, Any]:
        """See :meth:`Task.preprocessing`."""
        return {
            "fbank_mean": self.statistics.mean,
            "fbank_std": self.statistics.std,
            "sample_rate": 16_000,
            "fft": FFT,
        }

    def flops_per_sample(self) -> float:
        """See :meth:`Task.flops_per_sample`: counted forwards, and backwards twice that."""
        c = self.model.config
        device = next(self.model.parameters()).device
        h, w = c.encoder.image_size
        one = Inputs(
            mixture=torch.zeros(1, c.samples, device=device),
            fbank=torch.zeros(1, *c.encoder.audio_size[::-1], device=device),
            frames=torch.zeros(1, c.key_frames, h, w, 3, dtype=torch.uint8, device=device),
            motion=torch.zeros(1, c.frames, *c.motion_size, dtype=torch.uint8, device=device),
            cues=no_cues(1, c.encoder.image_grid, c.encoder.audio_size[::-1], device),
            hint=torch.zeros(1, dtype=torch.int64, device=device),
        )
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            self.model.encode(one)
        encoder = counter.get_total_flops()
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            self.model(one)
        whole = counter.get_total_flops()
        return float(3 * (whole - encoder) + (1 if self.frozen else 3) * encoder)


def scale_of(batch: Batch) -> Tensor:
    """RMS of mixtures: [N, 1], as the model levels them."""
    mixture: Tensor = batch["mixture"]
    return mixture.square().mean(1, keepdim=True).sqrt().clamp(min=QUIETEST)


def _only_together(name: str) -> bool:
    """Whether a parameter of the encoder is only used where sound and picture pass together."""
    parts = name.split(".")
    if parts[0] == "norm":
        return True
    norm = parts[2] if len(parts) > 2 else ""
    if not norm.startswith("norm"):
        return False
    single = norm.endswith(("_a", "_v"))
    return single != (parts[0] == "blocks_u")


def _check_finite(looked: SlotPredictions, voices: VoicePredictions) -> None:
    """Checks the model's output: NaN exceeds no threshold, it would read as silence."""
    outputs = (*voices, looked.masks[-1], looked.votes)
    if not bool(torch.stack([output.isfinite().all() for output in outputs]).all()):
        raise NonFiniteError(
            "The model gives NaN or Inf: its weights or its statistics are damaged, so copy the "
            "model again; if this is not fp32, try --precision fp32."
        )
