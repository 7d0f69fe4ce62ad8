"""Folders of object stores that the program writes to: whole files, uploaded with retries.

An object of a store appears under its name complete or not at all. What a large upload to S3 has
sent so far (of a multipart upload) stays there invisibly, and costs money, until somebody aborts
it: :meth:`Store.upload` does so after a failure, :meth:`Store.abort_uploads` after a kill.
"""

import dataclasses
import filecmp
import logging
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cavmae.common import files, remote
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.remote import DEFAULT_LIMITS, AddressError, Limits, Meter, run_watched

log = logging.getLogger("cavmae")
WRITABLE = ("s3", "gs", "gcs")
# Of a multipart upload; files below twice this size are sent in one piece. Parts are sent one after
# the other: one that is on its way while the upload is aborted may stay at the store.
PART_BYTES = 8 << 20
WAITS = (2.0, 10.0, 50.0)  # s before each retry of an upload
CREDENTIALS = "the environment or the store's own configuration files"


class StoreError(CavmaeError):
    """A store that cannot be read or written."""


class NameTaken(StoreError):
    """A new object's name that the store has already."""


class Stopped(Exception):
    """An upload that this program ended."""


@dataclasses.dataclass(frozen=True)
class Store:
    """A folder of an object store.

    Args:
        url: address without a slash at the end.
        limits: of the time without progress of a transfer.
    """

    url: str
    limits: Limits = DEFAULT_LIMITS

    @classmethod
    def parse(cls, url: str, limits: Limits = DEFAULT_LIMITS) -> "Store":
        """Checks the address of a folder.

        Raises:
            UsageError: of a store that cannot be written, or no plain address.
        """
        match = remote.URL.match(url)
        assert match is not None
        host = url[match.end() :].partition("/")[0]
        if "@" in host or re.search(r"[?#]", url):  # the address may hold a secret: not repeated
            raise UsageError(
                f"The {match['scheme']}:// address of --out has a user, a query or a fragment: "
                f"give bucket and folder only, and credentials by {CREDENTIALS}."
            )
        try:
            remote.check_address(url)
        except AddressError as error:
            raise UsageError(str(error)) from error
        scheme = match["scheme"].lower()
        if scheme not in WRITABLE:
            raise UsageError(
                f"{url} cannot be written to: a data set goes to a folder or to "
                f"{', '.join(f'{name}://' for name in WRITABLE)}."
            )
        return cls(f"{scheme}://{url[match.end() :].rstrip('/')}", limits)

    @property
    def is_s3(self) -> bool:
        """Whether the store has the interface of S3."""
        return self.url.startswith("s3://")

    def address(self, name: str) -> str:
        """URL of an object of the folder."""
        return files.join(self.url, name)

    def sizes(self) -> dict[str, int]:
        """Names and sizes in bytes of the objects in the folder itself.

        Raises:
            StoreError: the folder cannot be listed, or there is no such bucket.
        """
        system, path = remote.filesystem(self.url)

        def call() -> list[dict[str, Any]]:
            system.invalidate_cache(path)  # another process may have written
            try:
                return list(system.ls(path, detail=True))
            except FileNotFoundError as error:
                if error.errno is None and error.__cause__ is None:  # nothing in it yet
                    return []
                raise

        entries = self._run(self.url, call, "Cannot list")
        return {
            entry["name"].rstrip("/").rpartition("/")[2]: int(entry["size"])
            for entry in entries
            if entry["type"] == "file"
        }

    def fetch(self, name: str, path: Path) -> bool:
        """Downloads an object to a new local file; False: there is none of this name.

        Raises:
            StoreError: it cannot be downloaded.
        """
        url = self.address(name)
        try:
            remote.fetch(url, path, dataclasses.replace(self.limits, size=float("inf")))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise explained(error, f"Cannot read {url}") from error
        return True

    def holds(self, path: Path, name: str) -> bool:
        """Whether an object has the content of a local file. Raises StoreError."""
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".store-") as folder:
            copy = Path(folder) / "copy"
            return self.fetch(name, copy) and filecmp.cmp(copy, path, shallow=False)

    def upload(self, path: Path, name: str, stop: threading.Event, new: bool = False) -> None:
        """Uploads a file, and checks the size of the object; a failure is tried again.

        A failed upload leaves nothing at the store.

        Args:
            path: of the file.
            name: of the object, which is replaced if it exists.
            stop: ends the upload when it is set.
            new: only if the store has no object of this name.

        Raises:
            NameTaken: ``new``, and it has one that no attempt of this call created.
            StoreError: every attempt failed.
            Stopped: by ``stop``.
        """
        for attempts, wait in enumerate((*WAITS, None), 1):
            try:
                self._attempt(path, name, stop, new)
                if attempts > 1:  # of a lost connection, the store may not know the abort
                    self.abort_uploads(name.__eq__)
                return
            except FileExistsError as error:
                if attempts > 1 and self.holds(path, name):
                    return  # the answer to an earlier attempt was lost
                raise NameTaken(f"{self.address(name)} exists already.") from error
            except (OSError, AddressError) as error:
                stopped = stop.is_set()
                self.abort_uploads(name.__eq__)
                if stopped:
                    raise Stopped from error
                final = isinstance(error, AddressError | PermissionError | FileNotFoundError)
                if wait is None or final:
                    message = f"Cannot upload {path} to {self.address(name)}"
                    raise explained(error, message, attempts) from error
                log.warning(
                    "Upload of %s failed (%s); it is tried again in %.0f s.",
                    self.address(name), reason_of(error), wait,
                )  # fmt: skip
            if stop.wait(wait):
                raise Stopped
        raise AssertionError("the last attempt returns or raises")

    def _attempt(self, path: Path, name: str, stop: threading.Event, new: bool) -> None:
        url = self.address(name)
        system, target = remote.filesystem(url)
        options: dict[str, Any] = {"mode": "create"} if new else {}
        if self.is_s3:
            options.update(chunksize=PART_BYTES, max_concurrency=1)
        meter = _StoppableMeter(stop)
        run_watched(
            url, lambda: system.put_file(str(path), target, callback=meter, **options),
            self.limits, meter, None,
        )  # fmt: skip

        def size() -> Any:
            system.invalidate_cache(target)
            return system.info(target)["size"]

        stored = run_watched(url, size, self.limits, Meter(float("inf")), None)
        if stored != path.stat().st_size:
            raise remote.RemoteError(
                "unreadable", f"{url}: {stored} of {path.stat().st_size} bytes are at the store"
            )

    def abort_uploads(self, is_aborted: Callable[[str], object]) -> None:
        """Aborts unfinished multipart uploads of objects; a store that refuses is logged.

        Stores other than S3 show and charge nothing of an unfinished upload.

        Args:
            is_aborted: true for names of objects on which no other process works.
        """
        if not self.is_s3:
            return
        try:
            run_watched(
                self.url, lambda: self._abort(is_aborted), self.limits, Meter(float("inf")), None
            )
        except (OSError, AddressError) as error:
            log.warning(
                "Unfinished uploads to %s may be left (%s): the next run aborts them, or a rule of "
                "the bucket, AbortIncompleteMultipartUpload.", self.url, reason_of(error),
            )  # fmt: skip

    def _abort(self, is_aborted: Callable[[str], object]) -> None:
        system, path = remote.filesystem(self.url)
        bucket, key, _ = system.split_path(path)
        prefix = f"{key}/" if key else ""
        for upload in list(_unfinished(system, bucket, prefix)):
            if is_aborted(upload["Key"].removeprefix(prefix)):
                system.call_s3(
                    "abort_multipart_upload",
                    Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"],
                )  # fmt: skip

    def _run(self, url: str, call: Callable[[], Any], message: str) -> Any:
        try:
            return run_watched(url, call, self.limits, Meter(float("inf")), None)
        except (OSError, AddressError) as error:
            raise explained(error, f"{message} {url}") from error


class _StoppableMeter(Meter):
    """Meter of an upload, which ends at its next part when an event is set."""

    def __init__(self, stop: threading.Event):
        super().__init__(float("inf"), "were sent")
        self._stop = stop

    def call(self, *arguments: Any, **keywords: Any) -> None:
        self.abandoned = self.abandoned or self._stop.is_set()
        super().call(*arguments, **keywords)


def _unfinished(system: Any, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    """Unfinished multipart uploads of a bucket, page by page."""
    markers: dict[str, str] = {}
    while True:
        page = system.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **markers)
        yield from page.get("Uploads", [])
        if not page.get("IsTruncated"):
            return
        markers = {
            "KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]
        }  # fmt: skip


def reason_of(error: Exception) -> str:
    """The store's words for an error, without the address that messages name themselves."""
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    return re.sub(r"^[a-z0-9]+://\S+: ", "", text)


def explained(error: Exception, message: str, attempts: int = 1) -> StoreError:
    """Error of a store that cannot be read or written, with its remedy."""
    tried = f", in {attempts} attempts" if attempts > 1 else ""
    remedy = "mend this"
    if isinstance(error, PermissionError):
        remedy = f"check the bucket's policy and the credentials, which come from {CREDENTIALS},"
    elif isinstance(error, FileNotFoundError):
        remedy = "create the bucket, or name another,"
    return StoreError(
        f"{message} ({reason_of(error)}{tried}); finished work is kept: {remedy} and run the same "
        "command again."
    )
