"""Lock of a working folder for one process at a time, on shared file systems, too.

A marker file that is created atomically, and refreshed by its holder: file systems of clusters
often have no flock, or one of each machine's own.
"""

import contextlib
import logging
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from filelock import LeaseCompromise, SoftFileLease, Timeout

from cavmae.common.errors import CavmaeError

log = logging.getLogger("cavmae")
MARKER = "lock"
LEASE_SECONDS = 60.0  # after which a marker that nobody refreshes counts as left behind
POLL_SECONDS = 1.0


class Holder(NamedTuple):
    """Process that a marker names.

    Attributes:
        host: name of its machine.
        pid: its number there.
        start: its start in clock ticks since that machine started; None: not known.
    """

    host: str
    pid: int
    start: int | None = None

    @classmethod
    def this(cls) -> "Holder":
        """This process."""
        return cls(socket.gethostname(), os.getpid(), _start_of(os.getpid()))

    @property
    def is_alive(self) -> bool | None:
        """Whether the process runs, not another one with its number; None: on another machine."""
        if self.host != socket.gethostname():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # another user's
            pass
        start = _start_of(self.pid)
        return start is None or self.start is None or start == self.start


@contextlib.contextmanager
def locked(folder: Path, message: str, stop: bool = True) -> Iterator[None]:
    """Locks a working folder for this process; removes the folder at the end if it is empty.

    The marker of a process of this machine that ended counts as none. That of another machine's
    process is watched for ``LEASE_SECONDS`` first.

    Args:
        folder: working folder, created if missing.
        message: of the error in a second process.
        stop: end this process, as SIGTERM does, if another one takes the lock, or the folder is
            removed; else this is only logged.

    Raises:
        CavmaeError: another process holds the lock.
    """
    lease = SoftFileLease(
        folder / MARKER, lease_duration=LEASE_SECONDS, poll_interval=POLL_SECONDS,
        on_compromise=_stop if stop else _report,
    )  # fmt: skip
    try:
        try:
            _acquire(lease, folder)
        except Timeout:
            holder = holder_of(folder)
            if holder is None or holder.host == socket.gethostname():
                raise
            log.info(
                "%s is locked by process %d of %s: waiting %.0f s to see whether it is alive.",
                folder, holder.pid, holder.host, LEASE_SECONDS,
            )  # fmt: skip
            lease.acquire(timeout=LEASE_SECONDS + 5 * POLL_SECONDS)
    except Timeout as error:
        raise CavmaeError(message) from error
    try:
        yield
    finally:
        lease.release()
        with contextlib.suppress(OSError):  # an unfinished job stays
            folder.rmdir()


def _acquire(lease: SoftFileLease, folder: Path) -> None:
    """Acquires a free lease, or raises Timeout; creates the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lease.acquire(timeout=0)
    except FileNotFoundError:  # another process ended meanwhile, and removed the folder
        folder.mkdir(parents=True, exist_ok=True)
        lease.acquire(timeout=0)


def holder_of(folder: Path) -> Holder | None:
    """Process that holds the lock of a folder, or left it behind; None: there is no marker."""
    try:
        text = (folder / MARKER).read_text()
    except FileNotFoundError:
        return None
    values = dict(line.partition("=")[::2] for line in text.splitlines())
    try:
        start = int(values["start"]) % 2**64 if "start" in values else None  # above: which boot
        return Holder(values["host"], int(values["pid"]), start)
    except (KeyError, ValueError):  # half written
        return Holder("unknown", 0)


def is_held(folder: Path) -> bool:
    """Whether a process that is alive holds the lock of a folder.

    That of another machine counts as alive while it refreshes its marker.
    """
    holder = holder_of(folder)
    if holder is None:
        return False
    if (alive := holder.is_alive) is not None:
        return alive
    try:
        return _clock_of(folder) - (folder / MARKER).stat().st_mtime < LEASE_SECONDS
    except FileNotFoundError:  # released meanwhile
        return False


def _start_of(pid: int) -> int | None:
    """Start of a process in clock ticks since this machine started; None: the system hides it."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])  # field 22; the name before may hold blanks


def _clock_of(folder: Path) -> float:
    """Time of the file system of a folder, which clocks of machines may differ from."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:  # it may only be read
        return time.time()


def _report(loss: LeaseCompromise) -> None:
    log.error(
        "%s is no longer this process's (%s): it was removed, or this process was asleep or cut "
        "off from the file system.", loss.lock_file, loss.reason,
    )  # fmt: skip


def _stop(loss: LeaseCompromise) -> None:
    """Ends this process in order: another one may work in its folder now."""
    _report(loss)
    os.kill(os.getpid(), signal.SIGTERM)
