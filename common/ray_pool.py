"""The pool of :mod:`cavmae.common.worker_pool` on a Ray cluster: the same tasks, the same events.

A Ray task runs one of our tasks in a worker process of its own, with the local pool, whose guard
of time and memory it keeps. What the task reports goes into a file of a folder that all nodes
share; Ray only carries the file's digest. A node or a Ray process that dies costs its running tasks
an attempt, which is repeated here: Ray's own retries are off, since it repeats some failures for
ever. Two attempts of a task may overlap, if a node was only out of reach: a task has to write the
same bytes every time.

Ray is an extra, imported where a cluster is used.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import logging
import math
import os
import pickle
import platform
import secrets
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from cavmae.common import worker_pool
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import write_atomically
from cavmae.common.worker_pool import Event, Lost, TaskProgress, Tasks, Work

log = logging.getLogger("cavmae")
MAIL_PREFIX = "ray-"  # of the folder of reports
ATTEMPTS = 4  # of a task whose node or Ray process died
GRACE = 60.0  # s after the timeout in which a Ray task has to say that its own task was too slow
PULSE = 2.0  # s between touches of the file that says that a Ray task is alive
WAIT = 0.5  # s between looks at what is running
QUEUED = 2  # tasks for each CPU of the cluster, so that it sees what it could grow for
CONNECTING = 10.0  # s in which the head node has to answer
BUILDING = 60.0  # s in which a cluster may show its first CPU


class _AttemptFailed(Exception):
    """An attempt gave no report.

    Args:
        reason: of :class:`Lost`.
        detail: likewise.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclasses.dataclass(frozen=True)
class _Order:
    """Instructions of a Ray task.

    Attributes:
        number, argument: of the task.
        attempt: from 0.
        work: see :data:`cavmae.common.worker_pool.Work`.
        cwd: folder that relative paths of the argument are meant from.
        mail: folder for reports, which all nodes share.
        token: content of the file that proves it.
        version: of the package that gives orders.
        timeout, memory_bytes: see :func:`cavmae.common.worker_pool.run`.
    """

    number: int
    argument: Any
    attempt: int
    work: Work
    cwd: str
    mail: Path
    token: str
    version: str
    timeout: float
    memory_bytes: float

    @property
    def report(self) -> Path:
        return self.mail / f"{self.number}-{self.attempt}.events"

    @property
    def pulse(self) -> Path:
        return self.mail / f"{self.number}-{self.attempt}.alive"


def execute(order: _Order) -> str:
    """Runs a task on a node: writes its events to ``order.report`` and returns their digest.

    Raises:
        CavmaeError: the node cannot take part, or the task says that the run has to end.
    """
    _check_node(order)
    worker_pool.preload_work(order.work)
    tasks: Tasks = iter([(order.number, (order.cwd, order.work, order.argument))])
    events: list[Event] = []
    touched = -PULSE
    for event in worker_pool.run(tasks, _work_in_folder, 1, order.timeout, order.memory_bytes):
        events.append(event)
        if time.monotonic() - touched > PULSE:
            order.pulse.touch()
            touched = time.monotonic()
    content = pickle.dumps(events)
    try:
        with write_atomically(order.report) as file:
            file.write(content)
    except OSError as error:
        raise CavmaeError(f"Cannot write to {order.mail.parent}: {error.strerror}.") from error
    return hashlib.sha256(content).hexdigest()


def _work_in_folder(argument: tuple[str, Work, Any], report: Any) -> Any:
    """Runs a task where the program that gave it was started."""
    folder, work, own = argument
    report(None)  # a first sign of life
    with contextlib.suppress(OSError):  # a node without it can still read absolute paths
        os.chdir(folder)
    return work(own, report)


def _check_node(order: _Order) -> None:
    """Raises CavmaeError for a node without the shared folder, or with another version."""
    version = importlib.metadata.version("cavmae")
    if version != order.version:
        raise CavmaeError(
            f"The node {platform.node()} has cavmae {version}, this program is {order.version}: "
            "install the same on all nodes of the Ray cluster."
        )
    try:
        seen = (order.mail / "token").read_text()
    except OSError:
        seen = ""
    if seen != order.token:
        raise CavmaeError(
            f"The node {platform.node()} does not see {order.mail.parent}: the output has to lie "
            "on a file system that all nodes of the Ray cluster share, at the same path."
        )


@dataclasses.dataclass
class _Running:
    """A Ray task in flight.

    Attributes:
        order: what it was told.
        pulse: time stamp of its file, as its file system gives it; None: it waits for a CPU.
        changed: when that was last seen to change, by this machine's clock.
    """

    order: _Order
    pulse: int | None = None
    changed: float = 0.0

    def stuck(self) -> bool:
        """Whether it has begun and given no sign of life for too long."""
        now = time.monotonic()
        with contextlib.suppress(OSError):
            pulse = self.order.pulse.stat().st_mtime_ns
            if pulse != self.pulse:
                self.pulse, self.changed = pulse, now
        return self.pulse is not None and now - self.changed > self.order.timeout + GRACE


def run(
    tasks: Tasks,
    work: Work,
    address: str,
    shared: Path,
    workers: int,
    timeout: float,
    memory_bytes: float,
    has_room: Callable[[], bool] = lambda: True,
) -> Generator[Event, None, None]:
    """Runs tasks on a Ray cluster and yields their events, those of a task when it has ended.

    Args:
        tasks: taken only when there is room for another one.
        work: module-level function of an argument and a function that reports progress. It may run
            twice at once for the same task, and has to write the same bytes every time.
        address: of the cluster, as of ``ray.init``.
        shared: folder that all nodes see at the same path.
        workers: tasks in flight at most; 0: twice as many as the cluster has CPUs.
        timeout: largest time in seconds between messages of a task; a slower task is lost.
        memory_bytes: largest private memory of a task, which the cluster is asked for.
        has_room: whether another task may begin now; see :func:`cavmae.common.worker_pool.run`.

    Yields:
        TaskProgress, and for every task either Finished or Lost.

    Raises:
        UsageError: Ray is not installed, there is no such cluster, or an argument is out of range.
        CavmaeError: raised by ``work``; or nodes cannot take part. It ends the run.
    """
    if workers < 0 or timeout <= 0 or memory_bytes <= 0:
        raise UsageError("--timeout and --memory-gb must be positive, --workers not negative.")
    mail = (shared / f"{MAIL_PREFIX}{secrets.token_hex(4)}").absolute()
    first = _Order(
        number=0, argument=None, attempt=0, work=work, cwd=str(Path.cwd()), mail=mail,
        token=secrets.token_hex(), version=importlib.metadata.version("cavmae"), timeout=timeout,
        memory_bytes=memory_bytes,
    )  # fmt: skip
    with _connected(address) as ray:
        mail.mkdir(parents=True)
        (mail / "token").write_text(first.token)
        try:
            yield from _drive(ray, tasks, first, workers, has_room)
        except ray.exceptions.RayError as error:
            raise CavmaeError(
                f"The Ray cluster fails ({_first_line(error)}); finished work is kept: run the "
                "same command again when it is back."
            ) from error
        finally:  # the cluster ends tasks of a program that leaves it
            shutil.rmtree(mail, ignore_errors=True)


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster; its own handlers of signals are undone."""
    try:
        import ray
    except ImportError as error:
        raise UsageError("--executor ray needs Ray: pip install 'cavmae[ray]'.") from error
    if ray.is_initialized():  # by the program that calls this one
        yield ray
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _check_reachable(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:  # OSError: no connection, too
        raise UsageError(
            f"--ray-address {address}: no Ray cluster can be joined "
            f"({' '.join(str(error).split())[:500]}). `ray start --head` starts one, of the same "
            "versions of Python and Ray as here."
        ) from error
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raises OSError for a host and port that nobody answers at: Ray would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), CONNECTING).close()


def _drive(
    ray: Any,
    tasks: Tasks,
    first: _Order,
    workers: int,
    has_room: Callable[[], bool],
) -> Generator[Event, None, None]:
    """Keeps as many tasks in flight as there is room for, and repeats what was lost."""
    running: dict[Any, _Running] = {}
    task = ray.remote(num_cpus=1, memory=int(first.memory_bytes), max_retries=0)(execute)
    again: list[_Order] = []
    more = True
    silent_since = time.monotonic()  # from a task last
    while running or again or more:
        # One task waits where there is no CPU yet: a cluster grows for what waits.
        room = workers or max(1, QUEUED * int(ray.cluster_resources().get("CPU", 0)))
        held = not has_room()
        if held or any(own.pulse is not None for own in running.values()):
            silent_since = time.monotonic()
        elif time.monotonic() - silent_since > BUILDING:
            _warn_of_shortage(ray, first.memory_bytes)
            silent_since = math.inf
        while len(running) < room and (again or (more and not held)):
            if again:
                order = again.pop()
            else:
                try:
                    item = next(tasks)
                except StopIteration:
                    more = False
                    continue
                if item is None:
                    assert running, "nothing runs to wait for"
                    break
                order = dataclasses.replace(first, number=item[0], argument=item[1])
            running[task.remote(order)] = _Running(order)
        if not running:
            time.sleep(WAIT if again or more else 0)
            continue
        done, _ = ray.wait(list(running), num_returns=1, timeout=WAIT)
        for reference in done:
            silent_since = time.monotonic()
            order = running.pop(reference).order
            try:
                events = _events(ray, reference, order)
            except _AttemptFailed as failure:
                yield from _repeat_or_lose(order, failure, again)
            else:
                yield from events
        for reference in [r for r, own in running.items() if own.stuck()]:
            order = running.pop(reference).order
            ray.cancel(reference, force=True)
            silence = f"its node gave no sign of life for {order.timeout + GRACE:g} s"
            yield from _repeat_or_lose(order, _AttemptFailed("timeout", silence), again)


def _warn_of_shortage(ray: Any, memory_bytes: float) -> None:
    """Says what no node has of what a task asks for; Ray would wait in silence."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = max((node.get("CPU", 0) for node in nodes), default=0)
    memory = max((node.get("memory", 0) for node in nodes), default=0)
    log.warning(
        "No task has begun on the Ray cluster for %d s: each asks for a CPU and %.3g GB, the "
        "largest of its %d nodes have %d CPUs and %.3g GB. Start other nodes, or lower "
        "--memory-gb.",
        BUILDING, memory_bytes / 1e9, len(nodes), cpus, memory / 1e9,
    )  # fmt: skip


def _events(ray: Any, reference: Any, order: _Order) -> list[Event]:
    """Events of an attempt that has ended.

    Raises:
        CavmaeError: of the task, or of a node that cannot take part.
        _AttemptFailed: there is no whole report.
    """
    errors = ray.exceptions
    try:
        digest = ray.get(reference)
    except errors.OutOfMemoryError as error:
        raise _AttemptFailed("out_of_memory", _first_line(error)) from error
    except errors.RayTaskError as error:
        if isinstance(error.cause, CavmaeError):
            raise CavmaeError(str(error.cause)) from error
        _check_imported(error)
        raise _AttemptFailed("crash", f"{type(error.cause).__name__}: {error.cause}") from error
    except errors.RayError as error:  # a node, a process or an object of Ray
        _check_imported(error)
        raise _AttemptFailed("crash", f"{type(error).__name__}: {_first_line(error)}") from error
    try:
        content = order.report.read_bytes()
    except OSError as error:
        raise _AttemptFailed("crash", f"{order.report}: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise _AttemptFailed("crash", f"{order.report} is not what the node wrote")
    events: list[Event] = pickle.loads(content)  # noqa: S301 - what our own process wrote
    order.report.unlink()
    order.pulse.unlink(missing_ok=True)
    return [e for e in events if not isinstance(e, TaskProgress) or e.message is not None]


def _check_imported(error: BaseException) -> None:
    """Raises CavmaeError if a node could not import what the task needs.

    Ray wraps the error of an import in others, whose text alone tells.
    """
    text = str(error)
    if "failed to import" in text or "ModuleNotFoundError" in text or "ImportError" in text:
        cause = next((x for x in text.splitlines()[::-1] if "Error" in x), _first_line(error))
        raise CavmaeError(
            f"A node of the Ray cluster cannot import cavmae ({cause.strip()[:300]}): install the "
            "same version on all nodes."
        ) from error


def _repeat_or_lose(order: _Order, failure: _AttemptFailed, again: list[_Order]) -> Iterator[Event]:
    if order.attempt + 1 < ATTEMPTS:
        log.info("A task is tried again: %s.", failure.detail.rstrip("."))
        again.append(dataclasses.replace(order, attempt=order.attempt + 1))
    else:
        detail = f"{failure.detail.rstrip('.')}, at the last of {ATTEMPTS} attempts"
        yield Lost(order.number, failure.reason, detail)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
