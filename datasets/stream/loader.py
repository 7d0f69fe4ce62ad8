"""Loader: batches of a stream from worker processes, and a state to resume from."""

import gc
import signal
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils.data

from cavmae.common.errors import CavmaeError
from cavmae.datasets.stream.base import Stream, WorkerBatch
from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.readers import Readers, Turns
from cavmae.datasets.stream.weighted_stream import WeightedStream


def _fork_without_garbage(loader: Any) -> Iterator[Any]:
    """Iterator of a DataLoader whose workers never collect garbage of this process.

    A frame scaler of PyAV's that lay in garbage was freed in a forked worker, where its threads
    do not exist, and waited for them forever (seen in the tests). What is frozen when a worker is
    forked is never collected there; collecting it here first would take a third of a second.
    """
    gc.freeze()
    try:
        iterator: Iterator[Any] = iter(loader)
        return iterator
    finally:
        gc.unfreeze()


class Loader:
    """Iterates over a stream's batches; for a training stream, resumable to the batch.

    ``state_dict`` holds the position of the *consumer*, not of the workers, which are ahead of it:
    a loader that loads it gives exactly the batches that the saved one would have given next. The
    states of all processes go on with any other number of processes and workers.

    Args:
        stream: stream of batches.
        workers: processes; 0 loads in this one.
        prefetch: batches each worker is ahead.
        pin_memory: put batches in page-locked memory, for faster copies to a GPU.

    Raises:
        UsageError: a training stream with fewer shards (or scenes) than workers of all ranks.
    """

    def __init__(
        self, stream: Stream, workers: int = 0, prefetch: int = 2, pin_memory: bool = False
    ):
        if stream.endless:
            stream.check_workers(workers)
        self.stream = stream
        self.workers = workers
        self._prefetch = prefetch
        self._pin = pin_memory
        self._next_worker = 0
        several = len(stream.members) > 1
        self._readers = [
            Readers(member, workers, member.manifest.folder if several else "")
            for member in stream.members
        ]
        self._turns = Turns(stream, workers) if isinstance(stream, WeightedStream) else None

    @property
    def epoch(self) -> int:
        """Epoch that all workers have reached; of several data sets, by the samples drawn."""
        if self._turns is not None:
            return self._turns.samples // self.stream.samples
        return self._readers[0].epoch

    @property
    def broken(self) -> dict[str, int]:
        """Number of broken samples of this loader, by reason."""
        total: Counter[str] = Counter()
        for readers in self._readers:
            total.update(readers.broken_total())
        return dict(total)

    def __iter__(self) -> Generator[Batch, None, None]:
        stream = self.stream
        if stream.endless:
            for readers in self._readers:
                readers.send(self._next_worker)
            stream.first_worker = self._next_worker
            if self._turns is not None:
                self._turns.send()
        else:
            for readers in self._readers:
                readers.reset()
        loader = torch.utils.data.DataLoader(
            stream,
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=self._prefetch if self.workers else None,
            collate_fn=_identity,
            pin_memory=self._pin,  # in a thread of its own, if there are workers
            worker_init_fn=_defer_signals,
            generator=torch.Generator(),  # else it draws from the one that training restores
        )
        for worker_batch in _fork_without_garbage(loader) if self.workers else loader:
            if isinstance(worker_batch, CavmaeError):
                raise worker_batch
            self._record(worker_batch)
            yield worker_batch.batch

    def _record(self, worker_batch: WorkerBatch) -> None:
        worker = worker_batch.worker
        self._next_worker = (worker + 1) % max(1, self.workers)
        if self._turns is not None:
            self._turns.drawn[worker] = list(worker_batch.drawn)
        parts = zip(self._readers, worker_batch.positions, worker_batch.broken, strict=True)
        for readers, position, broken in parts:
            readers.record(worker, position, broken)

    def state_dict(self) -> dict[str, Any]:
        """Position of the consumer, as values for JSON. Raises TypeError for evaluation streams."""
        self._check_endless()
        turn = {"turn": self._next_worker}
        own = [readers.state_dict() for readers in self._readers]
        if self._turns is None:
            return own[0] | turn
        return self._turns.state_dict() | turn | {"data_sets": own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes from the state of a run of one process: :meth:`load_states`."""
        self.load_states([state])

    def load_states(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Resumes from the states of all processes of a run; call before iterating.

        With as many processes, workers and samples of a batch the next batches are those that
        would have come. Otherwise what is left of the epoch is divided anew: no sample of it is
        lost, and none comes twice. If the data, the seed or the weights of samples differ, the
        stream resumes at the beginning of the epoch and logs a warning.

        Of several data sets each resumes on its own, whatever becomes of the others and of the
        weights: a data set is known by its shards, and one that the run has not drawn from begins.

        Raises:
            CavmaeError: these are not states of a loader.
        """
        self._check_endless()
        for state in states:
            if not {"signature", "turn"} <= set(state) or not {"positions", "data_sets"} & set(
                state
            ):
                raise CavmaeError(
                    "This is not the state of a loader: it lacks signature, turn or positions."
                )
        exact = [readers.load_states(states) for readers in self._readers]
        own = states[self.stream.rank if len(states) == self.stream.world_size else 0]
        self._next_worker = own["turn"] if all(exact) else 0
        if self._turns is not None:
            members = zip(self._readers, self.stream.members, strict=True)
            given = sum(readers.epoch * member.samples for readers, member in members)
            self._turns.load_states(states, all(exact), given)

    def _check_endless(self) -> None:
        if not self.stream.endless:
            raise TypeError("an evaluation stream has no state")


def _defer_signals(worker: int) -> None:
    """Keeps a worker alive after a signal to its whole process group, as clusters send it.

    The parent saves a checkpoint first and then ends its workers. A second SIGTERM is obeyed.
    """

    def obey_next(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, obey_next)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _identity(worker_batch: Any) -> Any:
    return worker_batch
