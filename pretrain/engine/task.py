"""What the loop asks of a task: a batch's loss and logs, and measures of held-out batches."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from cavmae.datasets.stream.collate import Batch
from cavmae.pretrain.hub import HubWeights

Embeddings = dict[str, Tensor]
Record = dict[str, Any]
Call = Literal["learn", "embed", "evaluate"]


class StepOutput(NamedTuple):
    """Of a batch: what is minimised, and single numbers to be logged.

    Attributes:
        loss: whose gradients over the batches of a step add up to the step's.
        logs: their means over the batches of a step are logged; ``loss`` must be among them.
    """

    loss: Tensor
    logs: dict[str, Tensor]


class Task(nn.Module, abc.ABC):
    """A model and what it is to learn; the loop knows of neither.

    A loss that compares the clips of a batch with each other must see all of them, also where a
    step is made of several batches (gradient accumulation). Such a task is ``joined``: its
    :meth:`embed` gives what the comparison needs, without gradient, of every batch of a step
    first; then :meth:`learn` gets the pieces of all, and puts its own in place with gradient.

    Attributes:
        model: what a checkpoint holds for others to load.
        joined: whether the loss compares clips with each other.
    """

    model: HubWeights
    needs_global_batch = False

    def forward(
        self,
        call: Call,
        batch: Batch,
        progress: float = 0.0,
        pieces: Sequence[Embeddings] = (),
        turn: int = 0,
    ) -> Any:
        """One of the methods below: all go through here, where DDP and FSDP have their hooks."""
        if call == "learn":
            return self.training_step(batch, progress, pieces, turn)
        if call == "embed":
            return self.embed(batch)
        return self.validation_step(batch)

    @abc.abstractmethod
    def training_step(
        self, batch: Batch, progress: float, pieces: Sequence[Embeddings], turn: int
    ) -> StepOutput:
        """The loss of a batch.

        Args:
            batch: on the device, as loaded.
            progress: share of training that is done.
            pieces: of all batches of the step, from :meth:`embed`; empty: there is only this one.
                Losses that are means over clips are to be divided by their number.
            turn: which of them this batch is.
        """

    def embed(self, batch: Batch) -> Embeddings:
        """What a joined task needs of each of a step's batches."""
        raise TypeError("this task compares no clips with each other")

    def lr_scale(self, name: str) -> float:
        """Share of the run's learning rate at which a parameter moves."""
        return 1.0

    @abc.abstractmethod
    def validation_step(self, batch: Batch) -> Record:
        """What :meth:`summarise` needs of a held-out batch: tensors and lists on the CPU."""

    @abc.abstractmethod
    def aggregate(self, records: Sequence[Record]) -> Mapping[str, float]:
        """Measures of a held-out set from the records of all its batches."""

    @abc.abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """How batches are prepared, as JSON-able values, for who uses the weights."""

    @abc.abstractmethod
    def flops_per_sample(self) -> float:
        """Floating-point operations of a training step, for one clip."""
