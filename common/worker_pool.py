"""Pool of worker processes that may crash, hang or exhaust memory without ending the run.

Every worker has a pipe of its own (a lock shared with a killed process would stay locked) and one
task at a time, so that every failure belongs to one task. A process that ends on its own may have
been killed from outside, as by the out-of-memory killer of a container, so that its task is tried
once more before it is lost.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import psutil

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.imports import broken_import, import_error

ATTEMPTS = 2  # of a task whose process ends on its own
WATCH_EVERY = 0.5  # s between checks of time and memory
RECYCLE_AFTER = 500  # tasks: ending a process frees the memory that its libraries leaked


_preloaded: list[str] = []


def preload(*modules: str) -> None:
    """Adds modules that processes of :func:`fork_context` are forked with instead of importing.

    The server that forks them starts with the first of them: later calls change nothing.
    """
    _preloaded.extend(module for module in modules if module not in _preloaded)


def fork_context() -> ForkServerContext:
    """Context of processes that share nothing with this one, forked from a server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_preloaded)
    return context


# (number, argument) of each task; None where the next one depends on events of running ones.
Tasks = Iterator[tuple[int, Any] | None]
# A task's function gets its arguments and a callable that reports progress to the parent.
Work = Callable[[Any, Callable[[Any], None]], Any]
_late_modules: dict[Work, tuple[str, ...]] = {}


def with_modules(*modules: str) -> Callable[[Work], Work]:
    """Decorator of work that imports modules when it runs: its processes are forked with them.

    The parent process, which does not run the work, saves their memory.
    """

    def decorate(work: Work) -> Work:
        _late_modules[work] = modules
        return work

    return decorate


def preload_work(work: Work) -> None:
    """Adds the modules of a task's function as :func:`preload` does."""
    preload(work.__module__, *_late_modules.get(work, ()))


@dataclasses.dataclass(frozen=True)
class TaskProgress:
    """A message of a running task."""

    task: int
    message: Any


@dataclasses.dataclass(frozen=True)
class Finished:
    """The result of a finished task."""

    task: int
    result: Any


@dataclasses.dataclass(frozen=True)
class Lost:
    """A task whose worker ended early: ``crash``, ``timeout`` or ``out_of_memory``."""

    task: int
    reason: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Restarted:
    """A task that begins again, since its process ended: its earlier messages do not count."""

    task: int
    detail: str


Event = TaskProgress | Finished | Lost | Restarted


def _serve(connection: Connection, work: Work, environment: dict[str, str]) -> None:
    """Main loop of a worker: runs one task after the other until it receives None."""
    os.environ.update(environment)  # the server that forks workers may be older than these
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        if task is None:
            return
        number, argument = task

        def report(message: Any, number: int = number) -> None:
            connection.send(TaskProgress(number, message))

        try:
            result: Any = Finished(number, work(argument, report))
        except CavmaeError as error:
            result = error
        except Exception as error:  # noqa: BLE001 - a bug must not stop the other tasks
            module = broken_import(error)
            if module is None:
                result = Lost(number, "crash", f"{type(error).__name__}: {error}")
            else:
                result = import_error(module, error)
        connection.send(result)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


class _Job(NamedTuple):
    """A task, and the number of its attempt, from 1."""

    number: int
    argument: Any
    attempt: int = 1


class _Worker:
    def __init__(self, context: ForkServerContext, work: Work):
        self.connection, worker_connection = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_serve, args=(worker_connection, work, dict(os.environ)), daemon=True
        )
        self.process.start()
        worker_connection.close()
        try:
            self._system_process = psutil.Process(self.process.pid)
        except psutil.NoSuchProcess:
            self._system_process = None
        self.job: _Job | None = None
        self.done = 0
        self.last_message_at = time.monotonic()

    def assign(self, job: _Job) -> None:
        self.job = job
        self.last_message_at = time.monotonic()
        self.connection.send((job.number, job.argument))

    def memory(self) -> int:
        """Resident memory in bytes, without memory shared with other processes."""
        if self._system_process is None:
            return 0
        try:
            info = self._system_process.memory_info()
        except psutil.Error:
            return 0
        return int(info.rss - getattr(info, "shared", 0))

    def kill(self) -> None:
        """Ends the process, also if only the server died that it was forked from.

        multiprocessing takes such a process for dead, but it would go on with its task.
        """
        self.process.kill()
        if self._system_process is not None:
            with contextlib.suppress(psutil.Error):
                self._system_process.kill()
        self.process.join()

    def stop(self) -> None:
        self.kill()
        self.connection.close()


def _start(context: ForkServerContext, work: Work) -> _Worker:
    """A new worker.

    The server that forks it may have been killed, and starts anew. One that dies at its imports is
    started without them: the worker, which imports for itself, says what is wrong.

    Raises:
        CavmaeError: no server starts.
    """
    for modules in (_preloaded, _preloaded, [], []):
        context.set_forkserver_preload(modules)
        try:
            return _Worker(context, work)
        except (EOFError, ConnectionError) as error:
            failure = error
            time.sleep(WATCH_EVERY)  # until it has ended, so that another one is started
    raise CavmaeError(
        "No worker process can be started, since the server that forks them ends: see its message "
        "above, and run the same command again."
    ) from failure


def run(
    tasks: Tasks,
    work: Work,
    workers: int,
    timeout: float,
    memory_bytes: float,
    has_room: Callable[[], bool] = lambda: True,
) -> Generator[Event, None, None]:
    """Runs tasks in parallel and yields their events.

    Args:
        tasks: taken only when a worker is free.
        work: module-level function of an argument and a function that reports progress.
        workers: number of processes.
        timeout: largest time in seconds between messages of a task; a slower task is lost.
        memory_bytes: largest private memory of a worker; the task of a larger one is lost.
        has_room: whether another task may begin now; asked at least every ``WATCH_EVERY`` seconds.
            What it raises ends the run.

    Yields:
        TaskProgress, perhaps Restarted, and for every task either Finished or Lost.

    Raises:
        UsageError: ``workers``, ``timeout`` or ``memory_bytes`` is not positive.
        CavmaeError: raised by ``work``, or a module cannot be imported; it ends the run.
    """
    if workers < 1 or timeout <= 0 or memory_bytes <= 0:
        raise UsageError("--workers, --timeout and --memory-gb must be positive numbers.")
    preload_work(work)
    context = fork_context()
    pool: list[_Worker] = []
    again: deque[_Job] = deque()
    more = True
    try:
        while True:
            _remove_ended(pool)
            room = has_room()
            while (again or (more and room)) and _has_free(pool, workers):
                if again:
                    _assign(pool, context, work, again.popleft())
                    continue
                try:
                    item = next(tasks)
                except StopIteration:
                    more = False
                    break
                if item is None:
                    assert any(w.job is not None for w in pool), "nothing runs to wait for"
                    break
                _assign(pool, context, work, _Job(*item))
            busy = [w for w in pool if w.job is not None]
            if not busy:
                if not more:
                    return
                if not room:
                    time.sleep(WATCH_EVERY)
                continue
            handles: list[Any] = [w.connection for w in busy] + [w.process.sentinel for w in busy]
            wait(handles, timeout=WATCH_EVERY)
            for worker in busy:
                job = worker.job
                for event in _receive(worker, timeout, memory_bytes):
                    yield event
                    if isinstance(event, Restarted) and job is not None:  # now the caller knows
                        again.append(job._replace(attempt=job.attempt + 1))
    finally:
        for worker in pool:
            worker.stop()


def _has_free(pool: list[_Worker], workers: int) -> bool:
    return len(pool) < workers or any(w.job is None for w in pool)


def _remove_ended(pool: list[_Worker]) -> None:
    """Removes free workers that have died, perhaps long after their last task, or are used up.

    A busy one that has died stays until its task is reported.
    """
    for worker in [w for w in pool if w.job is None]:
        if not worker.process.is_alive() or worker.done >= RECYCLE_AFTER:
            worker.stop()
            pool.remove(worker)


def _assign(pool: list[_Worker], context: ForkServerContext, work: Work, job: _Job) -> None:
    """Gives a task to a free worker, or to a new one if there is none or if it has just died."""
    free = next((w for w in pool if w.job is None), None)
    if free is not None:
        try:
            free.assign(job)
        except OSError:  # the task never reached it
            free.stop()
            pool.remove(free)
        else:
            return
    worker = _start(context, work)
    pool.append(worker)
    with contextlib.suppress(OSError):  # dead at its start: reported as the end of its process
        worker.assign(job)


def _receive(worker: _Worker, timeout: float, memory_bytes: float) -> Iterator[Event]:
    """Events of a worker's pipe; takes the task from a dead, silent or too large worker."""
    job = worker.job
    assert job is not None
    ended = not worker.process.is_alive()  # first: earlier messages are still in the pipe
    while worker.job is not None:
        try:
            if not worker.connection.poll():
                break
            message = worker.connection.recv()
        except (EOFError, OSError):
            ended = True
            break
        worker.last_message_at = time.monotonic()
        if isinstance(message, CavmaeError):
            raise message
        if isinstance(message, (Finished, Lost)):
            worker.job = None
            worker.done += 1
        yield message
    if worker.job is None:
        return
    lost: Event
    if ended:
        worker.process.join()
        lost = _after_end(job, _exit_description(worker.process.exitcode))
    elif time.monotonic() - worker.last_message_at > timeout:
        lost = Lost(job.number, "timeout", f"no message for {timeout:g} s")
    elif (memory := worker.memory()) > memory_bytes:
        lost = Lost(job.number, "out_of_memory", f"{memory / 1e9:.1f} GB used")
    else:
        return
    worker.job = None
    worker.kill()
    yield lost


def _after_end(job: _Job, detail: str) -> Event:
    """Event of a task whose process ended: it begins again, or is lost."""
    if job.attempt < ATTEMPTS:
        return Restarted(job.number, detail)
    return Lost(job.number, "crash", detail)


def _exit_description(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        if exitcode == -signal.SIGKILL:
            return "the worker process was killed, perhaps by the system's out-of-memory killer"
        return f"the worker process ended with {signal.Signals(-exitcode).name}"
    return f"the worker process ended with code {exitcode}"
