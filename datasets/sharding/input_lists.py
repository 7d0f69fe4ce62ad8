"""Lists of inputs: files, folders, lists, tables, URLs and CAV-MAE data files.

Lists and tables may have millions of rows, so they are read line by line, and rows share equal
strings.
"""

import csv
import dataclasses
import functools
import io
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cavmae.common.errors import UsageError
from cavmae.common.files import is_url, open_regular
from cavmae.common.folders import search
from cavmae.common.json_files import JSONError, read_json, typed
from cavmae.common.remote import AddressError, check_address
from cavmae.datasets.sharding.inputs import FileIdentities, Input

log = logging.getLogger("cavmae")

VIDEO_ENDINGS = frozenset(
    """.3gp .asf .avi .divx .dv .f4v .flv .m2ts .m2v .m4v .mkv .mov .mp4 .mpe .mpeg .mpg .mts
    .mxf .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv""".split()  # noqa: SIM905
)
LIST_ENDINGS = frozenset({".txt", ".lst", ".list"})
LIST_BYTES = 1 << 30  # of a list, a table or a data file
ENTRY_FIELDS = frozenset({"wav", "video_path", "video_id", "labels"})
COLUMNS = ("path", "start", "end", "labels", "speaker", "masks")
NAMED = 100  # refused addresses that are logged one by one
SHARED = 1 << 14  # values of the last rows, which the next rows share


def collect(names: Iterable[str]) -> tuple[list[Input], list[Input]]:
    """Collect the inputs that command-line arguments name; also returns repeated ones.

    Raises:
        UsageError: an argument names nothing, an address cannot be opened, or a list or table
            cannot be read.
    """
    identities = FileIdentities()
    seen: dict[bytes, Input] = {}
    repeated = []
    for name in names:
        for item in _expand(name):
            identity = identities.of(item)
            if identity in seen:
                seen[identity] = _merge_rows(seen[identity], item)
                repeated.append(item)
            else:
                seen[identity] = item
    return list(seen.values()), repeated


def log_refused(items: Iterable[Input]) -> None:
    """Log every address that can never be opened, before work begins."""
    refused = 0
    for item in items:
        try:
            if is_url(item.source):
                check_address(item.source)
        except AddressError as error:
            refused += 1
            if refused <= NAMED:
                log.warning("Skipped: %s", error)
    if refused > NAMED:
        log.warning("Skipped: %d more addresses like these.", refused - NAMED)


def _merge_rows(first: Input, second: Input) -> Input:
    """Merge two rows about the same stretch into one input with the labels of both."""
    if first.masks is not None and second.masks not in (None, first.masks):
        raise UsageError(
            f"{first.source} is named twice with different masks, {first.masks} and "
            f"{second.masks}; name the person in the column 'speaker' or leave one out."
        )
    labels = tuple(dict.fromkeys((*first.labels, *second.labels)))
    return dataclasses.replace(first, labels=labels, masks=first.masks or second.masks)


def _expand(name: str) -> Iterator[Input]:
    if not name:
        raise UsageError("An input is empty, as of a variable that is not set: name a file.")
    if is_url(name):
        try:
            check_address(name)
        except AddressError as error:
            raise UsageError(str(error)) from error
        yield Input(name)
        return
    path = Path(name)
    ending = path.suffix.lower()
    if path.is_dir():
        videos = search(path, VIDEO_ENDINGS)
        videos.log_unused("videos")
        for file in videos.files:
            yield Input(str(file))
    elif not os.path.lexists(path):
        raise UsageError(f"There is no file or folder {name!r}.")
    elif ending == ".csv":
        yield from _table(path)
    elif ending == ".json":
        yield from _data_file(path)
    elif ending in LIST_ENDINGS:
        yield from _list(path)
    else:
        yield Input(str(path))


def _lines(path: Path, newline: str) -> Iterator[str]:
    """Yield the lines of a UTF-8 text with their ends, which ``newline`` sets as in ``open``.

    Raises:
        UsageError: the file cannot be read, is larger than ``LIST_BYTES``, or is no such text.
    """
    try:
        with open_regular(str(path)) as file:
            if os.fstat(file.fileno()).st_size > LIST_BYTES:
                raise UsageError(f"{path} has more than {LIST_BYTES >> 20} MB: split it.")
            for line in io.TextIOWrapper(file, "utf-8-sig", newline=newline):
                if "\0" in line:
                    raise UsageError(f"{path} is not a UTF-8 text file: it has null bytes.")
                yield line
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a UTF-8 text file.") from error
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from error


def _resolve(path: Path, name: str) -> str:
    """Path of a name in a list or table, which is relative to that file's folder."""
    return name if is_url(name) else str(path.parent / name)


def _list(path: Path) -> Iterator[Input]:
    """Yield the inputs of a text list.

    Lines that begin with ``#`` are comments, unless a file beside the list has that name.
    """
    for line in _lines(path, "\n"):
        line = line.removesuffix("\n")
        name = line.strip()
        # Blanks may be part of a name.
        exact = line.removesuffix("\r")
        if exact != name and name and os.path.lexists(path.parent / exact):
            name = exact
        if name and (not name.startswith("#") or os.path.lexists(path.parent / name)):
            yield Input(_resolve(path, name))


def _table(path: Path) -> Iterator[Input]:
    rows = csv.reader(_lines(path, ""), strict=True)
    values = _Values(path)
    columns: list[str] = []
    bad_lines = []
    try:
        for row in rows:
            fields = [field.strip() for field in row]
            if not any(fields):
                continue
            if not columns:
                columns = fields
                _check_columns(path, columns)
            elif len(fields) != len(columns):
                bad_lines.append(str(rows.line_num))
            else:
                yield values.row(rows.line_num, dict(zip(columns, fields, strict=True)))
    except csv.Error as error:
        raise UsageError(f"{path}, line {rows.line_num}: {error}.") from error
    if not columns:
        raise UsageError(f"{path} is empty: its first line must name the columns.")
    if bad_lines:
        more = f" and {len(bad_lines) - 10} more lines" if len(bad_lines) > 10 else ""
        raise UsageError(
            f"{path}, line {', '.join(bad_lines[:10])}{more}: the number of fields is not "
            f"{len(columns)}, as in the first line."
        )


def _check_columns(path: Path, columns: list[str]) -> None:
    if "path" not in columns:
        raise UsageError(
            f"{path} has no column 'path'; its first line must name the columns "
            f"{', '.join(COLUMNS)} (only path is needed), it names {', '.join(columns)}."
        )
    if repeated := [c for c in COLUMNS if columns.count(c) > 1]:
        raise UsageError(f"{path} has the column {repeated[0]!r} more than once: keep one of them.")
    if unused := [c or "a column without a name" for c in columns if c not in COLUMNS]:
        log.warning("%s: columns that are not used: %s.", path, ", ".join(unused))


class _Values:
    """Values of the rows of a table. Rows near each other share equal ones, to save memory."""

    def __init__(self, path: Path):
        self._path = path
        share = functools.lru_cache(SHARED)
        self._shared: Callable[[str], str] = share(str)
        self._resolve: Callable[[str], str] = share(functools.partial(_resolve, path))
        self._labels: Callable[[str], tuple[str, ...]] = share(
            functools.partial(_split, self._shared)
        )

    def row(self, line: int, values: dict[str, str]) -> Input:
        """Input of a row. Raises UsageError."""
        if not values["path"]:
            raise UsageError(f"{self._path}, line {line}: the path is missing.")
        start = _seconds(self._path, line, "start", values)
        end = _seconds(self._path, line, "end", values)
        if start is not None and end is not None and end <= start:
            raise UsageError(f"{self._path}, line {line}: end {end} is not after {start}.")
        return Input(
            self._resolve(values["path"]),
            start=start,
            end=end,
            labels=self._labels(values.get("labels", "")),
            speaker=self._shared(values.get("speaker", "")) or None,
            masks=self._resolve(values["masks"]) if values.get("masks") else None,
        )


def _split(shared: Callable[[str], str], labels: str) -> tuple[str, ...]:
    return tuple(shared(x.strip()) for x in labels.split(";") if x.strip())


def _seconds(path: Path, line: int, column: str, values: dict[str, str]) -> float | None:
    text = values.get(column, "")
    if not text:
        return None
    try:
        seconds = float(text)
        if not 0 <= seconds < 1e9:
            raise ValueError
    except ValueError as error:
        raise UsageError(
            f"{path}, line {line}: {column} {text!r} is not a number of seconds."
        ) from error
    return seconds


def _data_file(path: Path) -> Iterator[Input]:
    """Yield the inputs of a CAV-MAE data file: WAVs, and frames in ``frame_N/ID.jpg``."""
    try:
        remedy = "give a data file of CAV-MAE, or name videos"
        record = read_json(path, remedy=remedy, limit_bytes=LIST_BYTES)
    except (JSONError, FileNotFoundError) as error:
        raise UsageError(str(error)) from error
    unused: Counter[str] = Counter()
    try:
        for number, entry in enumerate(typed(record, "data", list)):
            try:
                labels = typed(entry, "labels", str) if "labels" in entry else ""
                folder = _resolve(path, typed(entry, "video_path", str))
                item = Input(
                    _resolve(path, typed(entry, "wav", str)),
                    labels=tuple(x for x in labels.split(",") if x),
                    frames=str(Path(folder) / str(typed(entry, "video_id", str, int))),
                )
                if b"\0" in os.fsencode(f"{item.source}{item.frames}"):
                    raise ValueError("a name with a null byte")
            except (ValueError, TypeError) as error:
                raise ValueError(f"entry {number}: {error}") from error
            unused.update(entry.keys() - ENTRY_FIELDS)
            yield item
    except ValueError as error:
        raise UsageError(
            f"{path} is not a CAV-MAE data file ({error}): it needs a list 'data' of entries with "
            "wav, video_path, video_id and labels."
        ) from error
    if unused:
        log.warning("%s: fields that are not used: %s.", path, ", ".join(sorted(unused)))
