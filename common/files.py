"""Local and remote files: atomic writes, and a cache of downloads by URL.

:mod:`cavmae.common.remote` does the downloads.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from filelock import FileLock

from cavmae.common import remote
from cavmae.common.errors import CavmaeError, UsageError

CHUNK = 1 << 20
LIMIT_BYTES = 64 << 20  # of a file that is read at once


def is_url(name: str) -> bool:
    """Whether ``name`` is a URL rather than a path of this machine."""
    return remote.URL.match(name) is not None


def join(folder: str, name: str) -> str:
    """Joins a name to a folder that is a path or a URL."""
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else str(Path(folder) / name)


def read_bytes(name: str, limit: int = LIMIT_BYTES) -> bytes:
    """Reads the content of a path or URL, up to one byte more than ``limit``.

    Raises:
        OSError: the file cannot be read or is not regular, or a URL's content exceeds the limit.
        AddressError: a URL that :func:`cavmae.common.remote.filesystem` refuses.
    """
    name = remote.local_path(name) or name
    if is_url(name):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "content"
            remote.fetch(name, path, remote.Limits(size=limit))
            return path.read_bytes()
    with open_regular(name) as file:
        return file.read(limit + 1)


def open_regular(path: str) -> IO[bytes]:
    """Opens a file for reading. Raises OSError, also for a pipe or a device, which has no end."""
    return open(path, "rb", opener=_open_regular)


def _open_regular(name: str, flags: int) -> int:
    descriptor = os.open(name, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no regular file", name)
    return descriptor


def size_of(name: str) -> int:
    """Size of a path or URL in bytes. Raises OSError."""
    name = remote.local_path(name) or name
    return remote.size_of(name) if is_url(name) else Path(name).stat().st_size


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Opens a binary file that appears under its name complete or not at all.

    The content goes to a temporary file in the same folder, is flushed to disk and renamed. After
    an error the temporary file is removed and an older file of that name is untouched.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with _named(path):
            opened = temporary.open("wb")
        with opened as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with _named(path):
            temporary.replace(path)
        flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Names a file in an OSError, since nobody knows its temporary name."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def make_folder(folder: Path, option: str = "--out") -> None:
    """Creates a folder that an option names, and those above it.

    Raises:
        UsageError: it cannot be a folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        blocked = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "a file is in its place" if blocked else error.strerror
        raise UsageError(
            f"{option} {folder} cannot be a folder ({reason}): name another one."
        ) from error


def flush_folder(folder: Path) -> None:
    """Flushes a folder to disk, so that renames in it survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class Cache:
    """LRU cache of remote files on disk, shared by the processes of a machine.

    Removing a file that a process has open is safe: its content stays until that process closes
    it.

    Args:
        folder: of the copies; None: a folder of the user in the system's temporary folder.
        limit: largest total size of the copies in bytes.
    """

    def __init__(self, folder: str | None, limit: int):
        self.limit = limit
        default = Path(tempfile.gettempdir()) / f"cavmae-cache-{os.getuid()}"
        self.folder = Path(folder) if folder else default
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder is None and self.folder.stat().st_uid != os.getuid():
            raise CavmaeError(
                f"Cache folder {self.folder} belongs to another user; set another with cache_dir."
            )

    def fetch(self, url: str, sha256: str) -> Path:
        """Local path of a URL's content, checked against its hash when it is downloaded.

        Raises:
            CavmaeError: the content has another hash, or cannot be copied.
        """
        path = self.folder / f"{sha256}.tar"
        if not _mark_used(path):
            # One process copies; other processes of this machine wait for the same file.
            lock = path.with_suffix(".lock")
            with FileLock(lock):
                if not _mark_used(path):
                    self._copy(url, sha256, path)
                lock.unlink(missing_ok=True)
        return path

    def _copy(self, url: str, sha256: str, path: Path) -> None:
        partial = path.with_suffix(f".{uuid.uuid4().hex[:12]}.part")
        try:
            size = size_of(url)
            self._evict(size)
            if (local := remote.local_path(url)) is not None:
                shutil.copyfile(local, partial)
            else:
                remote.fetch(url, partial, remote.Limits(size=size))
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            if (digest := sha256_of(partial)) != sha256:
                raise CavmaeError(
                    f"{url} was altered: its SHA-256 is {digest}, the manifest says {sha256}. "
                    "Copy it again, or run `cavmae shard` again."
                )
            partial.replace(path)
        except OSError as error:
            advice = "free disk or set cache_dir" if error.errno == errno.ENOSPC else "try again"
            raise CavmaeError(f"Cannot copy {url} to {self.folder}: {error}; {advice}.") from error
        finally:
            partial.unlink(missing_ok=True)

    def _evict(self, size: int) -> None:
        """Removes the least recently used copies until ``size`` more bytes fit."""
        files = []
        for path in self.folder.glob("*.tar"):
            if not re.fullmatch("[0-9a-f]{64}", path.stem):
                continue  # not a file of this cache
            with contextlib.suppress(FileNotFoundError):  # removed by another process
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        total = size + sum(file_size for _, file_size, _ in files)
        for _, file_size, path in sorted(files):
            if total <= self.limit:
                break
            path.unlink(missing_ok=True)
            total -= file_size


def _mark_used(path: Path) -> bool:
    """Marks a copy as just used; returns whether it exists."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True
