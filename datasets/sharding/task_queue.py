"""Queue of the tasks of a sharding job: an input each, or the stretches of a long input.

Splitting changes no byte. The reports of an input's stretches are joined to what one task would
have reported. Where a stretch is lost, ends early or differs from its neighbour in the clip that
both extract, all its work is dropped and the whole input is extracted again as one task, which
alone decides what is lost of the input and why.
"""

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cavmae.common.remote import Limits
from cavmae.common.worker_pool import Event, Lost, Restarted, TaskProgress
from cavmae.datasets.sharding.inputs import Input
from cavmae.datasets.sharding.job_state import InputLayout, copy_prefix, remove_copies
from cavmae.datasets.sharding.messages import (
    Alive,
    InputSurvey,
    Message,
    Reporter,
    Seam,
    Skip,
    Stretch,
    Written,
)
from cavmae.datasets.sharding.settings import ShardSettings

log = logging.getLogger("cavmae")


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """Task of a worker: an input, or a stretch of one; as a text, the name of the input.

    Attributes:
        item: the input.
        settings: of the samples.
        part: file for the samples.
        limits: of a download.
        stretch_seconds: of clips, above which the input is only surveyed; None: it never is.
        assigned: the survey and the stretch to extract; None: the whole input.
    """

    item: Input
    settings: ShardSettings
    part: Path
    limits: Limits
    stretch_seconds: float | None
    assigned: tuple[InputSurvey, Stretch] | None = None

    def __str__(self) -> str:
        return self.item.source


class FinishedInput(NamedTuple):
    """An input that is done.

    Attributes:
        number: in the plan.
        messages: about its clips, in order.
        stretches: number of its part files; 0: it was one task.
    """

    number: int
    messages: list[Written | Skip]
    stretches: int


class _Entry(NamedTuple):
    """A task, and the number of its input in the plan."""

    number: int
    task: ShardTask


@dataclasses.dataclass
class _Split:
    """An input that is extracted in stretches.

    Attributes:
        survey: of the input.
        stretches: number of stretches reported so far.
        is_surveyed: whether no stretch follows.
        reports: messages of each stretch that has ended.
        failure: why the input has to be extracted as one task; empty: it has not.
    """

    survey: InputSurvey
    stretches: int = 0
    is_surveyed: bool = False
    reports: dict[int, list[Message]] = dataclasses.field(default_factory=dict)
    failure: str = ""


class TaskQueue:
    """Tasks of the inputs in the order of the plan, those of inputs already begun first.

    Attributes:
        clips: number of clips that are written, those of dropped work excluded.
        seconds: their length together.

    Args:
        layout: of the data set.
        items: inputs of the plan by their number, in order.
        settings: of the samples.
        limits: of downloads.
        stretch_seconds: see :class:`ShardTask`.
        awaited: number of the input, if any, during whose extraction no other one begins; asked
            before each. What has begun goes on, so that the end of that input is never held up.
    """

    def __init__(
        self,
        layout: InputLayout,
        items: Iterable[tuple[int, Input]],
        settings: ShardSettings,
        limits: Limits,
        stretch_seconds: float | None,
        awaited: Callable[[], int | None] = lambda: None,
    ):
        self._layout = layout
        self._settings, self._limits = settings, limits
        self._seconds = stretch_seconds
        self._fresh = iter(items)
        self._awaited = awaited
        self._begun: deque[_Entry] = deque()
        self._running: dict[int, _Entry] = {}
        self._messages: dict[int, list[Message]] = {}
        self._splits: dict[int, _Split] = {}
        self._count = 0
        self.clips, self.seconds = 0, 0.0

    def tasks(self) -> Iterator[tuple[int, ShardTask] | None]:
        """Yields (number of the task, task); None while the next depends on running ones."""
        while (entry := self._next()) is not None or self._running:
            if entry is None:
                yield None
                continue
            self._count += 1
            self._running[self._count] = entry
            self._messages[self._count] = []
            yield self._count, entry.task

    def _next(self) -> _Entry | None:
        if self._begun:
            return self._begun.popleft()
        awaited = self._awaited()
        if awaited is not None and self._is_busy(awaited):
            return None
        item = next(self._fresh, None)
        return None if item is None else _Entry(item[0], self._whole(item[1], self._seconds))

    def _is_busy(self, number: int) -> bool:
        return any(entry.number == number for entry in self._running.values())

    def _whole(self, item: Input, seconds: float | None) -> ShardTask:
        part = self._layout.part_file(item).absolute()
        return ShardTask(item, self._settings, part, self._limits, seconds)

    def handle(self, event: Event) -> FinishedInput | None:
        """Takes an event of the pool; returns the input that it completes."""
        number, task = self._running[event.task]
        if isinstance(event, TaskProgress):
            self._take(event.task, number, task, event.message)
            return None
        if isinstance(event, Restarted):
            self._forget(event, number, task)
            return None
        del self._running[event.task]
        messages = self._messages.pop(event.task)
        if isinstance(event, Lost):
            remove_copies(self._layout.work_folder, copy_prefix(task.part))
            messages.append(Skip(None, None, event.reason, event.detail))
        split = self._splits.get(number)
        if split is None:
            return FinishedInput(number, _join([messages]), 0)
        for message in messages:
            # Ends early. What a whole file leaves unused is part of its survey.
            if isinstance(message, Skip) and message.clip is None:
                split.failure = split.failure or f"{message.reason}: {message.detail}"
        if task.assigned is None:
            split.is_surveyed = True
        else:
            split.reports[task.assigned[1].number] = messages
        return self._close(number, task.item, split)

    def _forget(self, event: Restarted, number: int, task: ShardTask) -> None:
        """Drops what a task has reported and left before it begins again.

        Stretches of a survey may be running, and read the file that it writes anew.
        """
        log.info("%s is read again (%s).", task.item.source, event.detail)
        remove_copies(self._layout.work_folder, copy_prefix(task.part))
        self._tally(self._messages[event.task], -1)
        self._messages[event.task] = []
        if task.assigned is None and (split := self._splits.get(number)) is not None:
            split.failure = split.failure or f"crash: {event.detail}"

    def _take(self, number: int, of_input: int, task: ShardTask, message: Message) -> None:
        if isinstance(message, InputSurvey):
            self._splits.setdefault(of_input, _Split(message))  # there is one of a killed survey
        elif isinstance(message, Stretch):
            split = self._splits[of_input]
            split.stretches += 1
            part = self._layout.stretch_file(task.item, message.number).absolute()
            assigned = (split.survey, message)
            if not split.failure:
                entry = _Entry(of_input, dataclasses.replace(task, part=part, assigned=assigned))
                self._begun.append(entry)
        elif not isinstance(message, Alive):
            self._messages[number].append(message)
            self._tally([message], 1)

    def _tally(self, messages: Iterable[Message], sign: int) -> None:
        """Counts the clips of messages, or takes them back."""
        for message in messages:
            if isinstance(message, Written):
                self.clips += sign
                self.seconds += sign * message.seconds

    def _close(self, number: int, item: Input, split: _Split) -> FinishedInput | None:
        """The input, if its last stretch has ended; else None, perhaps with a new task."""
        if split.failure:
            self._begun = deque(entry for entry in self._begun if entry.number != number)
        if self._is_busy(number) or (not split.failure and len(split.reports) < split.stretches):
            return None
        reports = [split.reports[i] for i in range(split.stretches) if i in split.reports]
        if not split.failure and not _agree(reports):
            split.failure = "neighbouring stretches differ in the clip that both extract"
        del self._splits[number]
        split.survey.audio.unlink(missing_ok=True)
        if not split.failure:
            return FinishedInput(number, _join([*reports, split.survey.unused]), split.stretches)
        log.info("%s is extracted again as one task (%s).", item.source, split.failure)
        for path in self._layout.part_files(item, split.stretches):
            path.unlink(missing_ok=True)
        for report in split.reports.values():
            self._tally(report, -1)
        self._begun.appendleft(_Entry(number, self._whole(item, None)))
        return None


def _agree(reports: Sequence[Sequence[Message]]) -> bool:
    """Whether stretches give the same result for the clip that neighbours both extract."""
    seams = [m.result for report in reports for m in report if isinstance(m, Seam)]
    return len(seams) == 2 * (len(reports) - 1) and seams[::2] == seams[1::2]


def _join(reports: Iterable[Sequence[Message]]) -> list[Written | Skip]:
    """Messages about the clips of consecutive stretches, as of one task."""
    joined: list[Written | Skip] = []

    def keep(message: Message) -> None:
        if isinstance(message, Written | Skip):
            joined.append(message)

    reporter = Reporter(keep)
    for report in reports:
        for message in report:
            if isinstance(message, Written):
                reporter.written(message)
            elif isinstance(message, Skip):
                reporter.skipped(message)
    reporter.flush()
    return joined
