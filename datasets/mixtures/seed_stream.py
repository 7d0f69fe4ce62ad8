"""Streams of seeds: batches that a task makes on the device, resumable like stored ones."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch.utils.data

from cavmae.common.errors import CavmaeError
from cavmae.datasets.stream.base import Position, Stream, WorkerBatch
from cavmae.datasets.stream.shuffle import Layout


class SeedStream(Stream):
    """Batches of a number only: ``key`` names, an integer ``seed`` and a name ``list``.

    Endless for training; for evaluation the same seeds for every list of mixtures, whatever the
    number of processes. ``parts`` batches in a row may have one seed, so that their mixtures are
    made together: each is then the ``part`` of that number.

    Args:
        batch_size: mixtures of a batch.
        seed: of all batches.
        lists: names of the lists to evaluate; empty: an endless stream.
        batches: of each list.
        rank, world_size: of this process.
        parts: batches of a seed, of an endless stream.
    """

    def __init__(
        self,
        batch_size: int,
        seed: int = 0,
        lists: Sequence[str] = (),
        batches: int = 0,
        rank: int = 0,
        world_size: int = 1,
        parts: int = 1,
    ):
        # Not that of Stream, which opens shards.
        torch.utils.data.IterableDataset.__init__(self)
        self.endless = not lists
        self.batch_size, self.seed = batch_size, seed
        self.lists, self.batches = tuple(lists), batches
        self.rank, self.world_size = rank, world_size
        self.parts = parts
        self.positions: list[Position] | None = None
        self.first_worker = 0

    @property
    def samples(self) -> int:
        """Mixtures of an epoch: an hour of 2.56 s each."""
        return 1400

    def signature(self, workers: int) -> dict[str, Any]:
        """See :meth:`Stream.signature`."""
        signature = {
            "seed": self.seed,
            "world_size": self.world_size,
            "rank": self.rank,
            "workers": max(1, workers),
            "batch_size": self.batch_size,
        }
        # Left out where it says nothing: runs of former versions go on.
        return signature if self.parts == 1 else {**signature, "parts": self.parts}

    def check_workers(self, workers: int) -> None:
        """There are enough seeds for any number."""

    def check_broken(self, broken: int, reasons: Mapping[str, int]) -> None:
        """No seed is broken."""

    def worker_batches(self, worker: int, workers: int) -> Iterator[WorkerBatch | CavmaeError]:
        """See :meth:`Stream.worker_batches`."""
        worker, position = self.start_position(worker, workers)
        partition, partitions = self.rank * workers + worker, self.world_size * workers
        if self.endless:
            used = sum(self._numbers_of(layout) for layout in self.history)
            while True:
                index = position.samples // self.batch_size
                number = used + index // self.parts * partitions + partition
                position = Position(samples=position.samples + self.batch_size)
                yield self._numbered(worker, "", number, position, index)
        for number in range(partition, self.batches * len(self.lists), partitions):
            name = self.lists[number // self.batches]
            yield self._numbered(worker, name, number % self.batches, Position())

    def layout(self, positions: Sequence[Position], signature: Mapping[str, Any]) -> Layout:
        """See :meth:`Stream.layout`: instead of samples it counts seeds."""
        size = signature["batch_size"] * signature.get("parts", 1)
        return Layout(0, tuple((p.epoch, -(-p.samples // size)) for p in positions))

    @staticmethod
    def _numbers_of(layout: Layout) -> int:
        """Numbers that the readers of a layout have used, or passed over."""
        return len(layout.positions) * max(seeds for _, seeds in layout.positions)

    def _numbered(
        self, worker: int, name: str, number: int, position: Position, index: int = 0
    ) -> WorkerBatch:
        part = index % self.parts
        first_row = part * self.batch_size
        batch = {
            "key": [f"{name}{number}:{first_row + row}" for row in range(self.batch_size)],
            "seed": batch_seed(self.seed, number),
            "list": name,
            "part": part,
            "parts": self.parts,
        }
        return WorkerBatch(worker, batch, (position,), ({},))


def batch_seed(seed: int, number: int) -> int:
    """Seed of a batch, from 0 to 2^63."""
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
