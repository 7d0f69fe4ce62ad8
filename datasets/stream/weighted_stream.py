"""Endless stream of several data sets, whose samples come in proportion to weights.

A reader draws each data set from a reader of its own, which gives every sample of it exactly once
in each of its epochs, however long the others are. :mod:`cavmae.datasets.stream.interleaving` says
which data set is next.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import torch.utils.data

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.stream.base import EndlessStream, Stream, WorkerBatch, data_set_digest
from cavmae.datasets.stream.interleaving import drawn_after, next_data_set, shares_of

Build = Callable[[Manifest, int, float], EndlessStream]


def training_stream(
    manifests: Sequence[Manifest], weights: Sequence[float], seed: int, build: Build
) -> Stream:
    """Stream of one data set, or of several in proportion to weights.

    Args:
        manifests: of the data sets.
        weights: of their samples; of a single data set it does not count.
        seed: of the run. The first data set has it for its own; others have seeds derived from it
            and their shards, so that data sets with samples of the same videos are not in the same
            order, and keep theirs where others are added or left out.
        build: makes the stream of a data set of its manifest, its seed and its share of the
            samples, which is 1 for a single data set.

    Raises:
        CavmaeError: a data set cannot be used, or is there twice.
    """
    if len(manifests) == 1:
        return build(manifests[0], seed, 1.0)
    seeds = [seed, *(_own_seed(seed, manifest) for manifest in manifests[1:])]
    parts = zip(manifests, seeds, shares_of(weights), strict=True)
    return WeightedStream([build(*part) for part in parts], weights)


def _own_seed(seed: int, manifest: Manifest) -> int:
    """Seed of a data set, from 0 to 2^40, whatever its place among others."""
    text = f"{seed} {data_set_digest(manifest)}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:5], "big")


class WeightedStream(Stream):
    """Endless batches of samples of several data sets, each drawn in proportion to its weight.

    An epoch has as many samples as all data sets have together. What is said of a single data set
    (its epochs, the share of broken samples that is an error, the number of shards for so many
    readers) holds for each of them.

    Args:
        streams: of the data sets, with the same batch size and processes, in an order that is the
            same in every process.
        weights: of the samples of each, above 0.

    Attributes:
        drawn: for each worker, samples drawn of each data set, to resume from; None: from the
            beginning.

    Raises:
        UsageError: two of the data sets have the same shards.
    """

    endless = True

    def __init__(self, streams: Sequence[EndlessStream], weights: Sequence[float]):
        # Not that of Stream, which opens shards: those of the data sets are open.
        torch.utils.data.IterableDataset.__init__(self)
        self.streams = tuple(streams)
        self.shares = shares_of(weights)
        self.batch_size, self.collate = streams[0].batch_size, streams[0].collate
        self.rank, self.world_size = streams[0].rank, streams[0].world_size
        self.first_worker = 0
        self.drawn: list[list[int]] | None = None
        self._check_distinct()

    def _check_distinct(self) -> None:
        folders: dict[str, str] = {}
        for stream in self.streams:
            own, shards = stream.manifest.folder, stream.signature(0)["data set"]
            if shards in folders:
                raise UsageError(
                    f"{folders[shards]} and {own} have the same shards: name one of them, with a "
                    "larger weight if its samples are to come more often."
                )
            folders[shards] = own

    @property
    def samples(self) -> int:
        """Number of samples of an epoch: of all data sets together."""
        return sum(stream.samples for stream in self.streams)

    @property
    def members(self) -> tuple[Stream, ...]:
        """Streams of the data sets."""
        return self.streams

    def signature(self, workers: int) -> dict[str, Any]:
        """Everything that the interleaving depends on; the data sets have their own signatures."""
        return {
            "shares": list(self.shares),
            "world_size": self.world_size,
            "rank": self.rank,
            "workers": max(1, workers),
            "batch_size": self.batch_size,
        }

    def check_workers(self, workers: int) -> None:
        """Raises UsageError if a data set is too small for so many workers."""
        for stream in self.streams:
            stream.check_workers(workers)

    def first_drawn(self, workers: int) -> list[list[int]]:
        """Counts that each worker of this rank begins with."""
        count = max(1, workers)
        return [drawn_after(self.rank * count + worker, self.shares) for worker in range(count)]

    def worker_batches(self, worker: int, workers: int) -> Iterator[WorkerBatch | CavmaeError]:
        """See :meth:`Stream.worker_batches`."""
        starts = [stream.start_position(worker, workers) for stream in self.streams]
        worker, positions = (worker + self.first_worker) % workers, [own for _, own in starts]
        drawn = list((self.drawn or self.first_drawn(workers))[worker])
        broken: list[Counter[str]] = [Counter() for _ in self.streams]
        sources = [
            stream.samples_from(worker, workers, position, counts)
            for stream, position, counts in zip(self.streams, positions, broken, strict=True)
        ]
        try:
            yield from self._batch(
                worker, self._interleaved(sources, drawn), positions, broken,
                partial=False, drawn=drawn,
            )  # fmt: skip
        except CavmaeError as error:
            yield error
        finally:
            for source in sources:
                source.close()

    def _interleaved(
        self, sources: Sequence[Generator[dict[str, Any], None, None]], drawn: list[int]
    ) -> Iterator[dict[str, Any]]:
        """Samples of all data sets, with the data set in their keys; ``drawn`` is updated."""
        while True:
            number = next_data_set(drawn, self.shares)
            sample = next(sources[number])
            drawn[number] += 1
            # Keys are unique in a data set only.
            yield {**sample, "key": f"{self.streams[number].manifest.folder}: {sample['key']}"}
