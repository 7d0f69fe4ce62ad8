import os
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cavmae.common import worker_pool
from cavmae.common.errors import CavmaeError
from tests.common import late
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
        *_, first, last = events[number]
        assert first.message == ("started", argument)
        # A process that ends may have been killed from outside: its task is tried once more.
        again = [event for event in events[number] if isinstance(event, worker_pool.Restarted)]
        assert len(again) == (argument in ("exit", "kill"))
        assert len(events[number]) == 2 + 2 * len(again)
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


@pytest.mark.parametrize("at", ["event", "room", "task"])
def test_a_worker_that_dies_while_it_is_free_costs_no_task(at: str) -> None:
    """Killed after its first task, before the next one is taken, or at the last moment."""
    idle: list[int] = []

    def kill(here: str) -> None:
        if at == here and idle:
            process = psutil.Process(idle.pop())
            process.kill()
            process.wait(30)

    def tasks() -> Iterator[tuple[int, str]]:
        yield 0, "x"
        kill("task")
        yield 1, "y"

    def has_room() -> bool:
        kill("room")
        return True

    results = []
    for event in worker_pool.run(tasks(), faulty.say, 1, 30, 4e9, has_room):
        if not isinstance(event, worker_pool.TaskProgress):
            assert isinstance(event, worker_pool.Finished)
            results.append(event.result)
            if event.task == 0:
                idle.append(event.result[1])
                kill("event")
    assert [word for word, _ in results] == ["x", "y"]
    assert len({pid for _, pid in results}) == 2 and not idle


def test_workers_that_die_at_their_start_lose_their_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second pipe is broken before the task is sent: no attempt follows another for ever."""
    assign = worker_pool._Worker.assign

    def late(worker: Any, job: Any) -> None:
        worker.process.kill()
        worker.process.join()
        assign(worker, job)

    monkeypatch.setattr(worker_pool._Worker, "assign", late)
    events = run(["x", "y", "z"], 2)
    ends = [worker_pool.Restarted, worker_pool.Lost]
    assert [[type(event) for event in events[n]] for n in range(3)] == [ends] * 3


@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_whose_process_was_killed_begins_again_when_the_caller_knows(
    tmp_path: Path, workers: int
) -> None:
    """Although no other task may begin."""
    first, again = tmp_path / "task", tmp_path / "task.again"
    tasks = iter(enumerate([f"once {first}", "x"]))
    kinds = []
    for event in worker_pool.run(tasks, faulty.say, workers, 30, 4e9, lambda: not first.exists()):
        if event.task == 1:
            continue
        kinds.append(type(event).__name__)
        if isinstance(event, worker_pool.Restarted):
            assert "was killed" in event.detail
            time.sleep(0.3)  # in which another worker could begin
            assert not again.exists()
        if isinstance(event, worker_pool.Finished):
            assert again.exists()
            first.unlink()
    assert kinds == ["TaskProgress", "Restarted", "TaskProgress", "Finished"]
    assert not first.exists()


KILL_THE_SERVER = """
import os, signal, sys
from multiprocessing import forkserver
from cavmae.common import worker_pool
from tests.common.late import write_pid
again = 0
for event in worker_pool.run(iter(enumerate(sys.argv[1:] * 2)), write_pid, 2, 30, 4e9):
    again += isinstance(event, worker_pool.Restarted)
    if isinstance(event, worker_pool.TaskProgress) and not again:
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    if isinstance(event, worker_pool.Finished):
        print(event.task, event.result)
assert again
"""


def test_a_kill_of_the_server_that_forks_workers_costs_no_task(tmp_path: Path) -> None:
    """Its workers go on unseen; they are ended before their tasks begin again."""
    lines = tmp_path / "lines"
    command = [sys.executable, "-c", KILL_THE_SERVER, str(lines)]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=100)
    ended = dict(line.split() for line in result.stdout.decode().splitlines())
    assert set(ended) == {"0", "1"}
    assert sorted(lines.read_text().split()) == sorted(ended.values())  # nobody else went on


@pytest.mark.parametrize("error", ["ImportError('oh')", "AttributeError('oh')"])
def test_a_module_that_cannot_be_imported_ends_the_run(tmp_path: Path, error: str) -> None:
    """Its machine would fail every task, fast, and would draw them all."""
    (tmp_path / "broken.py").write_text(f"raise {error}")
    (tmp_path / "outer.py").write_text("import broken")
    reason = f"{platform.node()} cannot import broken .{error.partition('(')[0]}: oh"
    for task in (("", "no_such_module"), (str(tmp_path), "outer")):
        with pytest.raises(CavmaeError, match=f"cannot import no_such_module|{reason}"):
            list(worker_pool.run(iter([(0, task)]), late.import_from, 1, 30, 4e9))


def test_a_module_that_breaks_the_server_is_left_to_the_task_that_needs_it(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('oh')")
    program = (
        "from cavmae.common import worker_pool\n"
        "from tests.common.late import has_module, import_from\n"
        "worker_pool.preload('broken')\n"
        "print(list(worker_pool.run(iter([(0, 0)]), has_module, 1, 30, 4e9))[-1].result)\n"
        "list(worker_pool.run(iter([(0, ('', 'broken'))]), import_from, 1, 30, 4e9))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, env=environment, check=False
    )
    assert result.stdout == b"False\n"
    assert b"cannot import broken (RuntimeError: oh)" in result.stderr


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
