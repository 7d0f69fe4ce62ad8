"""Training task of the event classifier."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cavmae.common.errors import UsageError
from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.transforms import DeviceTransform
from cavmae.finetune.events.conditions import NOT_AVERAGED, Conditions, frames_text
from cavmae.finetune.events.config import Mode
from cavmae.finetune.events.metrics import EventMetrics, event_metrics
from cavmae.finetune.events.model import EventClassifier, uses_audio, uses_video
from cavmae.finetune.laterals.audio_pathway import drop_pathway
from cavmae.finetune.laterals.sync_loss import SyncLoss
from cavmae.pretrain.engine.task import Embeddings, Record, StepOutput, Task, forward_flops


class EventTask(Task):
    """Event classifier with its loss and metrics.

    Args:
        model: the classifier.
        transform: normalises, augments and mixes batches.
        frozen: the encoder does not learn.
        frozen_motion: the motion pathway does not learn; its laterals do.
        learned_positions: the embeddings of positions learn.
        head_lr_scale: learning rate of the head, and of a motion branch, over that of the encoder.
        sync_weight: of the synchronisation loss of motion and audio; 0: none.
        seed: of DropPathway.

    Raises:
        UsageError: a synchronisation loss of a model without an audio pathway, or a frozen motion
            pathway that is not there.
    """

    model: EventClassifier

    def __init__(
        self,
        model: EventClassifier,
        transform: DeviceTransform,
        frozen: bool = False,
        frozen_motion: bool = False,
        learned_positions: bool = False,
        head_lr_scale: float = 1.0,
        sync_weight: float = 0.0,
        seed: int = 0,
    ):
        super().__init__()
        self.sync_weight, self.seed = sync_weight, seed
        self.sync = _sync_loss(model) if sync_weight else None
        self.model, self.transform, self.frozen = model, transform, frozen
        self.mode: Mode = model.config.modalities
        head = {id(parameter) for parameter in model.head_parameters()}
        self._scales = {
            name: head_lr_scale for name, value in model.named_parameters() if id(value) in head
        }
        if self.sync is not None:
            names = (f"sync.{name}" for name, _ in self.sync.named_parameters())
            self._scales |= dict.fromkeys(names, head_lr_scale)
        if learned_positions:
            for used, positions in (
                (uses_audio(self.mode), model.pos_embed_a),
                (uses_video(self.mode), model.pos_embed_v),
            ):
                positions.requires_grad_(used)
        frames = model.config.encoder.frames
        for parameter in model.parameters_without_gradient(model.training_passes(), frames):
            parameter.requires_grad_(False)  # DDP waits for gradients that never come
        if frozen:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in self._scales)
        self.frozen_motion = frozen_motion
        if frozen_motion:
            if model.motion_branch is None:
                raise UsageError(
                    "model.train_motion: the model has no motion pathway, leave it out or set "
                    "model.motion_height and model.motion_width."
                )
            model.motion_branch.pathway.requires_grad_(False)

    def training_step(
        self, batch: Batch, progress: float, embeddings: Sequence[Embeddings], micro_index: int
    ) -> StepOutput:
        """See :meth:`Task.training_step`."""
        clips = self.transform(batch)
        motion = self.model.motion_features(clips.get("motion"), self.mode)
        # A frozen encoder passes the gradient on to the motion branch.
        learns = not self.frozen or motion is not None
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            tokens = self.model.tokens(
                clips.get("fbank"), clips.get("frames"), self.mode, motion,
                self._audio_gate(progress, batch),
            )  # fmt: skip
        logits, labels = self.model.head(tokens).float(), clips["labels"]
        if self.model.config.multi_label:
            loss = functional.binary_cross_entropy_with_logits(logits, labels)
        else:
            loss = functional.cross_entropy(logits, labels)
        parts = {}
        if self.sync is not None:
            assert motion is not None
            sync = self._sync_loss(self.sync, clips, motion, progress)
            loss = loss + self.sync_weight * sync
            parts["sync"] = sync.detach()
        return StepOutput(loss, {"loss": loss.detach(), **parts})

    def _audio_gate(self, progress: float, batch: Batch) -> Tensor | None:
        """Factors of the laterals from audio in a training step, float [N]; None: there is none."""
        branch = self.model.motion_branch
        if branch is None or branch.lateral.audio is None:
            return None
        # The audio branch keeps the audio, so that no class is lost.
        keep = torch.zeros(len(batch["key"]), dtype=torch.bool, device=batch["labels"].device)
        return drop_pathway(branch.lateral.drop_prob, self.seed, progress, keep)

    def _sync_loss(self, sync: SyncLoss, clips: Batch, motion: Tensor, progress: float) -> Tensor:
        branch, fbank = self.model.motion_branch, clips["fbank"]
        assert branch is not None
        video, audio = branch.sync_features(motion, fbank)
        # A balanced stream draws with replacement: a clip is no negative of itself.
        keys = clips["key"]
        usable = torch.tensor(
            [keys.index(key) == n for n, key in enumerate(keys)], device=fbank.device
        )
        ids = torch.arange(len(keys), device=fbank.device)
        # Silence has to be told from speech where noise was added, too.
        return sync(video, audio, clips["log_mel"], ids, ids, usable, progress)

    def lr_scale(self, name: str) -> float:
        """See :meth:`Task.lr_scale`."""
        return self._scales.get(name.removeprefix("model."), 1.0)

    @torch.no_grad()
    def probs(self, batch: Batch, mode: Mode) -> Tensor:
        """Probabilities of the classes in each pass over a clip, to be averaged: [N, P, K].

        See :meth:`EventClassifier.forward_frames`.

        Args:
            batch: on the device, as loaded.
            mode: of the model.
        """
        clips = self.transform(batch)
        logits = self.model.forward_frames(
            clips.get("fbank"), clips.get("frames"), mode, clips.get("motion")
        ).float()
        return logits.sigmoid() if self.model.config.multi_label else logits.softmax(dim=-1)

    def validation_step(self, batch: Batch) -> Record:
        """See :meth:`Task.validation_step`."""
        probs = self.probs(batch, self.mode).mean(dim=1)
        return {"probs": probs.cpu(), "labels": batch["labels"].cpu()}

    def metrics(self, records: Sequence[Record]) -> EventMetrics:
        """Metrics of the clips of records of :meth:`validation_step`."""
        probs, labels = (torch.cat([r[name] for r in records]) for name in ("probs", "labels"))
        return event_metrics(probs, labels)

    def aggregate(self, records: Sequence[Record]) -> Mapping[str, float]:
        """See :meth:`Task.aggregate`."""
        return self.metrics(records).summary()

    def conditions(self) -> Mapping[str, str]:
        """See :meth:`Task.conditions`: an evaluation in training sees what the model takes."""
        config = self.model.config
        frames = frames_text(self.mode, config.encoder.frames, config)
        return Conditions(self.mode, frames, NOT_AVERAGED)._asdict()

    def preprocessing(self) -> dict[str, Any]:
        """See :meth:`Task.preprocessing`."""
        statistics = self.transform.statistics
        return {
            "fbank_mean": statistics.mean,
            "fbank_std": statistics.std,
            "padding": self.transform.padding,
        }

    def flops_per_sample(self) -> float:
        """See :meth:`Task.flops_per_sample`: backward takes twice forward; none if frozen."""
        c = self.model.config.encoder
        device = self.model.modality_a.device
        fbank = torch.zeros(1, c.audio_frames, c.mel_bins, device=device)
        frames = torch.zeros(1, c.frames, 3, *c.image_size, device=device)
        motion = None
        if (size := self.model.config.motion_size) is not None:
            shape = 1, self.model.config.motion_frames, *size
            motion = torch.zeros(shape, dtype=torch.uint8, device=device)
        forward = forward_flops(lambda: self.model(fbank, frames, self.mode, motion))
        pathway = 0.0
        if self.frozen_motion:
            pathway = forward_flops(lambda: self.model.motion_features(motion, self.mode))
        if not self.frozen:
            return 3 * (forward - pathway) + pathway
        # To the motion branch, the gradient passes through the encoder, whose weights have none.
        return forward if motion is None else 2 * (forward - pathway) + pathway


def _sync_loss(model: EventClassifier) -> SyncLoss:
    branch = model.motion_branch
    if branch is None or branch.lateral.audio is None:
        raise UsageError(
            f"loss.sync_weight needs an audio pathway, and lateral {model.config.lateral.name} has "
            "none: set model.lateral to a-f-s, a-fs or av-nonlocal, or loss.sync_weight to 0."
        )
    return SyncLoss(branch.pathway.channels, branch.lateral.audio.channels)
