"""Training task of the articulation cue alone: the speaker model's reader under true masks.

Neither masks nor voices are computed, so a step takes a fraction of the time
(`--model.freeze masks`).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cavmae.datasets.stream.collate import Batch
from cavmae.finetune.speaker.articulation_loss import (
    articulation_loss,
    cue_agreement,
    known_cues,
)
from cavmae.finetune.speaker.head_reader import pooled_masks
from cavmae.finetune.speaker.task import SpeakerTask
from cavmae.pretrain.engine.task import Embeddings, Record, StepOutput, forward_flops


class LipsTask(SpeakerTask):
    """Reading of articulation cues by a speaker model, under people's true masks.

    All other weights are frozen. See :class:`SpeakerTask` for the arguments.
    """

    def __init__(self, *args: object, **options: object):
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.model.freeze_all_but_lips()

    def training_step(
        self, batch: Batch, progress: float, embeddings: Sequence[Embeddings], micro_index: int
    ) -> StepOutput:
        """See :meth:`Task.training_step`."""
        known = known_cues(batch)
        loss = articulation_loss(self._read(batch, known)[known], batch["articulation"][known])
        return StepOutput(loss, {"loss": loss.detach()})

    @torch.no_grad()
    def validation_step(self, batch: Batch) -> Record:
        """See :meth:`Task.validation_step`: cues of people, predicted and true: [M, T, 4]."""
        known = known_cues(batch)
        predicted = self._read(batch, known)[known]
        return {
            "predicted": predicted.float().cpu(), "articulation": batch["articulation"][known].cpu()
        }  # fmt: skip

    def aggregate(self, records: Sequence[Record]) -> Mapping[str, float]:
        """See :meth:`Task.aggregate` and :func:`cue_agreement`."""
        return cue_agreement(records)

    def flops_per_sample(self) -> float:
        """See :meth:`Task.flops_per_sample`: counted forward for one person, and twice that."""
        c = self.model.config
        device = next(self.model.parameters()).device
        grey = torch.zeros(1, c.frames, *c.motion_size, dtype=torch.uint8, device=device)
        masks = torch.ones(1, 1, c.key_frames, *c.encoder.image_size, device=device)
        return 3 * forward_flops(lambda: self.model.read_lips(grey, masks))

    def _read(self, batch: Batch, known: Tensor) -> Tensor:
        """Cues [N, P, T, 4] of all people, meaningless where they are not known."""
        masks = batch["masks"] * known[:, :, None, None, None]  # no time for the others
        return self.model.read_lips(batch["motion"], pooled_masks(masks))
