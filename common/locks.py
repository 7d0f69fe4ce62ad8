"""Lock of a working folder for one process at a time."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

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
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(FileLock(folder / "lock", timeout=0))
        except Timeout as error:
            raise CavmaeError(message) from error
        try:
            yield
        finally:
            if folder.exists() and os.listdir(folder) == ["lock"]:
                shutil.rmtree(folder)
