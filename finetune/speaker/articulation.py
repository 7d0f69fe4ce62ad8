"""Articulation cue read from heads under true masks: a motion pathway without a speaker model.

It isolates what a motion pathway contributes to the speaker model, at a fraction of the cost: no
encoder, no slots, no voices.

Shapes: N clips, P people, T frames of h x w pixels, F key frames, C channels of a cue.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cavmae.datasets.mixtures.speech_bank import CUE_CHANNELS
from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.finetune.motion.settings import ConvMotionOptions, MotionOptions
from cavmae.finetune.speaker.articulation_loss import (
    articulation_loss,
    cue_agreement,
    known_cues,
)
from cavmae.finetune.speaker.head_reader import HeadReader, pooled_masks
from cavmae.finetune.speaker.motion_reader import ArticulationHead
from cavmae.pretrain.config import check_bounds
from cavmae.pretrain.engine.hub import HubWeights
from cavmae.pretrain.engine.task import Embeddings, Record, StepOutput, Task, forward_flops

KEY_SPACING = 8  # frames from one key frame with masks to the next, as in the speaker model


@dataclasses.dataclass(frozen=True)
class ArticulationConfig:
    """Configuration of an articulation reader.

    Args:
        motion: pathway over crops around heads.
        width: embedding width of a person's motion.
        frames: of a clip, a multiple of 8.
        size: side of the crops in pixels, a multiple of 4.

    Raises:
        ValueError: a number is out of range; the message names the field.
    """

    motion: MotionOptions = ConvMotionOptions()
    width: int = 128
    frames: int = 64
    size: int = 64

    def __post_init__(self) -> None:
        check_bounds(self, {"width": (4, 4096), "frames": (8, 4096), "size": (16, 1024)})
        for name, factor in (("frames", KEY_SPACING), ("size", 4)):
            if getattr(self, name) % factor:
                raise ValueError(f"{name} {getattr(self, name)} is not a multiple of {factor}.")

    @property
    def keys(self) -> int:
        """F, number of key frames."""
        return self.frames // KEY_SPACING


class ArticulationModel(HubWeights):
    """Motion of heads and articulation cue, as in the speaker model.

    Its parts have the names that they have there.

    Args:
        config: see :class:`ArticulationConfig`.
    """

    model_type = "articulation"
    config_class = ArticulationConfig

    def __init__(self, config: ArticulationConfig):
        super().__init__()
        self.config = config
        self.motion_reader = HeadReader(config.motion, config.size, config.width)
        self.articulation_head = ArticulationHead(config.width, CUE_CHANNELS)

    def forward(self, motion: Tensor, masks: Tensor) -> Tensor:
        """Articulation cues of people [N, P, T, C].

        Args:
            motion: uint8 [N, T, h, w], grey frames.
            masks: bool [N, P, F, H, W], of key frames.
        """
        embed = self.motion_reader(motion, pooled_masks(masks))
        cues: Tensor = self.articulation_head(embed)
        return cues


class ArticulationTask(Task):
    """Reading of the articulation cue of people from grey frames, under their true masks.

    Args:
        model: to train. Held-out scenes may last several of its clips; they are read clip by clip.
    """

    model: ArticulationModel

    def __init__(self, model: ArticulationModel):
        super().__init__()
        self.model = model

    def training_step(
        self, batch: Batch, progress: float, embeddings: Sequence[Embeddings], micro_index: int
    ) -> StepOutput:
        """See :meth:`Task.training_step`: the loss of the speaker model."""
        predicted = self.model(batch["motion"], batch["masks"])
        known = known_cues(batch)
        loss = articulation_loss(predicted[known], batch["articulation"][known])
        return StepOutput(loss, {"loss": loss.detach()})

    @torch.no_grad()
    def validation_step(self, batch: Batch) -> Record:
        """See :meth:`Task.validation_step`: cues of people, predicted and true: [people, T, C]."""
        frames, keys = self.model.config.frames, self.model.config.keys
        motion, masks = batch["motion"], batch["masks"]
        clips = motion.unflatten(1, (-1, frames))  # [N, clips, T', h, w]
        masks = masks.unflatten(2, (-1, keys)).transpose(1, 2)  # [N, clips, P, F', H, W]
        cues = self.model(clips.flatten(0, 1), masks.flatten(0, 1))
        cues = cues.unflatten(0, clips.shape[:2]).transpose(1, 2).flatten(2, 3)
        known, true = known_cues(batch), batch["articulation"]
        return {"predicted": cues[known].float().cpu(), "articulation": true[known].cpu()}

    def aggregate(self, records: Sequence[Record]) -> Mapping[str, float]:
        """See :meth:`Task.aggregate` and :func:`cue_agreement`."""
        return cue_agreement(records)

    def preprocessing(self) -> dict[str, Any]:
        """See :meth:`Task.preprocessing`."""
        return {"frame_rate": VIDEO_RATE}

    def flops_per_sample(self) -> float:
        """See :meth:`Task.flops_per_sample`: counted forward, and twice that for backward."""
        c, device = self.model.config, next(self.model.parameters()).device
        motion = torch.zeros(1, c.frames, c.size, c.size, dtype=torch.uint8, device=device)
        masks = torch.ones(1, 1, c.keys, c.size, c.size, dtype=torch.bool, device=device)
        return 3 * forward_flops(lambda: self.model(motion, masks))
