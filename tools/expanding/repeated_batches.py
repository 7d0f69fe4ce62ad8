"""Endless stream over batches in memory: scenes take longer to compose than small nets to train."""

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch.utils.data

from cavmae.common.errors import CavmaeError
from cavmae.datasets.stream.base import Position, Stream, WorkerBatch
from cavmae.datasets.stream.collate import Batch


class RepeatedBatches(Stream):
    """Batches of a list, all of them in each epoch, in an order of its own.

    Args:
        batches: to repeat.
        seed: of the orders.
    """

    endless = True

    def __init__(self, batches: Sequence[Batch], seed: int):
        # Not that of Stream, which opens shards.
        torch.utils.data.IterableDataset.__init__(self)
        self.batches, self.seed = batches, seed
        self.positions: list[Position] | None = None
        self.first_worker = 0

    @property
    def samples(self) -> int:
        """Number of batches of an epoch."""
        return len(self.batches)

    def signature(self, workers: int) -> dict[str, Any]:
        """See :meth:`Stream.signature`."""
        return {"seed": self.seed, "batches": self.samples, "workers": max(1, workers)}

    def check_workers(self, workers: int) -> None:
        """The batches are in the memory of one process."""

    def check_broken(self, broken: int, reasons: Mapping[str, int]) -> None:
        """No batch is broken."""

    def worker_batches(self, worker: int, workers: int) -> Iterator[WorkerBatch | CavmaeError]:
        """See :meth:`Stream.worker_batches`."""
        worker, position = self.start_position(worker, workers)
        while True:
            order = list(range(self.samples))
            random.Random(f"{self.seed} {position.epoch}").shuffle(order)
            for number in order[position.samples :]:
                position.samples += 1
                after = (dataclasses.replace(position),)
                yield WorkerBatch(worker, self.batches[number], after, ({},))
            position = Position(position.epoch + 1)
