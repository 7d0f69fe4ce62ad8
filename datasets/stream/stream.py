"""Streams of batches from shards: endless and shuffled for training, finite for evaluation.

Shards are permuted, samples pass a shuffle buffer *of undecoded bytes*, decoding comes last. The
order is a pure function of (seed, epoch, rank, world size, worker, workers), see
:mod:`cavmae.datasets.stream.shuffle`.
"""

import abc
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch.utils.data

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import is_url
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.stream.collate import Batch, Collate
from cavmae.datasets.stream.shard_reader import Access, BufferedSample, Reader
from cavmae.datasets.stream.shuffle import (
    Layout,
    buffer_slots,
    drain_order,
    epoch_sample_refs,
    evaluation_sample_refs,
)
from cavmae.datasets.stream.view import View

log = logging.getLogger("cavmae")


@dataclasses.dataclass
class Position:
    """Position of a worker in its partition, from which a stream resumes."""

    epoch: int = 0
    samples: int = 0  # of that epoch, already given
    broken: int = 0  # of these


@dataclasses.dataclass
class WorkerBatch:
    """A batch of a worker, and the worker's position after it."""

    worker: int
    batch: Batch
    position: Position
    broken: dict[str, int]  # by reason, since the stream was opened

    def pin_memory(self) -> "WorkerBatch":
        """Moves the tensors to page-locked memory; called by DataLoader."""
        self.batch = {
            k: v.pin_memory() if isinstance(v, torch.Tensor) else v for k, v in self.batch.items()
        }
        return self


class Stream(torch.utils.data.IterableDataset, abc.ABC):
    """Base class of the streams of stored samples and of composed scenes.

    Iterating gives :class:`WorkerBatch` objects, or a CavmaeError as a value, which reaches the
    user as one sentence from a worker process too. A stream is used through
    :class:`cavmae.datasets.stream.loader.Loader`.

    Args:
        manifest: the data set.
        batch_size: samples of a batch on this rank.
        seed: of every random choice.
        rank, world_size: of this process among those that share the data set.
        access: access to shards.

    Attributes:
        endless: whether the stream never ends and can resume from positions.
        positions: of the workers, to resume from.
        first_worker: worker that gives the first batch after resuming.
        history: readers before these, whose samples are not given again.

    Raises:
        UsageError: a value out of range, or a data set without samples.
        ShardError: shards are missing or altered.
    """

    endless = False
    rank, world_size = 0, 1
    history: tuple[Layout, ...] = ()

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
        # Each rank hashes its share: a broken shard stops the launch on any rank.
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
        """Number of samples of an epoch, over all ranks."""
        return self.manifest.samples

    def __iter__(self) -> Iterator[WorkerBatch | CavmaeError]:
        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        return self.worker_batches(worker, workers)

    @abc.abstractmethod
    def worker_batches(self, worker: int, workers: int) -> Iterator[WorkerBatch | CavmaeError]:
        """Batches of worker ``worker`` of ``workers`` of this rank, or the error that ends them."""

    def signature(self, workers: int) -> dict[str, Any]:
        """Everything that the order depends on; a stream resumes exactly only if it is the same."""
        shards = "".join(shard.sha256 for shard in self.manifest.shards)
        return {
            "data set": hashlib.sha256(shards.encode()).hexdigest(),
            "seed": self.seed,
            "world_size": self.world_size,
            "rank": self.rank,
            "workers": max(1, workers),
            "batch_size": self.batch_size,
        }

    def layout(self, positions: Sequence[Position], signature: Mapping[str, Any]) -> Layout:
        """Readers that give no more, by their positions and the signature of their stream.

        Args:
            positions: of the readers of all ranks, in the order of their partitions.
            signature: see :meth:`signature`.
        """
        buffer = signature.get("shuffle_buffer", 0)
        return Layout(buffer, tuple((p.epoch, p.samples) for p in positions))

    def check_workers(self, workers: int) -> None:
        """Raises UsageError if there are fewer samples than partitions."""
        num_partitions = self.world_size * max(1, workers)
        if self.samples < num_partitions:
            raise UsageError(
                f"{self.manifest.folder} has {self.samples} samples for {num_partitions} workers "
                f"({self.world_size} ranks with {max(1, workers)} workers each): use fewer workers."
            )

    def _start_position(self, worker: int, workers: int) -> tuple[int, Position]:
        """Worker whose partition a worker of DataLoader reads, and the position to start from."""
        # DataLoader asks worker 0 first; after resuming, another one may be next.
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
        """Groups decoded samples into batches.

        Args:
            position, broken: updated by the source.
            partial: whether a last batch may be smaller.
        """
        samples: list[dict[str, Any]] = []

        def worker_batch() -> WorkerBatch:
            return WorkerBatch(
                worker, collate(samples), dataclasses.replace(position), dict(broken)
            )

        for sample in source:
            samples.append(sample)
            if len(samples) == self.batch_size:
                yield worker_batch()
                samples = []
        if samples and partial:
            yield worker_batch()

    def check_broken(self, broken: int, reasons: Mapping[str, int]) -> None:
        """Raises CavmaeError if more than ``max_broken`` of an epoch of this rank is broken."""
        rank_samples = max(1, self.samples // self.world_size)
        if broken <= self.access.max_broken * rank_samples:
            return
        counts = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()))
        listed = f"; they are listed in {self.access.quarantine}" if self.access.quarantine else ""
        raise CavmaeError(
            f"Too many broken samples in {self.manifest.folder}: {counts} of {rank_samples}"
            f"{listed}. Run `cavmae check`, or allow more with max_broken."
        )


class ShardStream(Stream):
    """Base class of the streams of stored samples.

    Args:
        manifest: the data set.
        view: the part that is read of each sample.
        batch_size, seed, rank, world_size, access: see :class:`Stream`.
        labels: class names for the ``labels`` field; empty: none.
        label_ids: class name of every other label that the samples may have.
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
        label_ids: Mapping[str, str] = {},
        access: Access = Access(),  # noqa: B008 - frozen
    ):
        super().__init__(manifest, batch_size, seed, rank, world_size, access)
        self.view = view
        self._collate = Collate(view, labels, label_ids)
        self._counts = [shard.samples for shard in manifest.shards]

    def _decode_and_batch(
        self,
        worker: int,
        reader: Reader,
        position: Position,
        source: Iterator[BufferedSample],
        partial: bool,
    ) -> Iterator[WorkerBatch | CavmaeError]:
        """Decodes and batches samples.

        Args:
            position: updated here.
            source: loaded samples in their final order.
            partial: whether a last batch may be smaller.
        """

        def decoded(samples: Iterator[BufferedSample]) -> Iterator[dict[str, Any]]:
            for buffered in samples:
                sample = reader.decode(buffered)
                position.samples += 1
                if sample is None:
                    position.broken += 1
                    self.check_broken(position.broken, reader.broken)
                else:
                    yield sample

        try:
            samples = decoded(source)
            yield from self._batch(worker, samples, self._collate, position, reader.broken, partial)
        except CavmaeError as error:
            yield error
        finally:
            reader.close()


class TrainStream(ShardStream):
    """Endless batches: an epoch has every sample exactly once over all ranks and workers.

    With ``weights`` it has as many samples, drawn with replacement.

    Args:
        arguments, options: of :class:`ShardStream`.
        shuffle_buffer: size of the shuffle buffer in samples, held as bytes.
        weights: for each shard the weights of its samples, of which an epoch then draws with
            replacement (:func:`cavmae.datasets.stream.shuffle.class_balanced_weights`); None: an
            epoch has every sample once.

    Raises:
        UsageError: weights that are all 0.
    """

    endless = True

    def __init__(
        self,
        *arguments: Any,
        shuffle_buffer: int = 500,
        weights: Sequence[np.ndarray] | None = None,
        **options: Any,
    ):
        super().__init__(*arguments, **options)
        if shuffle_buffer < 1:
            raise UsageError(f"shuffle_buffer {shuffle_buffer}: must hold at least one sample.")
        self.shuffle_buffer = shuffle_buffer
        if weights is not None and not any(own.any() for own in weights):
            raise UsageError(
                f"No clip of {self.manifest.folder} has a label to balance the classes by: switch "
                "balanced sampling off."
            )
        self.weights = weights

    def signature(self, workers: int) -> dict[str, Any]:
        """See :meth:`Stream.signature`."""
        signature = super().signature(workers) | {"shuffle_buffer": self.shuffle_buffer}
        if self.weights is not None:
            weights = np.concatenate(self.weights).tobytes()
            signature["weights"] = hashlib.sha256(weights).hexdigest()
        return signature

    def check_workers(self, workers: int) -> None:
        """Raises UsageError if there are fewer shards than partitions."""
        num_partitions = self.world_size * max(1, workers)
        if len(self.manifest.shards) < num_partitions:
            raise UsageError(
                f"{self.manifest.folder} has {len(self.manifest.shards)} shards for "
                f"{num_partitions} workers ({self.world_size} ranks with {max(1, workers)} workers "
                "each): use fewer workers, or smaller shards with `cavmae shard --shard-samples`."
            )

    def worker_batches(self, worker: int, workers: int) -> Iterator[WorkerBatch | CavmaeError]:
        worker, position = self._start_position(worker, workers)
        reader = Reader(self.manifest, self.view, self.access, self.seed)
        partition = self.rank * workers + worker
        num_partitions = self.world_size * workers

        def source() -> Iterator[BufferedSample]:
            while True:
                yield from self._epoch(reader, position, partition, num_partitions)
                if position.samples == 0 and not self.history:
                    raise UsageError(
                        f"Partition {partition} of {num_partitions} of {self.manifest.folder} has "
                        "no samples: use fewer workers."
                    )
                position.epoch += 1
                position.samples = position.broken = 0

        yield from self._decode_and_batch(worker, reader, position, source(), partial=False)

    def _epoch(
        self, reader: Reader, position: Position, partition: int, num_partitions: int
    ) -> Iterator[BufferedSample]:
        """Shuffled samples of an epoch after the first ``position.samples``, with their bytes."""
        epoch, passed = position.epoch, position.samples
        slots = buffer_slots(self.seed, epoch, partition, self.shuffle_buffer)
        refs = epoch_sample_refs(
            self._counts, self.seed, epoch, partition, num_partitions, self.weights, self.history
        )
        buffer: list[BufferedSample] = []
        count = 0
        for ref in refs:
            buffered = BufferedSample(ref)
            if count >= passed:
                reader.load(buffered, epoch)
            if len(buffer) < self.shuffle_buffer:
                buffer.append(buffered)
                continue
            slot = next(slots)
            buffer[slot], buffered = buffered, buffer[slot]
            count += 1
            if count > passed:
                if not buffered.loaded:  # entered the buffer before the position of the resume
                    reader.load(buffered, epoch)
                yield buffered
        for slot in drain_order(self.seed, epoch, partition, len(buffer)):
            buffered = buffer[slot]
            count += 1
            if count > passed:
                if not buffered.loaded:
                    reader.load(buffered, epoch)
                yield buffered


class EvalStream(ShardStream):
    """Finite batches: every sample exactly once over all ranks and workers, in order.

    The last batch of a worker may be smaller. ``random`` frames or windows of the view are the same
    in every run.
    """

    def worker_batches(self, worker: int, workers: int) -> Iterator[WorkerBatch | CavmaeError]:
        reader = Reader(self.manifest, self.view, self.access, self.seed)
        partition, num_partitions = self.rank * workers + worker, self.world_size * workers

        def source() -> Iterator[BufferedSample]:
            for ref in evaluation_sample_refs(self._counts, partition, num_partitions):
                buffered = BufferedSample(ref)
                reader.load(buffered, epoch=0)
                yield buffered

        yield from self._decode_and_batch(worker, reader, Position(), source(), partial=True)
