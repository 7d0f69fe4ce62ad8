import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from cavmae.common import worker_pool
from tests.tools import faulty


def run(arguments: list[str], workers: int) -> dict[int, list[Any]]:
    events: dict[int, list[Any]] = defaultdict(list)
    for event in worker_pool.run(iter(enumerate(arguments)), faulty.say, workers, 30, 4e9):
        events[event.task].append(event)
    return events


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_every_task_ends_exactly_once(workers: int) -> None:
    arguments = ["fine", "raise", "exit", "fine", "kill"] * 4
    events = run(arguments, workers)
    assert len(events) == len(arguments)
    for number, argument in enumerate(arguments):
        first, last = events[number]
        assert first.message == ("started", argument)
        if argument == "fine":
            assert last.result[0] == "fine"
        else:
            assert last.reason == "crash"
            assert {"raise": "ValueError: oh", "exit": "code 3", "kill": "killed"}[argument] in (
                last.detail
            )


def test_a_worker_that_dies_between_two_polls_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is alive at the poll, and dead a moment later."""
    receive = worker_pool._receive

    def late(worker: Any, timeout: float, memory_bytes: float) -> Iterator[Any]:
        yield from receive(worker, timeout, memory_bytes)
        worker.process.join(0.3)

    monkeypatch.setattr(worker_pool, "_receive", late)
    events = run(["kill", "exit"] * 3, 2)
    assert [events[n][-1].reason for n in range(6)] == ["crash"] * 6


def test_workers_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pids = {e[-1].result[1] for e in run(["x"] * 30, 2).values()}
    assert len(pids) <= 2
    monkeypatch.setattr(worker_pool, "RECYCLE_AFTER", 5)
    pids = {e[-1].result[1] for e in run(["x"] * 30, 2).values()}
    assert len(pids) >= 6


def test_nothing_to_do() -> None:
    assert run([], 2) == {}


def test_processes_are_forked_with_the_modules_of_late_imports() -> None:
    """The parent, which does not run the work, never imports them."""
    program = (
        "import sys\n"
        "from cavmae.common import worker_pool\n"
        "from tests.common.late import has_module\n"
        "events = list(worker_pool.run(iter([(0, 0)]), has_module, 1, 30, 4e9))\n"
        "print(events[-1].result, 'colorsys' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert result.stdout.split() == [b"True", b"False"]


def test_tasks_that_depend_on_events_of_others() -> None:
    """Each task is known when the one before has ended; the others wait meanwhile."""
    ended: list[int] = []

    def tasks() -> Iterator[tuple[int, Any] | None]:
        for number in range(4):
            yield number, "x"
            while number not in ended:
                yield None

    for event in worker_pool.run(tasks(), faulty.say, 2, 30, 4e9):
        if isinstance(event, worker_pool.Finished):
            ended.append(event.task)
    assert ended == [0, 1, 2, 3]
