"""Training task of the speaker model on composed scenes."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cavmae.common.errors import UsageError
from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.features import FFT
from cavmae.datasets.stream.transforms import Statistics
from cavmae.finetune.laterals.audio_pathway import drop_pathway
from cavmae.finetune.laterals.sync_loss import SyncLoss
from cavmae.finetune.speaker.cue_sampling import draw_cues
from cavmae.finetune.speaker.cues import KINDS, CueKind, no_cues
from cavmae.finetune.speaker.losses import (
    Targets,
    assign_before_voices,
    person_sync_loss,
    presence_targets,
    speaker_losses,
    targets_of,
    teacher_force_masks,
    visual_losses,
    without_idle_masks,
)
from cavmae.finetune.speaker.metrics import SceneMetrics, assign_slots, measure, summary
from cavmae.finetune.speaker.model import SpeakerModel
from cavmae.finetune.speaker.model_tensors import (
    MASK_STRIDE,
    QUIETEST,
    Inputs,
    SlotPredictions,
    VoicePredictions,
)
from cavmae.finetune.speaker.prediction import SpeakerPredictor
from cavmae.finetune.speaker.settings import LossSettings
from cavmae.pretrain.engine.task import Embeddings, Record, StepOutput, Task, forward_flops


class SpeakerTask(Task):
    """Separation and segmentation of the target of a cue, then of all people.

    Args:
        model: model to train.
        loss: settings of the losses.
        statistics: of fbanks, those that the encoder was trained with.
        frozen: whether the encoder's weights are frozen.
        decay: layer-wise learning rate decay: factor from each encoder block to the one before it.
        sound_lr_scale: factor of the learning rate of the sound separator; 0: it is frozen.
        seed: of DropPathway, that of the run, equal in all processes.
        freeze_voices: whether training decodes no voices, and leaves their weights as they are; nor
            does it read lips, if the loss of articulation cues counts nothing.

    Raises:
        UsageError: the losses need what the model does not have.
    """

    model: SpeakerModel

    def __init__(
        self,
        model: SpeakerModel,
        loss: LossSettings,
        statistics: Statistics,
        frozen: bool = True,
        decay: float = 1.0,
        sound_lr_scale: float = 1.0,
        seed: int = 0,
        freeze_voices: bool = False,
    ):
        super().__init__()
        self.model = model
        self.loss = loss
        self.seed = seed
        self.sync = _sync_loss(model) if loss.sync_weight else None
        self.predictor = SpeakerPredictor(model, statistics)
        self.frozen = frozen
        if frozen:
            model.encoder.requires_grad_(False)
        # No pass takes audio and video together, and DDP would wait for these gradients.
        frames = model.config.key_frames
        for parameter in model.encoder.parameters_without_gradient(("a", "v"), frames):
            parameter.requires_grad_(False)
        self.freeze_voices = freeze_voices
        self.read_lips = not freeze_voices or loss.articulation_weight > 0
        if freeze_voices:
            model.freeze_voices()
        if not self.read_lips:
            model.freeze_lips()
        if sound_lr_scale == 0:
            model.sound.requires_grad_(False)
        self._lr_scales: dict[str, float] = {
            f"model.sound.{name}": sound_lr_scale * model.sound.lr_scale(name)
            for name, _ in model.sound.named_parameters()
        }
        if not frozen and decay < 1:
            layers = model.encoder.layer_groups()
            last = max(layers.values())
            for name, layer in layers.items():
                self._lr_scales[f"model.encoder.{name}"] = decay ** (last - layer)

    def lr_scale(self, name: str) -> float:
        """See :meth:`Task.lr_scale`."""
        return self._lr_scales.get(name, 1.0)

    def lr_start(self, name: str) -> float:
        """See :meth:`Task.lr_start`."""
        inner = name.removeprefix("model.sound.")
        return self.model.sound.lr_start(inner) if inner != name else 0.0

    def fbank(self, waves: Tensor) -> Tensor:
        """See :meth:`SpeakerPredictor.fbank`."""
        return self.predictor.fbank(waves)

    def inputs_of(
        self,
        batch: Batch,
        cue_prob: float,
        kinds: tuple[CueKind, ...] = KINDS[1:],
        hint_prob: float = 0.0,
    ) -> tuple[Inputs, Tensor]:
        """Inputs of a batch with random cues, and their targets int64 [N]; -1: no cue.

        Args:
            batch: of :func:`cavmae.datasets.mixtures.scene_stream.collate`, on the device.
            cue_prob: probability of a cue.
            kinds: of cues.
            hint_prob: probability of a hint.
        """
        scale = scale_of(batch)
        targets = targets_of(batch, torch.full_like(batch["target"], -1), scale)
        voice = self.fbank(batch["reference"])
        # A voice cue of a silent person would have no voice to match.
        rows = torch.arange(len(voice), device=voice.device)
        active = targets.people.active[rows, batch["target"]]
        has_reference = (batch["reference"].abs().amax(1) > 0) & active
        cues, target = draw_cues(
            targets.people, targets.masks, batch["target"], voice, has_reference,
            self.model.config.encoder.image_grid, cue_prob, kinds,
        )  # fmt: skip
        inputs = Inputs(
            mixture=batch["mixture"],
            fbank=self.fbank(batch["mixture"]),
            frames=batch["frames"],
            motion=batch["motion"],
            cues=cues,
            hint=self._hint(batch, hint_prob),
        )
        return inputs, target

    def _hint(self, batch: Batch, hint_prob: float) -> Tensor:
        """Number of the first class of the target's clip, with a probability; else 0: int64 [N]."""
        classes = self.model.config.classes
        numbers = [class_number(classes, labels) for labels in batch["labels"]]
        hint = torch.tensor(numbers, device=batch["target"].device)
        return hint * (torch.rand(len(numbers), device=hint.device) < hint_prob)

    def predict(self, inputs: Inputs) -> tuple[SlotPredictions, VoicePredictions]:
        """See :meth:`SpeakerPredictor.predict`."""
        return self.predictor.predict(inputs)

    def training_step(
        self, batch: Batch, progress: float, embeddings: Sequence[Embeddings], micro_index: int
    ) -> StepOutput:
        """See :meth:`Task.training_step`."""
        settings = self.loss
        cue_prob = 1.0 if progress < settings.cue_only_until else settings.cue_prob
        inputs, target = self.inputs_of(batch, cue_prob, hint_prob=settings.hint_prob)
        targets = targets_of(batch, target, scale_of(batch))
        predictions = self.model.predict_masks(inputs, self.audio_gate(inputs, progress))
        with torch.autocast(inputs.mixture.device.type, enabled=False):
            slots, pixels = assign_before_voices(predictions, targets, settings)
        masks = predictions.masks[-1].float().sigmoid()
        masks, replaced = teacher_force_masks(masks, targets, slots, settings.teacher_forcing_iou)
        presence_prob = self.model.presence_prob(predictions)
        masks = without_idle_masks(masks, presence_prob, targets.people, slots)
        if self.freeze_voices:
            cues = None
            if self.read_lips:
                cues = self.model.read_articulation(inputs.motion, predictions, masks)
            with torch.autocast(masks.device.type, enabled=False):
                losses = visual_losses(predictions, cues, targets, pixels, settings)
        else:
            presence_prob = presence_targets(presence_prob, targets, slots, replaced)
            voices = self.model.decode_voices(inputs, predictions, masks, presence_prob)
            with torch.autocast(masks.device.type, enabled=False):
                losses = speaker_losses(predictions, voices, targets, pixels, settings)
        total, parts = losses.total, losses.parts
        if self.sync is not None:
            parts["sync"] = self._sync(self.sync, batch, predictions, targets, progress)
            total = total + settings.sync_weight * parts["sync"]
        with_mask = (targets.people.present & targets.people.masked).sum().clamp(min=1)
        parts["teacher_forced"] = replaced.sum() / with_mask
        return StepOutput(total, {"loss": total.detach(), **parts})

    def audio_gate(self, inputs: Inputs, progress: float) -> Tensor | None:
        """Factors of laterals from audio in a training step: float [N]; None: 1.

        A clip whose target is known by voice alone keeps its audio: nothing else says which person
        of the clip the target is.
        """
        prob = self.model.lateral.drop_prob
        if not self.training or prob == 0:
            return None
        keep = inputs.cues.kind == KINDS.index("voice")
        return drop_pathway(prob, self.seed, progress, keep)

    def _sync(
        self, sync: SyncLoss, batch: Batch, predictions: SlotPredictions, targets: Targets,
        progress: float,
    ) -> Tensor:  # fmt: skip
        statistics = self.predictor.statistics
        fbanks = self.fbank(batch["voices"].flatten(0, 1))
        log_mel = fbanks * statistics.std + statistics.mean
        return person_sync_loss(
            sync, self.model, batch["motion"], predictions, targets, fbanks, log_mel, progress
        )

    @torch.no_grad()
    def validation_step(self, batch: Batch) -> Record:
        """See :meth:`Task.validation_step`: without cues, with predicted masks."""
        inputs, target = self.inputs_of(batch, 0.0)
        predictions, voices = self.model(inputs)
        targets = targets_of(batch, target, scale_of(batch))
        with torch.autocast(inputs.mixture.device.type, enabled=False):
            waves, slots = assign_slots(predictions, voices, targets, self.loss)
            return {
                "scenes": measure(batch["key"], waves, slots, targets, predictions, voices.states)
            }

    def aggregate(self, records: Sequence[Record]) -> Mapping[str, float]:
        """See :meth:`Task.aggregate`."""
        scenes: list[SceneMetrics] = [scene for record in records for scene in record["scenes"]]
        return summary(scenes)

    def preprocessing(self) -> dict[str, Any]:
        """See :meth:`Task.preprocessing`."""
        return {
            "fbank_mean": self.predictor.statistics.mean,
            "fbank_std": self.predictor.statistics.std,
            "sample_rate": 16_000,
            "fft": FFT,
        }

    def flops_per_sample(self) -> float:
        """See :meth:`Task.flops_per_sample`: counted forward for what learns, twice that backward.

        A single person's lips are read.
        """
        c = self.model.config
        device = next(self.model.parameters()).device
        h, w = c.encoder.image_size
        inputs = Inputs(
            mixture=torch.zeros(1, c.samples, device=device),
            fbank=torch.zeros(1, *c.encoder.audio_size[::-1], device=device),
            frames=torch.zeros(1, c.key_frames, h, w, 3, dtype=torch.uint8, device=device),
            motion=torch.zeros(1, c.frames, *c.motion_size, dtype=torch.uint8, device=device),
            cues=no_cues(1, c.encoder.image_grid, c.encoder.audio_size[::-1], device),
            hint=torch.zeros(1, dtype=torch.int64, device=device),
        )
        masks = torch.zeros(
            1, c.slots - 1, c.key_frames, h // MASK_STRIDE, w // MASK_STRIDE, device=device
        )
        masks[:, 0] = 1

        def forward() -> None:
            predictions = self.model.predict_masks(inputs)
            if not self.freeze_voices:
                self.model.decode_voices(inputs, predictions, masks)
            elif self.read_lips:
                self.model.read_articulation(inputs.motion, predictions, masks)

        encoder_flops = forward_flops(lambda: self.model.encode(inputs))
        total_flops = forward_flops(forward)
        return 3 * (total_flops - encoder_flops) + (1 if self.frozen else 3) * encoder_flops


def _sync_loss(model: SpeakerModel) -> SyncLoss:
    if model.lateral.audio is None:
        raise UsageError(
            f"loss.sync_weight needs an audio pathway, and lateral {model.config.lateral.name} has "
            "none: set model.lateral to a-f-s, a-fs or av-nonlocal, or loss.sync_weight to 0."
        )
    return SyncLoss(model.config.width, model.lateral.audio.channels)


def class_number(classes: Sequence[str], labels: Collection[str]) -> int:
    """Number from 1 of the first class among the labels of a clip; 0: none is."""
    return next((n for n, name in enumerate(classes, 1) if name in labels), 0)


def scale_of(batch: Batch) -> Tensor:
    """RMS of mixtures, by which the model divides them: [N, 1]."""
    mixture: Tensor = batch["mixture"]
    return mixture.square().mean(1, keepdim=True).sqrt().clamp(min=QUIETEST)
