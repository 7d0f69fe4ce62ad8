"""Validated files and JSON fields of untrusted folders.

A file must be a regular file inside the folder and of bounded size. A field must have the expected
type. Everything else is left out of the report, which names it.
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
LARGEST = 1e30  # value that a chart can hold


class Faults:
    """Log of everything that a report leaves out, without repetitions.

    Attributes:
        sentences: in the order of their first occurrence.
    """

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def add(self, sentence: str) -> None:
        """Record and log a sentence, unless it is a repetition."""
        if sentence not in self.sentences:
            self.sentences.append(sentence)
            log.warning("%s", sentence)


class FileRefused(Exception):
    """Reason why a file is left out of a report; its text completes the sentence "FILE ..."."""


def is_number(value: Any) -> TypeGuard[float]:
    """Test whether a JSON value is a finite number that a chart can hold."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= LARGEST
        and math.isfinite(value)
    )


def is_there(folder: Path, name: str) -> bool:
    """Test whether a folder has an entry of a name; a link counts, so that it is reported."""
    return os.path.lexists(folder / name)


def open_inside(folder: Path, name: object, limit: int) -> IO[bytes]:
    """Open a file of a folder for reading.

    Args:
        folder: the only folder that files may come from.
        name: a field of an untrusted record: a file name without a path.
        limit: size in bytes.

    Raises:
        FileRefused: the name is a path, or the file is missing, a link, not regular or larger.
    """
    if not isinstance(name, str) or not name or name in (".", "..") or set(name) & set("/\\\0"):
        raise FileRefused("is not the name of a file in the same folder")
    try:
        # O_NOFOLLOW refuses links; O_NONBLOCK keeps a pipe from blocking.
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
    """Read a file of a folder; arguments and errors are those of :func:`open_inside`."""
    with open_inside(folder, name, limit) as file:
        try:
            return file.read(limit)
        except OSError as error:
            raise FileRefused(f"cannot be read ({error.strerror})") from error


class Fields:
    """Typed access to the fields of an untrusted JSON object.

    Args:
        value: the object; any other type is recorded as a fault and has no fields.
        place: file and path inside it, for messages.
        faults: records fields of the wrong type.
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
        """Load the JSON object of a file.

        Raises:
            CavmaeError: the file cannot be read, or is not JSON.
        """
        path = folder / name
        try:
            data = read_inside(folder, name, JSON_BYTES)
        except FileRefused as refusal:
            raise CavmaeError(f"{path} {refusal}: the report cannot use it.") from refusal
        return cls(parse_json(data, str(path)), str(path), faults)

    def _fault(self, name: str, expected: str) -> None:
        self.faults.add(f"{self.place}: {caption(name)} is not {expected}, and is left out.")

    def number(self, name: str) -> float | None:
        """Finite number of a field; None and a fault for any other value."""
        value = self.values.get(name)
        if is_number(value):
            return value
        self._fault(name, "a number")
        return None

    def integer(self, name: str, minimum: int) -> int | None:
        """Integer of a field, at least the minimum; None and a fault for any other value."""
        value = self.values.get(name)
        if is_number(value) and isinstance(value, int) and value >= minimum:
            return value
        self._fault(name, f"an integer of at least {minimum}")
        return None

    def text(self, name: str) -> str:
        """Text of a field, cut to :data:`LONGEST_TEXT`; empty and a fault for any other value."""
        value = self.values.get(name)
        if isinstance(value, str):
            return caption(value, LONGEST_TEXT)
        self._fault(name, "a text")
        return ""

    def raw(self, name: str) -> Any:
        """Value of a field without a check; None: the field is missing."""
        return self.values.get(name)

    def refuse(self, name: str, reason: object) -> None:
        """Record that a file named by a field is left out."""
        value = caption(str(self.values.get(name)), LONGEST_TEXT)
        self.faults.add(f"{self.place}: {name} {value!r} {reason}, and is left out.")

    def objects(self, name: str, limit: int) -> list["Fields"]:
        """Objects of a list, at most ``limit``; empty and a fault for any other value."""
        value = self.values.get(name)
        if not isinstance(value, list):
            self._fault(name, "a list")
            return []
        if len(value) > limit:
            self._fault(name, f"a list of at most {limit}: the rest")
        return [
            Fields(part, f"{self.place}: {name}[{number}]", self.faults)
            for number, part in enumerate(value[:limit])
        ]

    def spans(self, name: str, limit: int) -> list[tuple[float, float]]:
        """(start, end) pairs of a list, at most ``limit``; others are left out with a fault."""
        value = self.values.get(name)
        pairs = value[:limit] if isinstance(value, list) else []
        known = [
            (float(pair[0]), float(pair[1]))
            for pair in pairs
            if isinstance(pair, list) and len(pair) == 2 and all(map(is_number, pair))
        ]
        if not isinstance(value, list) or len(known) < len(value):
            self._fault(name, f"a list of at most {limit} starts and ends: some of it")
        return known

    def object(self, name: str) -> "Fields":
        """Object of a field; without fields, and a fault, for any other value."""
        return Fields(self.values.get(name), f"{self.place}: {caption(name)}", self.faults)

    def numbers(self) -> Iterator[tuple[str, float]]:
        """Names and values of all numeric fields; other values are faults, except null."""
        for name, value in self.values.items():
            if is_number(value):
                yield name, value
            elif value is not None:
                self._fault(name, "a number")
