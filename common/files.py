"""Files near and far: atomic writes, and URLs (:mod:`cavmae.common.remote`) brought to disk."""

import contextlib
import errno
import fcntl
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

from cavmae.common import remote
from cavmae.common.errors import CavmaeError

CHUNK = 1 << 20
LIMIT_BYTES = 64 << 20  # of a file that is read whole


def is_url(name: str) -> bool:
    """Whether ``name`` is a URL rather than a path of this machine."""
    return remote.URL.match(name) is not None


def join(folder: str, name: str) -> str:
    """``name`` inside a folder that is a path or a URL."""
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else str(Path(folder) / name)


def read_bytes(name: str, limit: int = LIMIT_BYTES) -> bytes:
    """Whole content of a path or URL, up to one byte more than ``limit``.

    Raises:
        OSError: it cannot be read, is no regular file, or a URL's content is larger than that.
        AddressError: a URL that is not opened.
    """
    name = remote.local_path(name) or name
    if is_url(name):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "content"
            remote.fetch(name, path, remote.Limits(size=limit))
            return path.read_bytes()
    with open(name, "rb", opener=_open_regular) as file:
        return file.read(limit + 1)


def _open_regular(name: str, flags: int) -> int:
    """Opener of regular files only: a pipe would be waited for, a device has no end."""
    descriptor = os.open(name, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no regular file", name)
    return descriptor


def size_of(name: str) -> int:
    """Bytes of a path or URL. Raises OSError."""
    name = remote.local_path(name) or name
    return remote.size_of(name) if is_url(name) else Path(name).stat().st_size


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under its name whole or not at all.

    Written beside its final name, flushed to disk, renamed. On any error the half-written file is
    removed and an older file of that name is untouched.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Makes renames inside a folder survive a power cut."""
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
    """Local copies of remote files, shared by the processes of a machine, of bounded size.

    The copies used longest ago are removed first. Removing a file that a process has open is safe:
    its content stays until that process closes it.

    Args:
        folder: where copies lie; None: a folder of this user's in the system's temporary folder.
        limit: bytes kept at most.
    """

    def __init__(self, folder: str | None, limit: int):
        self.limit = limit
        default = Path(tempfile.gettempdir()) / f"cavmae-cache-{os.getuid()}"
        self.folder = Path(folder) if folder else default
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder is None and self.folder.stat().st_uid != os.getuid():
            raise CavmaeError(
                f"Cache folder {self.folder} belongs to another user; name one with cache_dir."
            )

    def fetch(self, url: str, sha256: str) -> Path:
        """Local path of a URL's content, checked against its hash when it is downloaded.

        Raises:
            CavmaeError: the content is not what the hash says, or cannot be had.
        """
        path = self.folder / f"{sha256}.tar"
        if not _mark_used(path):
            # One process copies, the others of this machine that want it wait.
            lock = path.with_suffix(".lock")
            with lock.open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not _mark_used(path):
                    self._copy(url, sha256, path)
                lock.unlink(missing_ok=True)
        return path

    def _copy(self, url: str, sha256: str, path: Path) -> None:
        partial = path.with_suffix(f".{uuid.uuid4().hex[:12]}.part")
        try:
            size = size_of(url)
            self._evict(size)
            if (near := remote.local_path(url)) is not None:
                shutil.copyfile(near, partial)
            else:
                remote.fetch(url, partial, remote.Limits(size=size))
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            if (found := sha256_of(partial)) != sha256:
                raise CavmaeError(
                    f"{url} was altered: its SHA-256 is {found}, the manifest says {sha256}. "
                    "Copy it again or make the data set anew."
                )
            partial.replace(path)
        except OSError as error:
            advice = "free disk or set cache_dir" if error.errno == errno.ENOSPC else "try again"
            raise CavmaeError(f"Cannot copy {url} to {self.folder}: {error}; {advice}.") from error
        finally:
            partial.unlink(missing_ok=True)

    def _evict(self, wanted: int) -> None:
        files = []
        for path in self.folder.glob("*.tar"):
            if not re.fullmatch("[0-9a-f]{64}", path.stem):
                continue  # not a copy of ours
            with contextlib.suppress(FileNotFoundError):  # removed by another process
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        total = wanted + sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.limit:
                break
            path.unlink(missing_ok=True)
            total -= size


def _mark_used(path: Path) -> bool:
    """Whether a copy is there; if so it counts as used just now."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True
