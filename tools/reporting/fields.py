"""Files and fields of a folder that somebody else may have made.

Nothing is taken on trust: a file is a regular one inside the folder, of a bounded size, and a field
has the type that it should have. What does not fit is left out, and a sentence says so.
"""

import logging
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeGuard

from cavmae.common.errors import CavmaeError
from cavmae.common.json_files import parse_json
from cavmae.common.quoting import caption

log = logging.getLogger("cavmae")
JSON_BYTES = 64 << 20
LONGEST_TEXT = 300  # characters of a field
LARGEST = 1e30  # number that a chart can have


class Faults:
    """Sentences about what is left out, each told once."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def add(self, sentence: str) -> None:
        if sentence not in self.sentences:
            self.sentences.append(sentence)
            log.warning("%s", sentence)


class FileRefused(Exception):
    """A file that does not get into a page, with the reason."""


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of JSON is a finite number that can be drawn."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= LARGEST
        and math.isfinite(value)
    )


def is_there(folder: Path, name: str) -> bool:
    """Whether a folder has something of a name; a link counts, so that it is told of."""
    return os.path.lexists(folder / name)


def open_inside(folder: Path, name: object, limit: int) -> IO[bytes]:
    """A file of a folder.

    Args:
        name: plain, without a path.
        limit: bytes.

    Raises:
        FileRefused: the name is a path, or the file a link, none at all, no regular one, or larger.
    """
    if not isinstance(name, str) or not name or name in (".", "..") or set(name) & set("/\\\0"):
        raise FileRefused("is not the name of a file in the same folder")
    try:
        # A link is not followed, and a pipe not waited for.
        handle = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except UnicodeEncodeError as error:
        raise FileRefused("is no name that a file can have") from error
    except OSError as error:
        linked = (folder / name).is_symlink()
        reason = "is a link" if linked else f"cannot be read ({error.strerror})"
        raise FileRefused(reason) from error
    file = os.fdopen(handle, "rb")
    status = os.fstat(handle)
    if stat.S_ISREG(status.st_mode) and status.st_size <= limit:
        return file
    file.close()
    if not stat.S_ISREG(status.st_mode):
        raise FileRefused("is no regular file")
    raise FileRefused(f"has more than {limit >> 20} MB")


def read_inside(folder: Path, name: object, limit: int) -> bytes:
    """Content of a file of a folder; for arguments and errors see :func:`open_inside`."""
    with open_inside(folder, name, limit) as file:
        try:
            return file.read(limit)
        except OSError as error:
            raise FileRefused(f"cannot be read ({error.strerror})") from error


class Fields:
    """A JSON object, whose fields are asked for with the type that they should have.

    Args:
        value: of the object; of another type: as if it had no fields.
        place: file, and where in it, for sentences.
        faults: takes them.
    """

    def __init__(self, value: Any, place: str, faults: Faults):
        self.place = place
        self.faults = faults
        if not isinstance(value, dict):
            faults.add(f"{place} is no JSON object, and is left out.")
            value = {}
        self.values: Mapping[str, Any] = value

    @classmethod
    def load(cls, folder: Path, name: str, faults: Faults) -> "Fields":
        """Of a file.

        Raises:
            CavmaeError: it cannot be read, or is no JSON.
        """
        path = folder / name
        try:
            data = read_inside(folder, name, JSON_BYTES)
        except FileRefused as refusal:
            raise CavmaeError(f"{path} {refusal}: a report cannot be made of it.") from refusal
        return cls(parse_json(data, str(path)), str(path), faults)

    def _fault(self, name: str, wanted: str) -> None:
        self.faults.add(f"{self.place}: {caption(name)} is not {wanted}, and is left out.")

    def number(self, name: str) -> float | None:
        """A finite number; None: it is none."""
        value = self.values.get(name)
        if is_number(value):
            return value
        self._fault(name, "a number")
        return None

    def whole(self, name: str, least: int) -> int | None:
        """A whole number; None: it is none, or less."""
        value = self.values.get(name)
        if is_number(value) and isinstance(value, int) and value >= least:
            return value
        self._fault(name, f"a whole number from {least} on")
        return None

    def text(self, name: str) -> str:
        """A text, at most :data:`LONGEST_TEXT` long; empty: it is none."""
        value = self.values.get(name)
        if isinstance(value, str):
            return caption(value, LONGEST_TEXT)
        self._fault(name, "a text")
        return ""

    def raw(self, name: str) -> Any:
        """As it is; None: it is not there."""
        return self.values.get(name)

    def refuse(self, name: str, reason: object) -> None:
        """A file that a field names is left out."""
        value = caption(str(self.values.get(name)), LONGEST_TEXT)
        self.faults.add(f"{self.place}: {name} {value!r} {reason}, and is left out.")

    def objects(self, name: str, most: int) -> list["Fields"]:
        """A list of objects."""
        value = self.values.get(name)
        if not isinstance(value, list):
            self._fault(name, "a list")
            return []
        if len(value) > most:
            self._fault(name, f"a list of {most} at most: what follows those")
        return [
            Fields(part, f"{self.place}: {name}[{number}]", self.faults)
            for number, part in enumerate(value[:most])
        ]

    def object(self, name: str) -> "Fields":
        """An object; one without fields if it is none."""
        return Fields(self.values.get(name), f"{self.place}: {caption(name)}", self.faults)

    def numbers(self) -> Iterator[tuple[str, float]]:
        """Names and values of all fields that are numbers; null is none, and is not told of."""
        for name, value in self.values.items():
            if is_number(value):
                yield name, value
            elif value is not None:
                self._fault(name, "a number")
