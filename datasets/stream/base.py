"""Base classes of streams of batches, and what a worker hands over with a batch."""

import abc
import dataclasses
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import torch.utils.data

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import is_url
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.shard_reader import Access
from cavmae.datasets.stream.shuffle import Layout

log = logging.getLogger("cavmae")


@dataclasses.dataclass
class Position:
    """Position of a worker in its partition, from which a stream resumes."""

    epoch: int = 0
    samples: int = 0  # of that epoch, already given
    broken: int = 0  # of these


@dataclasses.dataclass
class WorkerBatch:
    """A batch of a worker, and the worker's position after it in each data set.

    Attributes:
        worker: number of the worker.
        batch: its samples.
        positions: of the worker, by data set.
        broken: number of broken samples by reason since the stream was opened, by data set.
        drawn: samples of each data set, of several; see
            :mod:`cavmae.datasets.stream.interleaving`.
    """

    worker: int
    batch: Batch
    positions: tuple[Position, ...]
    broken: tuple[dict[str, int], ...]
    drawn: tuple[int, ...] = ()

    def pin_memory(self) -> "WorkerBatch":
        """Moves the tensors to page-locked memory; called by DataLoader."""
        self.batch = {
            k: v.pin_memory() if isinstance(v, torch.Tensor) else v for k, v in self.batch.items()
        }
        return self


def data_set_digest(manifest: Manifest) -> str:
    """Hex digest of a data set's shards, by which it is known wherever it lies."""
    shards = "".join(shard.sha256 for shard in manifest.shards)
    return hashlib.sha256(shards.encode()).hexdigest()


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
        collate: joins decoded samples to a batch.

    Raises:
        UsageError: a value out of range, or a data set without samples.
        ShardError: shards are missing or altered.
    """

    endless = False
    rank, world_size = 0, 1
    history: tuple[Layout, ...] = ()
    collate: Callable[[Sequence[Any]], Batch]

    def __init__(
        self,
        manifest: Manifest,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        access: Access = Access(),  # noqa: B008 - frozen
    ):
        if batch_size < 1:
            raise UsageError(f"batch_size {batch_size}: a batch needs at least one sample.")
        if not 0 <= rank < world_size:
            raise UsageError(f"rank {rank} of {world_size}: it counts from 0.")
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

    @property
    def members(self) -> tuple["Stream", ...]:
        """Streams of the single data sets: this one alone, unless it mixes several."""
        return (self,)

    def __iter__(self) -> Iterator[WorkerBatch | CavmaeError]:
        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        return self.worker_batches(worker, workers)

    @abc.abstractmethod
    def worker_batches(self, worker: int, workers: int) -> Iterator[WorkerBatch | CavmaeError]:
        """Batches of worker ``worker`` of ``workers`` of this rank, or the error that ends them."""

    def signature(self, workers: int) -> dict[str, Any]:
        """Everything that the order depends on; a stream resumes exactly only if it is the same."""
        return {
            "data set": data_set_digest(self.manifest),
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

    def start_position(self, worker: int, workers: int) -> tuple[int, Position]:
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
        positions: Sequence[Position],
        broken: Sequence[Mapping[str, int]],
        partial: bool,
        drawn: Sequence[int] = (),
    ) -> Iterator[WorkerBatch]:
        """Groups decoded samples into batches.

        Args:
            positions, broken, drawn: by data set; updated by the source.
            partial: whether a last batch may be smaller.
        """
        samples: list[dict[str, Any]] = []

        def worker_batch() -> WorkerBatch:
            return WorkerBatch(
                worker, self.collate(samples), tuple(map(dataclasses.replace, positions)),
                tuple(map(dict, broken)), tuple(drawn),
            )  # fmt: skip

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


class EndlessStream(Stream):
    """Base class of the endless streams of one data set, several of which can be mixed."""

    endless = True

    @abc.abstractmethod
    def samples_from(
        self, worker: int, workers: int, position: Position, broken: Counter[str]
    ) -> Generator[dict[str, Any], None, None]:
        """Decoded samples of worker ``worker`` of ``workers`` of this rank, without end.

        Args:
            position: of the worker, from which it goes on; updated with each sample.
            broken: counts broken samples by reason; updated, too.

        Raises:
            CavmaeError: a shard cannot be read, or too many samples are broken.
        """

    def worker_batches(self, worker: int, workers: int) -> Iterator[WorkerBatch | CavmaeError]:
        """See :meth:`Stream.worker_batches`."""
        worker, position = self.start_position(worker, workers)
        broken: Counter[str] = Counter()
        source = self.samples_from(worker, workers, position, broken)
        try:
            yield from self._batch(worker, source, [position], [broken], partial=False)
        except CavmaeError as error:
            yield error
        finally:
            source.close()
