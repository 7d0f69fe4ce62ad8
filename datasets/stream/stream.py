"""Streams of batches out of shards: endless and mixed for training, finite for evaluation.

The stages are webdataset pipelines over our own source: shards are put in random order, samples
mixed in a buffer *of undecoded bytes*, decoding comes last. The order is a pure function of
(seed, epoch, rank, world size, worker, workers), see :mod:`cavmae.datasets.stream.shuffle`.
"""

import abc
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch.utils.data
import webdataset

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import is_url
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.stream.collate import Batch, Collate
from cavmae.datasets.stream.shard_reader import Access, BufferedSample, Reader
from cavmae.datasets.stream.shuffle import (
    buffer_slots,
    drain_order,
    epoch_sample_refs,
    evaluation_sample_refs,
)
from cavmae.datasets.stream.view import View

log = logging.getLogger("cavmae")


@dataclasses.dataclass
class Position:
    """How far a worker has come: ``visits`` of epoch ``epoch`` are behind it."""

    epoch: int = 0
    samples: int = 0
    broken: int = 0  # of these


@dataclasses.dataclass
class WorkerBatch:
    """A batch, and where the worker stood after it."""

    worker: int
    batch: Batch
    position: Position
    broken: dict[str, int]  # by reason, since the stream was opened

    def pin_memory(self) -> "WorkerBatch":
        """Itself, its tensors in page-locked memory; called by DataLoader."""
        self.batch = {
            k: v.pin_memory() if isinstance(v, torch.Tensor) else v for k, v in self.batch.items()
        }
        return self


class Stream(torch.utils.data.IterableDataset, abc.ABC):
    """What all streams share: those of samples as they lie in shards, and of composed scenes.

    Iterating gives :class:`Delivery` objects, or, so that it reaches the user as one sentence from
    a worker process too, a CavmaeError. A stream is used through
    :class:`cavmae.datasets.stream.loader.Loader`.

    Args:
        manifest: the data set.
        batch_size: samples of a batch on this rank.
        seed: of everything random.
        rank, world_size: of this process among those that share the data set.
        access: how shards are reached.

    Attributes:
        endless: whether it goes on for ever, and can go on from a position.
        positions: of the workers, when going on.
        first_worker: whose turn it is when going on.

    Raises:
        ShardError: shards are missing or altered.
    """

    endless = False

    def __init__(
        self,
        manifest: Manifest,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        access: Access = Access(),  # noqa: B008 - frozen
    ):
        if batch_size < 1 or not 0 <= rank < world_size:
            raise UsageError(
                f"batch_size {batch_size}, rank {rank} of {world_size}: a batch needs at least one "
                "sample, and a rank counts from 0."
            )
        if access.verify not in ("hash", "size"):
            raise UsageError(f"verify {access.verify!r} is neither 'hash' nor 'size'.")
        if not manifest.shards:
            raise UsageError(f"The data set {manifest.folder} has no samples.")
        if not 0 <= seed < 1 << 40:
            raise UsageError(f"seed {seed} is not from 0 to 2^40.")
        self.manifest = manifest
        self.positions: list[Position] | None = None
        self.first_worker = 0
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.access = access
        # Each rank reads its share: a broken shard stops the launch wherever it is found.
        manifest.verify("size")
        if access.verify == "hash":
            share = manifest.shards[rank::world_size]
            gigabytes = sum(shard.bytes for shard in share) / 1e9
            if gigabytes > 10 and not is_url(manifest.folder):
                log.info(
                    "Verifying %d shards, %.0f GB; verify=size skips that.", len(share), gigabytes
                )
            manifest.verify("hash", share)

    @property
    def samples(self) -> int:
        """Samples of an epoch, over all ranks."""
        return self.manifest.samples

    def __iter__(self) -> Iterator[WorkerBatch | CavmaeError]:
        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        return self.worker_batches(worker, workers)

    @abc.abstractmethod
    def worker_batches(self, worker: int, workers: int) -> Iterator[WorkerBatch | CavmaeError]:
        """What worker ``worker`` of ``workers`` of this rank gives, or the error that ends it."""

    def signature(self, workers: int) -> dict[str, Any]:
        """What the order depends on: a stream goes on exactly only if none of it has changed."""
        shards = "".join(shard.sha256 for shard in self.manifest.shards)
        return {
            "data set": hashlib.sha256(shards.encode()).hexdigest(),
            "seed": self.seed,
            "world_size": self.world_size,
            "rank": self.rank,
            "workers": max(1, workers),
            "batch_size": self.batch_size,
        }

    def check_workers(self, workers: int) -> None:
        """Raises UsageError if not every reader would have something to read."""
        readers = self.world_size * max(1, workers)
        if self.samples < readers:
            raise UsageError(
                f"{self.manifest.folder} has {self.samples} samples for {readers} readers "
                f"({self.world_size} ranks with {max(1, workers)} workers each): use fewer workers."
            )

    def _start_position(self, worker: int, workers: int) -> tuple[int, Position]:
        """Which worker's part a worker of DataLoader's takes, and where it begins."""
        # DataLoader asks worker 0 first; after going on it may be another one's turn.
        worker = (worker + self.first_worker) % workers
        if self.positions is None:
            return worker, Position()
        return worker, dataclasses.replace(self.positions[worker])

    def _batch(
        self,
        worker: int,
        source: Iterator[dict[str, Any]],
        collate: Callable[[Sequence[dict[str, Any]]], Batch],
        position: Position,
        broken: Mapping[str, int],
        partial: bool,
    ) -> Iterator[WorkerBatch]:
        """Samples in batches.

        Args:
            position, broken: counted on by the source.
            partial: whether a last batch may be smaller.
        """
        gathered: list[dict[str, Any]] = []

        def delivery() -> WorkerBatch:
            return WorkerBatch(
                worker, collate(gathered), dataclasses.replace(position), dict(broken)
            )

        for shown in source:
            gathered.append(shown)
            if len(gathered) == self.batch_size:
                yield delivery()
                gathered = []
        if gathered and partial:
            yield delivery()

    def check_broken(self, broken: int, reasons: Mapping[str, int]) -> None:
        """Raises CavmaeError if so many broken samples in an epoch of this rank are too many."""
        share = max(1, self.samples // self.world_size)
        if broken <= self.access.max_broken * share:
            return
        counts = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()))
        where = f"; they are named in {self.access.quarantine}" if self.access.quarantine else ""
        raise CavmaeError(
            f"Too many broken samples in {self.manifest.folder}: {counts} of {share}{where}. "
            "Run `cavmae check`, or allow more with max_broken."
        )


class ShardStream(Stream):
    """Samples as they lie in the shards.

    Args:
        manifest: the data set.
        view: what is read of each sample.
        batch_size, seed, rank, world_size, access: see :class:`Stream`.
        labels: class names for the ``labels`` field; empty: none.
    """

    def __init__(
        self,
        manifest: Manifest,
        view: View,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        labels: Sequence[str] = (),
        access: Access = Access(),  # noqa: B008 - frozen
    ):
        super().__init__(manifest, batch_size, seed, rank, world_size, access)
        self.view = view
        self._collate = Collate(view, labels)
        self._counts = [shard.samples for shard in manifest.shards]

    def _decode_and_batch(
        self,
        worker: int,
        reader: Reader,
        position: Position,
        pending: Callable[[], Iterator[BufferedSample]],
        partial: bool,
    ) -> Iterator[WorkerBatch | CavmaeError]:
        """The stages after the source: decode, batch.

        Args:
            position: counted on here.
            pending: the source, loaded visits in their final order.
            partial: whether a last batch may be smaller.
        """

        def decoded(source: Iterator[BufferedSample]) -> Iterator[dict[str, Any]]:
            for one in source:
                shown = reader.decode(one)
                position.samples += 1
                if shown is None:
                    position.broken += 1
                    self.check_broken(position.broken, reader.broken)
                else:
                    yield shown

        def batched(source: Iterator[dict[str, Any]]) -> Iterator[WorkerBatch]:
            return self._batch(worker, source, self._collate, position, reader.broken, partial)

        try:
            yield from webdataset.DataPipeline(pending, decoded, batched)
        except CavmaeError as error:
            yield error
        finally:
            reader.close()


class TrainStream(ShardStream):
    """Endless batches: every epoch visits every sample exactly once over all ranks and workers.

    Args:
        arguments, options: of :class:`ShardStream`.
        shuffle_buffer: samples held (as bytes) to mix them.
        repeats: how often each sample is visited an epoch on average, for each shard
            (:func:`cavmae.datasets.stream.shuffle.class_balanced_repeats`); None: once.
    """

    endless = True

    def __init__(
        self,
        *arguments: Any,
        shuffle_buffer: int = 500,
        repeats: Sequence[np.ndarray] | None = None,
        **options: Any,
    ):
        super().__init__(*arguments, **options)
        if shuffle_buffer < 1:
            raise UsageError(f"shuffle_buffer {shuffle_buffer}: must hold at least one sample.")
        self.shuffle_buffer = shuffle_buffer
        self.repeats = repeats

    def signature(self, workers: int) -> dict[str, Any]:
        """See :meth:`Stream.signature`."""
        found = super().signature(workers) | {"shuffle_buffer": self.shuffle_buffer}
        if self.repeats is not None:
            found["repeats"] = hashlib.sha256(np.concatenate(self.repeats).tobytes()).hexdigest()
        return found

    def check_workers(self, workers: int) -> None:
        """Raises UsageError if there are fewer shards than readers."""
        readers = self.world_size * max(1, workers)
        if len(self.manifest.shards) < readers:
            raise UsageError(
                f"{self.manifest.folder} has {len(self.manifest.shards)} shards for {readers} "
                f"readers ({self.world_size} ranks with {max(1, workers)} workers each): use fewer "
                "workers, or make smaller shards with `cavmae shard --shard-samples`."
            )

    def worker_batches(self, worker: int, workers: int) -> Iterator[WorkerBatch | CavmaeError]:
        worker, position = self._start_position(worker, workers)
        reader = Reader(self.manifest, self.view, self.access, self.seed)
        number = self.rank * workers + worker
        readers = self.world_size * workers

        def pending() -> Iterator[BufferedSample]:
            while True:
                yield from self._epoch(reader, position, number, readers)
                if position.samples == 0:
                    raise UsageError(
                        f"No sample of {self.manifest.folder} would ever be visited by reader "
                        f"{number} of {readers}: use fewer workers."
                    )
                position.epoch += 1
                position.samples = position.broken = 0

        yield from self._decode_and_batch(worker, reader, position, pending, partial=False)

    def _epoch(
        self, reader: Reader, position: Position, number: int, readers: int
    ) -> Iterator[BufferedSample]:
        """Visits of an epoch after the first ``position.visits``, mixed, with their bytes."""
        epoch, passed = position.epoch, position.samples
        draws = buffer_slots(self.seed, epoch, number, self.shuffle_buffer)
        buffer: list[BufferedSample] = []
        count = 0
        for visit in epoch_sample_refs(
            self._counts, self.seed, epoch, number, readers, self.repeats
        ):
            pending = BufferedSample(visit)
            if count >= passed:
                reader.load(pending, epoch)
            if len(buffer) < self.shuffle_buffer:
                buffer.append(pending)
                continue
            place = next(draws)
            buffer[place], pending = pending, buffer[place]
            count += 1
            if count > passed:
                if not pending.loaded:  # came into the buffer before the stream went on
                    reader.load(pending, epoch)
                yield pending
        for place in drain_order(self.seed, epoch, number, len(buffer)):
            pending = buffer[place]
            count += 1
            if count > passed:
                if not pending.loaded:
                    reader.load(pending, epoch)
                yield pending


class EvalStream(ShardStream):
    """Finite batches: every sample exactly once over all ranks and workers, in order.

    The last batch of a worker may be smaller. With ``random`` frames or windows in the view the
    choice is the same every time.
    """

    def worker_batches(self, worker: int, workers: int) -> Iterator[WorkerBatch | CavmaeError]:
        reader = Reader(self.manifest, self.view, self.access, self.seed)
        number, readers = self.rank * workers + worker, self.world_size * workers

        def pending() -> Iterator[BufferedSample]:
            for visit in evaluation_sample_refs(self._counts, number, readers):
                one = BufferedSample(visit)
                reader.load(one, epoch=0)
                yield one

        yield from self._decode_and_batch(worker, reader, Position(), pending, partial=True)
