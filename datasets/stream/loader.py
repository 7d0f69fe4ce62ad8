"""Loader: batches of a stream from worker processes, and a state to resume from."""

import dataclasses
import gc
import logging
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils.data

from cavmae.common.errors import CavmaeError
from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.shuffle import Layout
from cavmae.datasets.stream.stream import Position, Stream, WorkerBatch

log = logging.getLogger("cavmae")
# Parts of a stream's signature that say who reads which sample, not which samples there are.
READERS = {"world_size", "rank", "workers", "batch_size", "shuffle_buffer", "parts"}


def _fork_without_garbage(loader: Any) -> Iterator[Any]:
    """Iterator of a DataLoader whose workers never collect garbage of this process.

    A frame scaler of PyAV's that lay in garbage was freed in a forked worker, where its threads
    do not exist, and waited for them forever (seen in the tests).
    """
    gc.collect()
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
        self._history: list[Any] = []  # layouts, of lists where they come from JSON
        self._positions = [Position() for _ in range(max(1, workers))]
        self._broken: list[dict[str, int]] = [{} for _ in self._positions]

    @property
    def epoch(self) -> int:
        """Epoch that all workers have reached."""
        return min(position.epoch for position in self._positions)

    @property
    def broken(self) -> dict[str, int]:
        """Number of broken samples of this loader, by reason."""
        total: Counter[str] = Counter()
        for counts in self._broken:
            total.update(counts)
        return dict(total)

    def __iter__(self) -> Iterator[Batch]:
        stream = self.stream
        if stream.endless:
            stream.positions = [dataclasses.replace(p) for p in self._positions]
            stream.first_worker = self._next_worker
            stream.history = tuple(
                Layout(buffer, tuple((epoch, given) for epoch, given in positions))
                for buffer, positions in self._history
            )
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
        if not stream.endless:
            self._broken = [{} for _ in self._positions]
            self._positions = [Position() for _ in self._positions]
        for worker_batch in _fork_without_garbage(loader) if self.workers else loader:
            if isinstance(worker_batch, CavmaeError):
                raise worker_batch
            self._record(worker_batch)
            yield worker_batch.batch

    def _record(self, worker_batch: WorkerBatch) -> None:
        worker = worker_batch.worker
        self._positions[worker] = worker_batch.position
        self._broken[worker] = worker_batch.broken
        self._next_worker = (worker + 1) % len(self._positions)
        same = [p.broken for p in self._positions if p.epoch == worker_batch.position.epoch]
        self.stream.check_broken(sum(same), self.broken)

    def state_dict(self) -> dict[str, Any]:
        """Position of the consumer, as values for JSON. Raises TypeError for evaluation streams."""
        state: dict[str, Any] = {
            "signature": self._training().signature(self.workers),
            "turn": self._next_worker,
            "positions": [dataclasses.asdict(p) for p in self._positions],
        }
        if self._history:
            state["history"] = self._history
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes from the state of a run of one process: :meth:`load_states`."""
        self.load_states([state])

    def load_states(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Resumes from the states of all processes of a run; call before iterating.

        With as many processes, workers and samples of a batch the next batches are those that
        would have come. Otherwise what is left of the epoch is divided anew: no sample of it is
        lost, and none comes twice. If the data, the seed or the weights of samples differ, the
        stream resumes at the beginning of the epoch and logs a warning.

        Raises:
            CavmaeError: these are not states of a loader.
        """
        signature = self._training().signature(self.workers)
        for state in states:
            if not {"signature", "turn", "positions"} <= set(state):
                raise CavmaeError(
                    "This is not the state of a loader: it lacks signature, turn or positions."
                )
        own = states[self.stream.rank if len(states) == self.stream.world_size else 0]
        saved = own["signature"]
        names = {**signature, **saved}
        changed = [name for name in names if signature.get(name) != saved.get(name)]
        self._history = list(own.get("history", []))
        if not changed:
            self._positions = [Position(**record) for record in own["positions"]]
            self._next_worker = own["turn"]
            return
        positions = [Position(**record) for state in states for record in state["positions"]]
        epoch = min(position.epoch for position in positions)
        if set(changed) <= READERS and len(states) == saved.get("world_size"):
            layouts = [*self._history, self.stream.layout(positions, saved)]
            self._history = [
                own for own in layouts if max(reached for reached, _ in own[1]) >= epoch
            ]
            log.info(
                "%s changed: what is left of epoch %d is divided anew.",
                ", ".join(changed).capitalize(), epoch,
            )  # fmt: skip
        else:
            self._history = []
            log.warning(
                "The stream cannot resume in the middle of an epoch, as %s changed: it resumes at "
                "the beginning of epoch %d.",
                ", ".join(changed),
                epoch,
            )
        self._positions = [Position(epoch=epoch) for _ in self._positions]
        self._next_worker = 0

    def _training(self) -> Stream:
        if not self.stream.endless:
            raise TypeError("an evaluation stream has no state")
        return self.stream


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
