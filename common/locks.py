"""One process at a time in a folder under construction."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from cavmae.common.errors import CavmaeError


@contextlib.contextmanager
def locked(folder: Path, message: str) -> Iterator[None]:
    """Holds a folder of unfinished work for this process; removes it at the end if it is empty.

    Args:
        message: what to tell whoever comes second.

    Raises:
        CavmaeError: another process is at it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A run that ends removes the folder; a lock on a removed file keeps nobody out.
            if not path.exists() or os.fstat(file.fileno()).st_ino != path.stat().st_ino:
                raise BlockingIOError
        except BlockingIOError as error:
            raise CavmaeError(message) from error
        try:
            yield
        finally:
            if folder.exists() and os.listdir(folder) == ["lock"]:
                shutil.rmtree(folder)
