"""Small objects of a store that processes of several machines read and replace in turn.

A write replaces only what this process has read: S3 compares the object's ETag in the same request
(``If-Match``, ``If-None-Match``), so that of two writers one fails. On other stores only the
creation is such a request; a replacement is compared by a request of its own just before.
"""

import contextlib
import datetime
import threading
from typing import Any

from cavmae.common import remote, stores
from cavmae.common.remote import AddressError, Meter, run_watched
from cavmae.common.stores import Stopped, Store, StoreError, explained


class RecordChanged(StoreError):
    """A record that another process has written or removed since it was read."""


class StoreRecord:
    """Record at a store, replaced by compare-and-swap.

    Args:
        store: folder of the record.
        name: of the object.
    """

    def __init__(self, store: Store, name: str):
        self._store, self.url = store, store.address(name)
        self._tag: Any = None  # of the content that was read or written last; None: no object

    def read(self) -> bytes | None:
        """Content; None: there is no object. Raises StoreError."""
        content: bytes | None
        content, self._tag = self._call(self._read, f"Cannot read {self.url}")
        return content

    def _read(self) -> tuple[bytes | None, Any]:
        system, path = remote.filesystem(self.url)
        for _ in range(100):
            system.invalidate_cache(path)
            try:
                tag = self._tag_of(system, path)
                content: bytes = system.cat_file(path)
                system.invalidate_cache(path)
                if tag is None:
                    return content, content
                if tag == self._tag_of(system, path):
                    return content, tag
            except FileNotFoundError:
                return None, None
        raise OSError(f"{self.url} changes faster than it can be read")

    def _tag_of(self, system: Any, path: str) -> Any:
        """ETag of the object; None where a store has none. Raises FileNotFoundError."""
        return system.info(path)["ETag"] if self._store.is_s3 else None

    def write(self, content: bytes, stop: threading.Event | None = None) -> None:
        """Replaces what was read last, or creates the object; a failure is tried again.

        Args:
            content: new content, which no other process writes.
            stop: ends the attempts when it is set.

        Raises:
            RecordChanged: the object is not as it was read.
            StoreError: every attempt failed.
            Stopped: by ``stop``.
        """
        stop = stop or threading.Event()
        for attempts, wait in enumerate((*stores.WAITS, None), 1):
            try:
                self._tag = self._watched(lambda: self._write(content))
                return
            except (OSError, AddressError) as error:
                if _is_conflict(error):
                    # An attempt whose answer was lost may have succeeded.
                    if self.read() == content:
                        return
                    raise RecordChanged(f"{self.url} was changed by another process.") from error
                final = isinstance(error, AddressError | PermissionError | FileNotFoundError)
                if wait is None or final:
                    raise explained(error, f"Cannot write {self.url}", attempts) from error
            if stop.wait(wait):
                raise Stopped
        raise AssertionError("the last attempt returns or raises")

    def _write(self, content: bytes) -> Any:
        system, path = remote.filesystem(self.url)
        if self._tag is None:
            answer = system.pipe_file(path, content, mode="create")
            return answer["ETag"] if self._store.is_s3 else content
        if self._store.is_s3:
            bucket, key, _ = system.split_path(path)
            answer = system.call_s3(
                "put_object", Bucket=bucket, Key=key, Body=content, IfMatch=self._tag
            )
            return answer["ETag"]
        if self._read()[1] != self._tag:
            raise FileExistsError(self.url)
        system.pipe_file(path, content)
        return content

    def remove(self) -> None:
        """Removes the object, which this process has written. Raises StoreError."""

        def call() -> None:
            system, path = remote.filesystem(self.url)
            with contextlib.suppress(FileNotFoundError):
                system.rm_file(path)
            system.invalidate_cache(path)

        self._call(call, f"Cannot remove {self.url}")
        self._tag = None

    def age(self) -> float:
        """Seconds since the last write, by the clocks of this machine and of the store.

        Raises:
            StoreError: the object cannot be read.
        """

        def call() -> Any:
            system, path = remote.filesystem(self.url)
            system.invalidate_cache(path)
            return system.modified(path)

        written: datetime.datetime = self._call(call, f"Cannot read {self.url}")
        return (datetime.datetime.now(datetime.UTC) - written).total_seconds()

    def _call(self, call: Any, message: str) -> Any:
        try:
            return self._watched(call)
        except (OSError, AddressError) as error:
            raise explained(error, message) from error

    def _watched(self, call: Any) -> Any:
        return run_watched(self.url, call, self._store.limits, Meter(float("inf")), None)


def _is_conflict(error: BaseException | None) -> bool:
    """Whether a conditional request failed by its condition."""
    while error is not None:
        answer = getattr(error, "response", None)
        code = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
        if isinstance(error, FileExistsError) or code in ("PreconditionFailed", "NoSuchKey", "412"):
            return True
        error = error.__cause__
    return False
