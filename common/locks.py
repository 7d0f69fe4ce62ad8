"""Lock of a working folder for one process at a time."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from cavmae.common.errors import CavmaeError


@contextlib.contextmanager
def locked(folder: Path, message: str) -> Iterator[None]:
    """Locks a working folder for this process; removes the folder at the end if it is empty.

    Args:
        folder: working folder, created if missing.
        message: of the error in a second process.

    Raises:
        CavmaeError: another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A run that ends removes the folder; a lock on a removed file excludes no process.
            if not path.exists() or os.fstat(file.fileno()).st_ino != path.stat().st_ino:
                raise BlockingIOError
        except BlockingIOError as error:
            raise CavmaeError(message) from error
        try:
            yield
        finally:
            if folder.exists() and os.listdir(folder) == ["lock"]:
                shutil.rmtree(folder)
