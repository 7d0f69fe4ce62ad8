"""Connection to a Ray cluster, and what it has: its head node, CPUs and memory."""

import contextlib
import logging
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from cavmae.common.errors import CavmaeError, UsageError

log = logging.getLogger("cavmae")
CONNECTING = 10.0  # s in which the head node has to answer
ANSWERING = 2.0  # s likewise, once the cluster is joined
# s without an answer of the head node after which the run ends. Ray ends the process after 60, with
# its own report and without any clearing up.
HEAD_GONE = 40.0
BUILDING = 60.0  # s in which a cluster may show its first CPU


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster; its own handlers of signals are undone.

    Raises:
        UsageError: Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise UsageError("--executor ray needs Ray: pip install 'cavmae[ray]'.") from error
    if ray.is_initialized():  # by the program that calls this one
        yield ray
        return
    if address.startswith("ray://"):
        raise UsageError(
            f"--ray-address {address}: a Ray client cannot follow tasks; run this on a node of the "
            "cluster, with the address HEAD:6379 or auto."
        )
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


class Cluster:
    """A cluster as it was when it was last looked at.

    Args:
        ray: connected to it.
        memory_bytes: that a task asks for.

    Attributes:
        cpus: number of its CPUs.
    """

    def __init__(self, ray: Any, memory_bytes: float):
        self._ray, self._memory = ray, memory_bytes
        self._head = ray.get_runtime_context().gcs_address
        self._answered = time.monotonic()
        self._nodes: list[dict[str, Any]] = []
        self._idle_since = self._answered
        self.cpus = 0

    def refresh(self) -> None:
        """Looks at the cluster; keeps what was known while its head node does not answer.

        Raises:
            CavmaeError: it has not answered for ``HEAD_GONE`` seconds.
        """
        host, _, port = self._head.rpartition(":")
        now = time.monotonic()
        try:
            socket.create_connection((host.strip("[]"), int(port)), ANSWERING).close()
        except OSError as error:
            if now - self._answered > HEAD_GONE:
                raise CavmaeError(
                    f"The head node of the Ray cluster, {self._head}, has not answered for "
                    f"{HEAD_GONE:g} s ({error.strerror or error}); finished work is kept: start "
                    "the cluster again, and run the same command."
                ) from error
            return
        self._answered = now
        self._nodes = [node for node in self._ray.nodes() if node["Alive"]]
        self.cpus = sum(int(node["Resources"].get("CPU", 0)) for node in self._nodes)

    def another_node(self, avoided: frozenset[str]) -> str | None:
        """Id of a node that a task fits on and that is not to be avoided; None: there is none."""
        others = [
            node["NodeID"] for node in self._nodes
            if node["NodeID"] not in avoided
            and node["Resources"].get("CPU", 0) >= 1
            and node["Resources"].get("memory", 0) >= self._memory
        ]  # fmt: skip
        return random.choice(others) if others else None

    def watch(self, is_busy: bool) -> None:
        """Warns once if no task begins for long, of what no node has of what it asks for.

        Ray would wait in silence.
        """
        if is_busy:
            self._idle_since = time.monotonic()
        elif time.monotonic() - self._idle_since > BUILDING:
            self._idle_since = float("inf")
            cpus = max((node["Resources"].get("CPU", 0) for node in self._nodes), default=0)
            memory = max((node["Resources"].get("memory", 0) for node in self._nodes), default=0)
            log.warning(
                "No task has begun on the Ray cluster for %d s: each asks for a CPU and %.3g GB, "
                "the largest of its %d nodes have %d CPUs and %.3g GB. Start other nodes, or lower "
                "--memory-gb.",
                BUILDING, self._memory / 1e9, len(self._nodes), cpus, memory / 1e9,
            )  # fmt: skip
