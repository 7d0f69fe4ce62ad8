"""Heartbeats of a run's processes: where one falls silent, the others end.

A machine without power or network closes no connection. Collective calls then wait for their
time limit, half an hour in gloo, and torchrun watches only the processes of its own machine.
"""

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Iterator

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from cavmae.common.errors import CavmaeError

log = logging.getLogger("cavmae")
TICK_SECONDS = 1.0
BEATS = 6  # of a process within its time limit
# Texts of gloo and NCCL for a connection that another process has closed.
CLOSED = ("gloo/transport", "ncclRemoteError")


@contextlib.contextmanager
def watched_peers(timeout: float) -> Iterator[None]:
    """Ends this process, with exit code 1, where another one of the run gives no heartbeat.

    Heartbeats are counters in the store through which the processes have met. They come from
    a thread, so that a process that saves, evaluates or compiles for long is not taken for lost.

    Args:
        timeout: seconds without a heartbeat; 0: wait forever.

    Raises:
        CavmaeError: the connection to another process broke in the body.
    """
    joined = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    watch = _Watch(timeout) if joined and timeout else None
    try:
        yield
    except RuntimeError as error:
        if not _is_closed_connection(error):
            raise
        raise CavmaeError(
            f"The connection to another process of this run broke ({str(error).splitlines()[0]}): "
            "that process or its machine has ended. See its messages, then start the same command "
            "with --resume auto on all machines."
        ) from error
    finally:
        if watch is not None:
            watch.end()


def _is_closed_connection(error: RuntimeError) -> bool:
    network = isinstance(error, dist.DistNetworkError | dist.DistStoreError)
    return network or any(text in str(error) for text in CLOSED)


class _Watch:
    """Threads that give this process's heartbeats, and count the seconds without the others'."""

    def __init__(self, timeout: float):
        self._timeout = timeout
        self._rank, self._count = dist.get_rank(), dist.get_world_size()
        # A connection of its own: the other one is locked while somebody waits for a key.
        self._store = _get_default_store().clone()  # type: ignore[attr-defined]
        self._keys = [f"cavmae/heartbeat/{rank}" for rank in range(self._count)]
        hosts = [f"cavmae/host/{rank}" for rank in range(self._count)]
        self._store.set(hosts[self._rank], socket.gethostname())
        self._store.set(self._keys[self._rank], "0")
        self._hosts = [host.decode() for host in self._store.multi_get(hosts)]
        self._beats: list[bytes] = []
        self._ended = threading.Event()
        # Two threads: a store whose machine has gone may never answer.
        for work in (self._exchange, self._count_silence):
            threading.Thread(target=work, name=f"heartbeats{work.__name__}", daemon=True).start()

    def end(self) -> None:
        self._ended.set()

    def _exchange(self) -> None:
        number = 0
        while not self._ended.wait(self._timeout / BEATS):
            number += 1
            try:
                self._store.set(self._keys[self._rank], str(number))
                self._beats = self._store.multi_get(self._keys)
            except RuntimeError as error:  # counts as silence
                log.debug("No heartbeats could be exchanged: %s", error)

    def _count_silence(self) -> None:
        # Ticks instead of a clock: none pass where this process itself is stopped or asleep.
        silent = [0.0] * self._count
        before: list[bytes] = []
        while not self._ended.wait(TICK_SECONDS):
            beats = self._beats
            for rank in range(self._count):
                changed = rank == self._rank or beats[rank : rank + 1] != before[rank : rank + 1]
                silent[rank] = 0.0 if changed else silent[rank] + TICK_SECONDS
            before = beats
            lost = [rank for rank, seconds in enumerate(silent) if seconds >= self._timeout]
            if lost:
                self._leave(lost)

    def _leave(self, lost: list[int]) -> None:
        """Ends this process at once: its main thread waits in a collective call."""
        hosts = sorted({self._hosts[rank] for rank in lost})
        log.error(
            "cavmae: Nothing has come for %.0f s from process %s of this run (%s), so this one "
            "ends: see whether that machine and its network are up, then start the same command "
            "with --resume auto on all machines.",
            self._timeout, ", ".join(map(str, lost[:8])), ", ".join(hosts[:8]),
        )  # fmt: skip
        os._exit(1)
