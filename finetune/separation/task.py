"""Training task of the sound separator, whose mixtures are made on the device."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cavmae.common.errors import UsageError
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
        steps: of training, and batches of each, for mixtures that are made for several batches.
        cuda_graph: record the first training step as a CUDA graph, and replay it.
    """

    model: SoundSeparator

    def __init__(
        self,
        model: SoundSeparator,
        mixer: SoundMixer,
        held_out: Mapping[str, SoundMixer],
        loss: SoundLossSettings,
        steps: tuple[int, int] = (1, 1),
        cuda_graph: bool = False,
    ):
        super().__init__()
        self.model = model
        self.mixer = mixer
        self.held_out = dict(held_out)
        self.loss = loss
        self.steps, self.cuda_graph = steps, cuda_graph
        self._made: tuple[int, SoundBatch] | None = None  # with their seed
        self._replay: Callable[..., tuple[Tensor, Tensor]] | None = None
        self._part_names: list[str] = []

    def mixtures(self, batch: Batch, progress: float = 1.0, micro_index: int = 0) -> SoundBatch:
        """Mixtures of a batch of :class:`cavmae.datasets.mixtures.seed_stream.SeedStream`.

        Args:
            batch: of seeds.
            progress: fraction of training, for mixtures to train on.
            micro_index: number of the batch in its step.
        """
        device = next(self.model.parameters()).device
        mixer = self.held_out[batch["list"]] if batch["list"] else self.mixer
        mixer.to(device)
        count, parts = len(batch["key"]), batch["parts"]
        if batch["part"]:  # as of the first of them, where a run was resumed between them
            steps, batches = self.steps
            progress = max(0.0, progress + (micro_index - batch["part"]) // batches / steps)
        if not batch["list"]:
            mixer = mixer.at(progress)
        with torch.autocast(device.type, enabled=False):
            if parts == 1:
                return mixer.mix(batch["seed"], count)
            if self._made is None or self._made[0] != batch["seed"]:
                self._made = batch["seed"], mixer.mix(batch["seed"], parts * count)
        rows = slice(batch["part"] * count, (batch["part"] + 1) * count)
        return SoundBatch._make(value[rows] for value in self._made[1])

    def training_step(
        self, batch: Batch, progress: float, embeddings: Sequence[Embeddings], micro_index: int
    ) -> StepOutput:
        """See :meth:`Task.training_step`."""
        sound = self.mixtures(batch, progress, micro_index)
        if not self.cuda_graph:
            total, parts = self._losses(sound)
            return StepOutput(total, {"loss": total.detach(), **parts})
        if self._replay is None:
            self._replay = self._record(sound)
        total, values = self._replay(*sound[:-1])
        # The next step overwrites what the graph gave.
        named = dict(zip(self._part_names, values.detach().clone().unbind(), strict=True))
        return StepOutput(total, {"loss": total.detach().clone(), **named})

    def _losses(self, sound: SoundBatch) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.model(sound.mixture, sound.cues, sound.visible)
        with torch.autocast(sound.mixture.device.type, enabled=False):
            return separation_losses(output, sound, self.loss)

    def _record(self, sound: SoundBatch) -> Callable[..., tuple[Tensor, Tensor]]:
        """Losses as a graph that is replayed, for batches of the shapes of these."""

        def losses(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            total, parts = self._losses(SoundBatch._make([*tensors, sound.speakers]))
            self._part_names = list(parts)
            return total, torch.stack([part.detach() for part in parts.values()])

        objective = _Objective(self.model, losses).train()
        # What autocast has cast is not kept from one call to the next in a graph.
        precision = torch.autocast(
            "cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"), False
        )
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True  # batches have one shape: kernels are tried out
        try:
            with precision:
                recorded: Any = torch.cuda.make_graphed_callables(
                    objective, tuple(value.clone() for value in sound[:-1]), allow_unused_input=True
                )
        except RuntimeError as error:
            raise UsageError(
                f"loop.cuda_graph: a step of {self.model.config.separator.name} cannot be "
                f"recorded ({' '.join(str(error).split())[:300]}): set it to false."
            ) from error
        finally:
            torch.backends.cudnn.benchmark = before
        replay: Callable[..., tuple[Tensor, Tensor]] = recorded.forward
        return replay

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


class _Objective(nn.Module):
    """Function of a batch's tensors, with the parameters whose gradients a graph has to give."""

    def __init__(self, model: nn.Module, function: Callable[..., tuple[Tensor, Tensor]]):
        super().__init__()
        self.model = model
        self._function = function

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        return self._function(*tensors)
