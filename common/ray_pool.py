"""The pool of :mod:`cavmae.common.worker_pool` on a Ray cluster: the same tasks, the same events.

A Ray task runs one of our tasks in a worker process of its own, with the local pool, whose guard
of time and memory it keeps (:mod:`cavmae.common.ray_node`). Ray carries its signs of life. What the
task reports goes into a file of a folder that all nodes share; Ray only carries the file's digest.

A task that crashes or hangs is tried on one more node before it is lost. A node or a process of Ray
that ends under a task is not the task's fault: it is tried again after growing pauses, and the run
ends before such a task is lost. Ray's own retries are off, since it repeats some failures for ever.
Two attempts of a task may overlap, if a node was only out of reach: a task has to write the same
bytes every time.

Ray is an extra, imported where a cluster is used.
"""

import dataclasses
import hashlib
import importlib.metadata
import logging
import pickle
import secrets
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.imports import import_error
from cavmae.common.ray_cluster import Cluster, connected
from cavmae.common.ray_node import Order, remote_task
from cavmae.common.worker_pool import Event, Lost, Restarted, Tasks, Work

log = logging.getLogger("cavmae")
MAIL_PREFIX = "ray-"  # of the folder of reports
NODES = 2  # on which a task may crash or hang before it is lost
DEATHS = 10  # of nodes or processes of Ray under a task, after which the run ends
MANY_DEATHS = 2  # above which they are warned of
LONGEST_PAUSE = 60.0  # s before a task is tried again; the first pause is 1 s
GRACE = 60.0  # s after the timeout in which a Ray task has to say that its own task was too slow
WAIT = 0.5  # s between looks at what is running
LOOK = 5.0  # s between looks at the cluster, and for silent tasks
QUEUED = 256  # tasks at most that wait for a CPU, so that a cluster sees what it could grow for


class _AttemptFailed(Exception):
    """An attempt gave no result.

    Args:
        reason: ``crash`` or ``timeout`` of the task itself; ``cluster``: not its fault.
        detail: see :class:`Lost`.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail.rstrip(".")


@dataclasses.dataclass
class _Running:
    """A Ray task in flight.

    Attributes:
        order: its instructions.
        faults: nodes on which earlier attempts crashed or hung.
        deaths: nodes or processes of Ray that ended under earlier attempts.
        avoided: ids of the nodes of both.
        node: id and name of the node; None: it waits for a CPU.
        has_begun: whether the node can do the task, and has begun with it.
        signed: time of the last sign of life.
    """

    order: Order
    faults: int = 0
    deaths: int = 0
    avoided: frozenset[str] = frozenset()
    node: tuple[str, str] | None = None
    has_begun: bool = False
    signed: float = 0.0

    def is_silent(self) -> bool:
        """Whether it has begun and given no sign of life for too long."""
        limit = self.order.timeout + GRACE
        return self.node is not None and time.monotonic() - self.signed > limit

    def next_attempt(self, failure: _AttemptFailed) -> "_Running":
        """The attempt after this one."""
        is_fault = failure.reason != "cluster"
        return _Running(
            dataclasses.replace(self.order, attempt=self.order.attempt + 1),
            self.faults + is_fault,
            self.deaths + (not is_fault),
            self.avoided | {self.node[0]} if self.node else self.avoided,
        )


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
        tasks: taken only when there is room for another one. The text of an argument names it in
            messages.
        work: module-level function of an argument and a function that reports progress. It may run
            twice at once for the same task, and has to write the same bytes every time.
        address: of the cluster, as of ``ray.init``.
        shared: folder that all nodes see at the same path.
        workers: tasks in flight at most; 0: two for each CPU of the cluster, and not more than
            ``QUEUED`` that wait.
        timeout: largest time in seconds between messages of a task; a slower task is lost.
        memory_bytes: largest private memory of a task, which the cluster is asked for.
        has_room: whether another task may begin now; see :func:`cavmae.common.worker_pool.run`.

    Yields:
        TaskProgress, perhaps Restarted, and for every task either Finished or Lost.

    Raises:
        UsageError: Ray is not installed, there is no such cluster, or an argument is out of range.
        CavmaeError: raised by ``work``; nodes cannot take part, or end again and again; the head
            node is gone. It ends the run.
    """
    if workers < 0 or timeout <= 0 or memory_bytes <= 0:
        raise UsageError("--timeout and --memory-gb must be positive, --workers not negative.")
    mail = (shared / f"{MAIL_PREFIX}{secrets.token_hex(4)}").absolute()
    first = Order(
        number=0, argument=None, attempt=0, work=work, cwd=str(Path.cwd()), mail=mail,
        token=secrets.token_hex(), version=importlib.metadata.version("cavmae"), timeout=timeout,
        memory_bytes=memory_bytes,
    )  # fmt: skip
    with connected(address) as ray:
        mail.mkdir(parents=True)
        (mail / "token").write_text(first.token)
        try:
            yield from _Driver(ray, tasks, first, workers, has_room).events()
        except ray.exceptions.RayError as error:
            raise CavmaeError(
                f"The Ray cluster fails ({_first_line(error)}); finished work is kept: run the "
                "same command again when it is back."
            ) from error
        finally:  # the cluster ends tasks of a program that leaves it
            shutil.rmtree(mail, ignore_errors=True)


class _Driver:
    """Keeps as many tasks in flight as there is room for, and repeats what was lost."""

    def __init__(
        self,
        ray: Any,
        tasks: Tasks,
        first: Order,
        workers: int,
        has_room: Callable[[], bool],
    ):
        self._ray, self._tasks, self._first = ray, tasks, first
        self._workers, self._has_room = workers, has_room
        self._cluster = Cluster(ray, first.memory_bytes)
        self._task = remote_task(ray, first.memory_bytes)
        self._running: dict[Any, _Running] = {}  # by the stream of Ray's task
        self._again: list[tuple[float, _Running]] = []  # with the time to begin at
        self._more = True

    def events(self) -> Generator[Event, None, None]:
        """Events of all tasks."""
        looked = -LOOK
        while self._running or self._again or self._more:
            if time.monotonic() - looked > LOOK:
                looked = time.monotonic()
                self._cluster.refresh()
                yield from self._cancel_silent()
            has_room = self._has_room()
            is_busy = not has_room or any(own.node for own in self._running.values())
            self._cluster.watch(is_busy)
            self._fill(has_room)
            for stream in self._ready():
                yield from self._receive(stream)

    def _fill(self, has_room: bool) -> None:
        """Gives tasks to the cluster."""
        # One task waits where there is no CPU yet: a cluster grows for what waits.
        cpus = self._cluster.cpus
        room = self._workers or max(1, cpus + min(cpus, QUEUED))
        while len(self._running) < room:
            own = self._due() or (self._fresh() if has_room else None)
            if own is None:
                return
            options: dict[str, Any] = {}
            if own.avoided and (node := self._cluster.another_node(own.avoided)) is not None:
                affinity = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
                options = {"scheduling_strategy": affinity(node, soft=True)}
            stream = self._task.options(**options).remote(pickle.dumps(own.order))
            self._running[stream] = own

    def _due(self) -> _Running | None:
        """A task to be tried again now."""
        for place, (time_to_begin, own) in enumerate(self._again):
            if time.monotonic() >= time_to_begin:
                del self._again[place]
                return own
        return None

    def _fresh(self) -> _Running | None:
        """The next task, if there is one yet."""
        if not self._more:
            return None
        try:
            item = next(self._tasks)
        except StopIteration:
            self._more = False
            return None
        if item is None:
            assert self._running or self._again, "nothing runs to wait for"
            return None
        return _Running(dataclasses.replace(self._first, number=item[0], argument=item[1]))

    def _ready(self) -> list[Any]:
        """Streams with something new, after a while; all at once, since a look costs by streams."""
        streams = list(self._running)
        if not streams:
            if self._again or self._more:
                time.sleep(WAIT)
            return []
        ready, _ = self._ray.wait(streams, num_returns=1, timeout=WAIT)
        if ready and len(streams) > 1:
            ready, _ = self._ray.wait(streams, num_returns=len(streams), timeout=0)
        return list(ready)

    def _receive(self, stream: Any) -> Iterator[Event]:
        """Takes a sign of life from a task, or its end."""
        own = self._running[stream]
        try:
            sign = self._take(stream, own)
            if not isinstance(sign, str):
                own.signed = time.monotonic()
                own.node = own.node or sign
                own.has_begun = own.has_begun or sign is None
                return
            events = _read_report(own, sign)
        except _AttemptFailed as failure:
            del self._running[stream]
            yield from self._repeat(own, failure)
        else:
            del self._running[stream]
            yield from events

    def _take(self, stream: Any, own: _Running) -> tuple[str, str] | str | None:
        """The next item of a task's stream.

        Raises:
            CavmaeError: of the task, or of a node that cannot take part.
            _AttemptFailed: there is none.
        """
        errors = self._ray.exceptions
        try:
            sign: tuple[str, str] | str | None = self._ray.get(next(stream))
        except StopIteration:
            raise _AttemptFailed("cluster", "its stream ended without a report") from None
        except errors.RayTaskError as error:
            if isinstance(error.cause, CavmaeError):
                raise CavmaeError(str(error.cause)) from error
            if isinstance(error.cause, ImportError) and own.node is not None:
                module = error.cause.name or "cavmae"
                raise import_error(module, error.cause, own.node[1]) from error
            detail = f"{type(error.cause).__name__}: {error.cause}"
            raise _AttemptFailed("cluster", detail) from error
        except errors.LocalRayletDiedError:
            raise  # no task can be given any more
        except errors.RayError as error:  # a node, a process or an object of Ray
            detail = f"{type(error).__name__}: {_first_line(error)}"
            raise _AttemptFailed("cluster", detail) from error
        return sign

    def _cancel_silent(self) -> Iterator[Event]:
        for stream, own in [(s, own) for s, own in self._running.items() if own.is_silent()]:
            del self._running[stream]
            self._ray.cancel(stream, force=True)
            silence = f"its node gave no sign of life for {own.order.timeout + GRACE:g} s"
            # Else its node hangs, as on the file system of its packages.
            reason = "timeout" if own.has_begun else "cluster"
            yield from self._repeat(own, _AttemptFailed(reason, silence))

    def _repeat(self, own: _Running, failure: _AttemptFailed) -> Iterator[Event]:
        """Tries a task again, elsewhere if there is another node, or loses it.

        Raises:
            CavmaeError: the cluster has failed it too often.
        """
        order, again = own.order, own.next_attempt(failure)
        if again.faults == NODES:
            yield Lost(order.number, failure.reason, f"{failure.detail}, on {NODES} nodes")
            return
        if again.deaths == DEATHS:
            raise CavmaeError(
                f"{DEATHS} attempts at {order.argument} failed with the nodes or processes of Ray "
                f"that ran them (the last: {failure.detail}); finished work is kept: see the "
                "memory and the logs of the nodes, then run the same command again."
            )
        pause = 0.0
        if failure.reason == "cluster":
            pause = min(LONGEST_PAUSE, 2.0 ** (again.deaths - 1))
        detail = failure.detail + (f"; again in {pause:g} s" if pause else "")
        if again.deaths > MANY_DEATHS:
            log.warning(
                "Nodes or processes of Ray end often: %d have under %s (%s).",
                again.deaths, order.argument, detail,
            )  # fmt: skip
        self._again.append((time.monotonic() + pause, again))
        yield Restarted(order.number, detail)


def _read_report(own: _Running, digest: str) -> list[Event]:
    """Events of an attempt that has ended.

    Raises:
        _AttemptFailed: there is no whole report, or the task crashed and may be tried elsewhere.
    """
    order = own.order
    try:
        content = order.report.read_bytes()
    except OSError as error:
        raise _AttemptFailed("cluster", f"{order.report}: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise _AttemptFailed("cluster", f"{order.report} is not what the node wrote")
    events: list[Event] = pickle.loads(content)  # noqa: S301 - what our own process wrote
    order.report.unlink()
    end = events[-1]
    if isinstance(end, Lost) and end.reason == "crash" and own.faults + 1 < NODES:
        raise _AttemptFailed("crash", end.detail)
    return events


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
