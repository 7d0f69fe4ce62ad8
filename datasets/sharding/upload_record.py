"""Record of a folder's uploads to an object store, ``uploads.jsonl``, which outlives the run."""

import os
import uuid
from pathlib import Path
from typing import NamedTuple

from cavmae.common.errors import CavmaeError
from cavmae.common.files import sha256_of, write_atomically
from cavmae.common.json_files import json_bytes, typed
from cavmae.datasets.sharding.job_state import InputLayout, read_lines

ELSEWHERE = "choose another --out and another --local-folder"


class Content(NamedTuple):
    """Content of a file: size in bytes, and SHA-256."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Content":
        return cls(path.stat().st_size, sha256_of(path))


class UploadRecord:
    """Record of a folder's uploads to a store, only ever appended to: ``uploads.jsonl``.

    Attributes:
        owner: id of the folder, which the store's record of the uploads names.
        begun: content of files whose upload began; the store may have them, or parts of them.
        done: content of files that the store has.

    Args:
        layout: of the folder.
        url: of the store; None: whatever store.

    Raises:
        CavmaeError: the folder's uploads go to another store, or the record is damaged.
    """

    def __init__(self, layout: InputLayout, url: str | None = None):
        self._path = layout.uploads
        self._url = url
        self.owner = uuid.uuid4().hex
        self.begun: dict[str, Content] = {}
        self.done: dict[str, Content] = {}
        lines = list(read_lines(self._path))
        self.exists = bool(lines)
        try:
            for record in lines:
                self._take(record)
        except ValueError as error:
            raise CavmaeError(f"{self._path} is damaged ({error}): {ELSEWHERE}.") from error

    def _take(self, record: dict[str, object]) -> None:
        if "store" in record:
            if self._url not in (record["store"], None):
                raise CavmaeError(
                    f"{self._path.parent} is the local folder of {record['store']}: choose another "
                    f"--local-folder for {self._url}."
                )
            if "owner" in record:
                self.owner = typed(record, "owner", str)
            return
        content = Content(typed(record, "bytes", int), typed(record, "sha256", str))
        kept = self.done if typed(record, "done", bool) else self.begun
        kept[typed(record, "file", str)] = content

    def open(self) -> None:
        """Begins the record of a new folder, or removes the half line that a kill left."""
        if self.exists:
            os.truncate(self._path, self._path.read_bytes().rfind(b"\n") + 1)
        else:
            self.restart({})

    def restart(self, stored: dict[str, Content]) -> None:
        """Begins the record anew, for a folder with another id.

        Args:
            stored: files that the store has.
        """
        self.owner = uuid.uuid4().hex
        lines: list[dict[str, object]] = [{"store": self._url, "owner": self.owner}]
        for name, content in stored.items():
            lines += [{"file": name, "done": d, **content._asdict()} for d in (False, True)]
        with write_atomically(self._path) as file:
            file.write(b"".join(map(json_bytes, lines)))
        self.begun, self.done = dict(stored), dict(stored)
        self.exists = True

    def begin(self, name: str, content: Content) -> None:
        self._append({"file": name, "done": False, **content._asdict()})
        self.begun[name] = content

    def finish(self, name: str) -> None:
        self._append({"file": name, "done": True, **self.begun[name]._asdict()})
        self.done[name] = self.begun[name]

    def _append(self, record: dict[str, object]) -> None:
        with self._path.open("ab") as file:
            file.write(json_bytes(record))
            file.flush()
            os.fsync(file.fileno())

    def is_done(self, name: str, content: Content) -> bool:
        """Whether the last upload of a file had this content, and was finished."""
        return self.begun.get(name) == self.done.get(name) == content

    @property
    def unfinished(self) -> list[str]:
        """Names of files whose upload began and did not end."""
        begun = list(self.begun.items())  # a thread may add to it
        return [name for name, content in begun if self.done.get(name) != content]


def store_of(folder: Path) -> str | None:
    """Address of the store that receives what is built in a folder; None: it goes nowhere.

    Raises:
        CavmaeError: a record of uploads is damaged.
    """
    for path in sorted(folder.glob("uploads*.jsonl")):
        for record in read_lines(path):
            url = record.get("store")
            if not isinstance(url, str):
                raise CavmaeError(f"{path} is damaged (it names no store): {ELSEWHERE}.")
            return url
    return None
