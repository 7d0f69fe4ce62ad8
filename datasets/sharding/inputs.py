"""Inputs of sharding: files, folders, lists, tables, URLs and CAV-MAE data files."""

import csv
import dataclasses
import hashlib
import io
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cavmae.common.errors import UsageError
from cavmae.common.files import is_url, read_bytes
from cavmae.common.folders import search
from cavmae.common.json_files import JSONError, read_json, typed
from cavmae.common.remote import AddressError, check_address, local_path

log = logging.getLogger("cavmae")

VIDEO_ENDINGS = frozenset(
    """.3gp .asf .avi .divx .dv .f4v .flv .m2ts .m2v .m4v .mkv .mov .mp4 .mpe .mpeg .mpg .mts
    .mxf .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv""".split()  # noqa: SIM905
)
LIST_ENDINGS = frozenset({".txt", ".lst", ".list"})
LIST_BYTES = 1 << 30  # of a list, a table or a data file
ENTRY_FIELDS = frozenset({"wav", "video_path", "video_id", "labels"})
COLUMNS = ("path", "start", "end", "labels", "speaker", "masks")


@dataclasses.dataclass(frozen=True)
class Input:
    """A video, or a stretch of a video.

    Attributes:
        source: path or URL that is opened.
        start, end: the stretch, in seconds of playback time; None: the video's own.
        labels: class names.
        speaker: id of the speaker.
        masks: folder of mask PNGs named by frame number from 0 (``0000.png``).
        frames: for CAV-MAE data files: the folder with ``frame_N`` folders; ``source`` is the WAV.
        first_clip: extract the clips from this number on; None: none of them. For retries.
        clips: start times in seconds of more clips to extract. For retries.
        attempt: 0 at first, more for retries.
        stretches: extract also the clips that begin in these stretches, in seconds. For retries.
    """

    source: str
    start: float | None = None
    end: float | None = None
    labels: tuple[str, ...] = ()
    speaker: str | None = None
    masks: str | None = None
    frames: str | None = None
    first_clip: int | None = 0
    clips: tuple[float, ...] = ()
    attempt: int = 0
    stretches: tuple[tuple[float, float], ...] = ()

    @property
    def identity(self) -> str:
        """Hex hash of everything but labels and masks: part of the samples' keys."""
        text = json.dumps([self.source, self.start, self.end, self.speaker, self.frames])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def file_identity(self) -> tuple[object, ...]:
        """Like ``identity``, but equal for all paths and addresses of a file."""
        source = local_path(self.source) or self.source
        source = source if is_url(source) else os.path.realpath(source)
        return source, self.start, self.end, self.speaker, self.frames

    @property
    def task(self) -> str:
        """Hex name of this input's task; differs for a retry."""
        return f"{self.identity}-{self.attempt}"

    def wants(self, number: int, start: float) -> bool:
        """Whether clip ``number``, which begins at ``start`` seconds, is to be extracted."""
        if self.first_clip is not None and number >= self.first_clip:
            return True
        if any(abs(start - other) < 1e-3 for other in self.clips):
            return True
        return any(begin - 1e-3 < start < last + 1e-3 for begin, last in self.stretches)

    def retry(
        self,
        clip: float | None = None,
        done: tuple[int, float] | None = None,
        last: float | None = None,
    ) -> "Input":
        """Input of a retry after a failure.

        Args:
            clip: start of the clip that failed; None: the whole input failed.
            done: (number, start) of the last clip before the failure, if ``clip`` is None.
            last: start of the last of several clips that failed, of which ``clip`` is the first.
        """
        first, single, stretches = self.first_clip, self.clips, self.stretches
        if clip is not None:
            first = None
            single, stretches = ((clip,), ()) if last is None else ((), ((clip, last),))
        elif done is not None:
            number, start = done
            first = None if first is None else max(first, number + 1)
            single = tuple(c for c in single if c > start)
            stretches = tuple((max(a, start + 2e-3), b) for a, b in stretches if b > start)
        return dataclasses.replace(
            self, first_clip=first, clips=single, stretches=stretches, attempt=self.attempt + 1
        )

    def merge_retry(self, other: "Input") -> "Input":
        """Merge this retry with another of the same input."""
        firsts = [x.first_clip for x in (self, other) if x.first_clip is not None]
        return dataclasses.replace(
            self,
            first_clip=min(firsts) if firsts else None,
            clips=tuple(sorted({*self.clips, *other.clips})),
            stretches=tuple(sorted({*self.stretches, *other.stretches})),
        )

    def to_json(self) -> dict[str, Any]:
        """JSON object without the fields at their defaults."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        record = dataclasses.asdict(self)
        return {k: v for k, v in record.items() if k == "source" or v != defaults[k]}


def sample_key(item: Input, start: float) -> str:
    """Sample key of the clip that begins at ``start`` seconds: unique, safe as a file name."""
    stem = re.sub(r"[^A-Za-z0-9_]+", "-", Path(item.source).stem).strip("-")[:40] or "clip"
    return f"{stem}-{item.identity}-{max(0, round(start * 1000)):09d}"


def collect(names: Iterable[str]) -> tuple[list[Input], list[Input]]:
    """Collect the inputs that command-line arguments name; also returns repeated ones.

    Raises:
        UsageError: an argument names nothing, an address cannot be opened, or a list or table
            cannot be read.
    """
    seen: dict[tuple[object, ...], Input] = {}
    repeated = []
    for name in names:
        for item in _expand(name):
            identity = item.file_identity
            if identity in seen:
                seen[identity] = _merge_rows(seen[identity], item)
                repeated.append(item)
            else:
                seen[identity] = item
    return list(seen.values()), repeated


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


def _text(path: Path) -> str:
    try:
        data = read_bytes(str(path), LIST_BYTES)
        if len(data) > LIST_BYTES:
            raise UsageError(f"{path} has more than {LIST_BYTES >> 20} MB: split it.")
        if b"\0" in data:
            raise UsageError(f"{path} is not a UTF-8 text file: it has null bytes.")
        return data.decode("utf-8-sig")
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
    for line in _text(path).split("\n"):
        name = line.strip()
        # Blanks may be part of a name.
        exact = line.removesuffix("\r")
        if exact != name and name and os.path.lexists(path.parent / exact):
            name = exact
        if name and (not name.startswith("#") or os.path.lexists(path.parent / name)):
            yield Input(_resolve(path, name))


def _table(path: Path) -> Iterator[Input]:
    rows = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
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
                yield _row(path, rows.line_num, dict(zip(columns, fields, strict=True)))
    except csv.Error as error:
        raise UsageError(f"{path}, line {rows.line_num}: {error}.") from error
    if not columns:
        _check_columns(path, columns)
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


def _row(path: Path, line: int, values: dict[str, str]) -> Input:
    if not values["path"]:
        raise UsageError(f"{path}, line {line}: the path is missing.")
    start = _seconds(path, line, "start", values)
    end = _seconds(path, line, "end", values)
    if start is not None and end is not None and end <= start:
        raise UsageError(f"{path}, line {line}: end {end} is not after {start}.")
    return Input(
        _resolve(path, values["path"]),
        start=start,
        end=end,
        labels=tuple(x.strip() for x in values.get("labels", "").split(";") if x.strip()),
        speaker=values.get("speaker") or None,
        masks=_resolve(path, values["masks"]) if values.get("masks") else None,
    )


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
