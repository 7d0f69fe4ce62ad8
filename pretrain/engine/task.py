"""Interface of a task: loss and logs of a batch, metrics of held-out batches."""

import abc
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cavmae.datasets.stream.collate import Batch
from cavmae.pretrain.engine.hub import HubWeights

Embeddings = dict[str, Tensor]
Record = dict[str, Any]
Call = Literal["training_step", "embed", "validation_step"]


def forward_flops(forward: Callable[[], Any]) -> float:
    """FLOPs of linear maps, convolutions and attention in a call, with gradients as in training.

    The blocks run uncompiled: those that are first called under a counter are never compiled. The
    counter does not know the CPU's fused attention and LSTMs, so that their plain forms run.
    """
    eager = torch.compiler.set_stance("force_eager")
    with warnings.catch_warnings(), eager, torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        warnings.filterwarnings("ignore", "TF32 acceleration")  # of the flags' setter, on any CPU
        with (
            torch.backends.mkldnn.flags(enabled=False),
            FlopCounterMode(display=False) as counter,
        ):
            forward()
    return float(counter.get_total_flops())


class StepOutput(NamedTuple):
    """Loss of a batch, and scalars to log.

    Attributes:
        loss: the gradients of a step's batches add up to that of the step.
        logs: scalars, among them ``loss``; their means over a step's batches are logged.
    """

    loss: Tensor
    logs: dict[str, Tensor]


class Task(nn.Module, abc.ABC):
    """A model with its losses and metrics; the trainer knows neither.

    A contrastive loss must see all clips of a step, also with gradient accumulation. Such a task
    ``needs_global_batch``: the trainer first calls :meth:`embed`, without gradient, for every batch
    of the step, then :meth:`training_step` with the embeddings of all, in which the task puts its
    own with gradient.

    Attributes:
        model: part of a checkpoint that ``from_pretrained`` loads.
        needs_global_batch: whether the loss compares clips with each other.
    """

    model: HubWeights
    needs_global_batch = False

    def forward(
        self,
        call: Call,
        batch: Batch,
        progress: float = 0.0,
        embeddings: Sequence[Embeddings] = (),
        micro_index: int = 0,
    ) -> Any:
        """Calls one of the methods below: the hooks of DDP and FSDP are on ``forward``."""
        if call == "training_step":
            return self.training_step(batch, progress, embeddings, micro_index)
        if call == "embed":
            return self.embed(batch)
        if call == "validation_step":
            return self.validation_step(batch)
        raise ValueError(f"a task has no {call!r}")

    @abc.abstractmethod
    def training_step(
        self, batch: Batch, progress: float, embeddings: Sequence[Embeddings], micro_index: int
    ) -> StepOutput:
        """Loss of a batch.

        Args:
            batch: on the device, as loaded.
            progress: fraction of training that is done.
            embeddings: of all batches of the step, from :meth:`embed`; empty: there is only this
                one. Losses that are means over clips are divided by the number of batches.
            micro_index: index of this batch among them.
        """

    def embed(self, batch: Batch) -> Embeddings:
        """Embeddings of a batch that the losses of a step's other batches need."""
        raise TypeError("this task compares no clips with each other")

    def lr_scale(self, name: str) -> float:
        """Factor of the learning rate of a parameter."""
        return 1.0

    def lr_start(self, name: str) -> float:
        """Fraction of training before which the learning rate of a parameter is 0."""
        return 0.0

    @abc.abstractmethod
    def validation_step(self, batch: Batch) -> Record:
        """Record of a held-out batch for :meth:`aggregate`: tensors and lists on the CPU."""

    @abc.abstractmethod
    def aggregate(self, records: Sequence[Record]) -> Mapping[str, float]:
        """Metrics of a held-out set from the records of all its batches."""

    def conditions(self) -> Mapping[str, str]:
        """Conditions of the metrics of :meth:`aggregate`, by name; by default there are none."""
        return {}

    @abc.abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """Preprocessing of batches, as JSON values, saved beside the weights."""

    @abc.abstractmethod
    def flops_per_sample(self) -> float:
        """FLOPs of a training step, for one clip."""
