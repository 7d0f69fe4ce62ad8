"""Streams of batches from shards: endless and shuffled for training, finite for evaluation.

Shards are permuted, samples pass a shuffle buffer *of undecoded bytes*, decoding comes last. The
order is a pure function of (seed, epoch, rank, world size, worker, workers), see
:mod:`cavmae.datasets.stream.shuffle`.
"""

import hashlib
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.stream.base import EndlessStream, Position, Stream, WorkerBatch
from cavmae.datasets.stream.collate import Collate
from cavmae.datasets.stream.shard_reader import Access, BufferedSample, Reader
from cavmae.datasets.stream.shuffle import (
    buffer_slots,
    drain_order,
    epoch_sample_refs,
    evaluation_sample_refs,
)
from cavmae.datasets.stream.view import View


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
        self.collate = Collate(view, labels, label_ids)
        self._counts = [shard.samples for shard in manifest.shards]

    def _decoded(
        self, reader: Reader, position: Position, source: Iterator[BufferedSample]
    ) -> Generator[dict[str, Any], None, None]:
        """Decoded samples; broken ones are counted and left out.

        Args:
            position: updated here.
            source: loaded samples in their final order.
        """
        try:
            for buffered in source:
                sample = reader.decode(buffered)
                position.samples += 1
                if sample is None:
                    position.broken += 1
                    self.check_broken(position.broken, reader.broken)
                else:
                    yield sample
        finally:
            reader.close()


class TrainStream(EndlessStream, ShardStream):
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

    def samples_from(
        self, worker: int, workers: int, position: Position, broken: Counter[str]
    ) -> Generator[dict[str, Any], None, None]:
        """See :meth:`EndlessStream.samples_from`."""
        reader = Reader(self.manifest, self.view, self.access, self.seed, broken)
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

        yield from self._decoded(reader, position, source())

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
        """See :meth:`Stream.worker_batches`."""
        broken: Counter[str] = Counter()
        reader = Reader(self.manifest, self.view, self.access, self.seed, broken)
        position = Position()
        partition, num_partitions = self.rank * workers + worker, self.world_size * workers

        def source() -> Iterator[BufferedSample]:
            for ref in evaluation_sample_refs(self._counts, partition, num_partitions):
                buffered = BufferedSample(ref)
                reader.load(buffered, epoch=0)
                yield buffered

        samples = self._decoded(reader, position, source())
        try:
            yield from self._batch(worker, samples, [position], [broken], partial=True)
        except CavmaeError as error:
            yield error
        finally:
            samples.close()
