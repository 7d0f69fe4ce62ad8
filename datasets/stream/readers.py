"""State of a loader: positions of its workers in each data set, and whose turn it is."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cavmae.datasets.stream.base import Position, Stream
from cavmae.datasets.stream.shuffle import Layout
from cavmae.datasets.stream.weighted_stream import WeightedStream

log = logging.getLogger("cavmae")
# Parts of a stream's signature that say who reads which sample, not which samples there are.
READERS = {"world_size", "rank", "workers", "batch_size", "shuffle_buffer", "parts"}
States = Sequence[Mapping[str, Any]]


class Readers:
    """Workers of a loader as readers of a data set, and the readers before them.

    Args:
        stream: of the data set.
        workers: of the loader; 0: this process reads.
        name: of the data set in messages; empty: it is the only one.

    Attributes:
        positions: of the workers.
        broken: number of broken samples of each worker, by reason.
    """

    def __init__(self, stream: Stream, workers: int, name: str = ""):
        self._stream, self._workers = stream, workers
        self._prefix = f"{name}: " if name else ""
        self._history: list[Any] = []  # layouts, of lists where they come from JSON
        self.reset()

    def reset(self) -> None:
        """Puts all workers at the beginning."""
        count = max(1, self._workers)
        self.positions = [Position() for _ in range(count)]
        self.broken: list[dict[str, int]] = [{} for _ in range(count)]

    @property
    def epoch(self) -> int:
        """Epoch of the data set that all workers have reached."""
        return min(position.epoch for position in self.positions)

    def broken_total(self) -> Counter[str]:
        """Number of broken samples of all workers, by reason."""
        total: Counter[str] = Counter()
        for counts in self.broken:
            total.update(counts)
        return total

    def send(self, first_worker: int) -> None:
        """Hands the positions to the stream, for its next iteration."""
        stream = self._stream
        stream.positions = [dataclasses.replace(p) for p in self.positions]
        stream.first_worker = first_worker
        stream.history = tuple(
            Layout(buffer, tuple((epoch, given) for epoch, given in positions))
            for buffer, positions in self._history
        )

    def record(self, worker: int, position: Position, broken: dict[str, int]) -> None:
        """Notes where a worker is after a batch.

        Raises:
            CavmaeError: too many samples of the epoch are broken.
        """
        self.positions[worker] = position
        self.broken[worker] = broken
        same = [p.broken for p in self.positions if p.epoch == position.epoch]
        self._stream.check_broken(sum(same), self.broken_total())

    def state_dict(self) -> dict[str, Any]:
        """Signature of the data set and positions of the workers, as values for JSON."""
        state: dict[str, Any] = {
            "signature": self._stream.signature(self._workers),
            "positions": [dataclasses.asdict(p) for p in self.positions],
        }
        if self._history:
            state["history"] = self._history
        return state

    def _part_of(self, state: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """State of the readers of this data set in a loader's; None: it has none.

        The only data set of a run that had only one is that one, even if its shards have changed.
        """
        parts = state.get("data_sets", [state])
        own = self._stream.signature(self._workers).get("data set")
        same = [part for part in parts if part["signature"].get("data set") == own]
        if not same and len(parts) == 1 and not self._prefix:
            same = parts
        return same[0] if same else None

    def load_states(self, states: States) -> bool:
        """Resumes from the states of the loaders of all processes of a run.

        Returns:
            whether the workers go on where those of the run stopped; else what is left of the epoch
            is divided anew, or they are at the beginning of an epoch (see
            :meth:`cavmae.datasets.stream.loader.Loader.load_states`), and the log says so.
        """
        stream = self._stream
        parts = [part for state in states if (part := self._part_of(state)) is not None]
        if len(parts) < len(states):
            log.info("%s begins: the run has not drawn from it before.", stream.manifest.folder)
            return False
        return self._load_parts(parts)

    def _load_parts(self, states: States) -> bool:
        stream = self._stream
        signature = stream.signature(self._workers)
        own = states[stream.rank if len(states) == stream.world_size else 0]
        saved = own["signature"]
        names = {**signature, **saved}
        changed = [name for name in names if signature.get(name) != saved.get(name)]
        self._history = list(own.get("history", []))
        if not changed:
            self.positions = [Position(**record) for record in own["positions"]]
            return True
        positions = [Position(**record) for state in states for record in state["positions"]]
        epoch = min(position.epoch for position in positions)
        if set(changed) <= READERS and len(states) == saved.get("world_size"):
            layouts = [*self._history, stream.layout(positions, saved)]
            self._history = [
                own for own in layouts if max(reached for reached, _ in own[1]) >= epoch
            ]
            log.info(
                "%s%s changed: what is left of epoch %d is divided anew.",
                self._prefix, ", ".join(changed).capitalize(), epoch,
            )  # fmt: skip
        else:
            self._history = []
            log.warning(
                "%sThe stream cannot resume in the middle of an epoch, as %s changed: it resumes "
                "at the beginning of epoch %d.",
                self._prefix, ", ".join(changed), epoch,
            )  # fmt: skip
        self.positions = [Position(epoch=epoch) for _ in self.positions]
        return False


class Turns:
    """Samples that the workers of a loader have drawn of each of several data sets.

    Args:
        stream: of the data sets.
        workers: of the loader; 0: this process draws.

    Attributes:
        drawn: by each worker, of each data set.
    """

    def __init__(self, stream: WeightedStream, workers: int):
        self._stream, self._workers = stream, workers
        self.drawn = stream.first_drawn(workers)
        self._before = 0  # samples that were drawn by other readers

    @property
    def samples(self) -> int:
        """Samples of the run, of all processes: all make the same number of steps."""
        own = _samples(self.drawn, self._stream.rank, max(1, self._workers))
        return self._before + self._stream.world_size * own

    def send(self) -> None:
        """Hands the counts to the stream, for its next iteration."""
        self._stream.drawn = [list(own) for own in self.drawn]

    def state_dict(self) -> dict[str, Any]:
        """Signature of the mixture and counts of the workers, as values for JSON."""
        return {
            "signature": self._stream.signature(self._workers),
            "drawn": [list(own) for own in self.drawn],
            "samples_before": self._before,
        }

    def load_states(self, states: States, exact: bool, samples: int) -> None:
        """Resumes from the states of all processes of a run.

        Args:
            states: of loaders, also of those of a single data set.
            exact: whether all data sets go on where those of the run stopped.
            samples: of the run, where it had a single data set.
        """
        stream = self._stream
        own = states[stream.rank if len(states) == stream.world_size else 0]
        self.drawn = stream.first_drawn(self._workers)
        if "drawn" not in own:
            self._before = samples
        elif exact and own["signature"] == stream.signature(self._workers):
            self.drawn = [list(counts) for counts in own["drawn"]]
            self._before = own["samples_before"]
        else:
            self._before = own["samples_before"] + sum(
                _samples(state["drawn"], state["signature"]["rank"], len(state["drawn"]))
                for state in states
            )


def _samples(drawn: Sequence[Sequence[int]], rank: int, workers: int) -> int:
    """Samples of all workers of a rank: reader p began as if p samples had been drawn."""
    return sum(sum(own) - (rank * workers + worker) for worker, own in enumerate(drawn))
