"""Training task of the sound separator, whose mixtures are made on the device."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cavmae.datasets.mixtures.sound_mixer import FRAME, SoundBatch, SoundMixer
from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.finetune.separation.losses import separation_losses
from cavmae.finetune.separation.metrics import list_metrics, output_records
from cavmae.finetune.separation.model import SoundSeparator
from cavmae.finetune.separation.settings import SoundLossSettings
from cavmae.pretrain.engine.task import Embeddings, Record, StepOutput, Task, forward_flops


class SeparationTask(Task):
    """Sound separator with its mixtures, losses and metrics.

    Args:
        model: the separator.
        mixer: of the mixtures to train on.
        held_out: mixer of each list of mixtures to measure with, by name.
        loss: weights of the losses.
    """

    model: SoundSeparator

    def __init__(
        self,
        model: SoundSeparator,
        mixer: SoundMixer,
        held_out: Mapping[str, SoundMixer],
        loss: SoundLossSettings,
    ):
        super().__init__()
        self.model = model
        self.mixer = mixer
        self.held_out = dict(held_out)
        self.loss = loss

    def mixtures(self, batch: Batch, progress: float = 1.0) -> SoundBatch:
        """Mixtures of a batch of :class:`cavmae.datasets.mixtures.seed_stream.SeedStream`.

        Args:
            batch: of seeds.
            progress: fraction of training, for mixtures to train on.
        """
        device = next(self.model.parameters()).device
        mixer = self.held_out[batch["list"]] if batch["list"] else self.mixer
        mixer.to(device)
        if not batch["list"]:
            mixer = mixer.at(progress)
        with torch.autocast(device.type, enabled=False):
            return mixer.mix(batch["seed"], len(batch["key"]))

    def training_step(
        self, batch: Batch, progress: float, embeddings: Sequence[Embeddings], micro_index: int
    ) -> StepOutput:
        """See :meth:`Task.training_step`."""
        sound = self.mixtures(batch, progress)
        output = self.model(sound.mixture, sound.cues, sound.visible)
        with torch.autocast(sound.mixture.device.type, enabled=False):
            total, parts = separation_losses(output, sound, self.loss)
        return StepOutput(total, {"loss": total.detach(), **parts})

    def lr_scale(self, name: str) -> float:
        """See :meth:`Task.lr_scale`: all parameters are the model's."""
        return self.model.lr_scale(name.removeprefix("model."))

    def lr_start(self, name: str) -> float:
        """See :meth:`Task.lr_start`."""
        return self.model.lr_start(name.removeprefix("model."))

    @torch.no_grad()
    def validation_step(self, batch: Batch) -> Record:
        """See :meth:`Task.validation_step`."""
        sound = self.mixtures(batch)
        # A compiler would take longer than all lists, whose batches have a size of their own.
        with torch.compiler.set_stance("force_eager"):
            output = self.model(sound.mixture, sound.cues, sound.visible)
        with torch.autocast(sound.mixture.device.type, enabled=False):
            pitches = self.held_out[batch["list"]].speech.pitches
            return {"lists": output_records(batch["list"], output, sound, pitches)}

    def aggregate(self, records: Sequence[Record]) -> Mapping[str, float]:
        """See :meth:`Task.aggregate`."""
        return list_metrics([own for record in records for own in record["lists"]])

    def preprocessing(self) -> dict[str, Any]:
        """See :meth:`Task.preprocessing`."""
        return {"sample_rate": SAMPLE_RATE}

    def flops_per_sample(self) -> float:
        """See :meth:`Task.flops_per_sample`: counted forward, and twice that for backward."""
        device = next(self.model.parameters()).device
        settings, channels = self.mixer.settings, self.model.config.cue_channels
        mixture = torch.zeros(1, settings.samples, device=device)
        cues = torch.zeros(1, settings.voices, settings.samples // FRAME, channels, device=device)
        return 3 * forward_flops(lambda: self.model(mixture, cues))
