"""Task on a node of a Ray cluster, in a worker process of the local pool."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import os
import pickle
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cavmae.common import worker_pool
from cavmae.common.errors import CavmaeError
from cavmae.common.files import write_atomically
from cavmae.common.worker_pool import Event, Restarted, TaskProgress, Tasks, Work

PULSE = 10.0  # s between signs of life


@dataclasses.dataclass(frozen=True)
class Order:
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


def remote_task(ray: Any, memory_bytes: float) -> Any:
    """Ray's task that executes a pickled :class:`Order`: a stream of its signs of life.

    Ray pickles the inner function with its code. Its first sign, the node's id and name, comes
    before anything of ours is imported or read, so that the driver knows which node cannot do it.
    """

    def cavmae_task(order: bytes) -> Iterator[tuple[str, str] | str | None]:
        import pickle
        import platform

        import ray

        yield ray.get_runtime_context().get_node_id(), platform.node()
        from cavmae.common.ray_node import execute

        yield from execute(pickle.loads(order))  # noqa: S301 - what our own process wrote

    options = {"num_cpus": 1, "memory": int(memory_bytes), "num_returns": "streaming"}
    return ray.remote(max_retries=0, **options)(cavmae_task)


def execute(order: Order) -> Iterator[str | None]:
    """Runs a task on a node: writes its events to ``order.report``.

    Yields:
        None as a sign of life, for the first time when the task has begun; the digest of the report
        at the end.

    Raises:
        CavmaeError: the node cannot take part, or the task says that the run has to end.
    """
    _check_node(order)
    worker_pool.preload_work(order.work)
    tasks: Tasks = iter([(order.number, (order.cwd, order.work, order.argument))])
    events: list[Event] = []
    signed = -PULSE
    for event in worker_pool.run(tasks, _work_in_folder, 1, order.timeout, order.memory_bytes):
        if isinstance(event, Restarted):
            events.clear()
        elif not isinstance(event, TaskProgress) or event.message is not None:
            events.append(event)
        if time.monotonic() - signed > PULSE:
            yield None
            signed = time.monotonic()
    content = pickle.dumps(events)
    try:
        with write_atomically(order.report) as file:
            file.write(content)
    except OSError as error:
        raise CavmaeError(f"Cannot write to {order.mail.parent}: {error.strerror}.") from error
    yield hashlib.sha256(content).hexdigest()


def _work_in_folder(argument: tuple[str, Work, Any], report: Any) -> Any:
    """Runs a task where the program that gave it was started."""
    folder, work, own = argument
    report(None)  # the first sign of life
    with contextlib.suppress(OSError):  # a node without it can still read absolute paths
        os.chdir(folder)
    return work(own, report)


def _check_node(order: Order) -> None:
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
