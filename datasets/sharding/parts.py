"""Parts of a data set that several machines write: the share of each.

A part is numbered by hand (``--part 2/8``), or by the task of a Slurm array (``--part auto``). The
first task to start records the array in ``array.json``; an array that runs only the missing tasks
again has another count, and finds the first one there. It also records in ``shares.json`` which
input belongs to which part, so that all have about as much work; inputs that are added later are
shared out by their hash, which needs no record. Of a data set at an object store both records are
only there, so that machines whose local folders are not the same agree.
"""

import contextlib
import dataclasses
import os
import re
import socket
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.json_files import json_bytes, parse_json, read_json, typed
from cavmae.common.store_records import RecordChanged, StoreRecord
from cavmae.common.stores import Store
from cavmae.datasets.format.manifest import LIMIT_BYTES
from cavmae.datasets.sharding.balance import balanced_shares, work_of
from cavmae.datasets.sharding.inputs import Input
from cavmae.datasets.sharding.job_state import ARRAY, SHARES

VARIABLES = tuple(f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "STEP", "COUNT"))


@dataclasses.dataclass(frozen=True)
class TaskArray:
    """Tasks of an array job, each of which writes a part.

    Attributes:
        first: number of the first task.
        step: from one task to the next.
        count: number of tasks and of parts.
    """

    first: int
    step: int
    count: int

    @property
    def expression(self) -> str:
        """Tasks in the form of ``sbatch --array``."""
        return self.subset(range(1, self.count + 1))

    def subset(self, parts: Sequence[int]) -> str:
        """Tasks of some parts, counted from 1 and rising, in the form of ``sbatch --array``."""
        tasks = [self.first + (part - 1) * self.step for part in parts]
        groups: list[list[int]] = []
        for task in tasks:
            if groups and task == groups[-1][-1] + self.step:
                groups[-1].append(task)
            else:
                groups.append([task])
        step = f":{self.step}" if self.step > 1 else ""
        return ",".join(
            f"{g[0]}-{g[-1]}{step}" if len(g) > 2 or (len(g) == 2 and not step) else
            ",".join(map(str, g))
            for g in groups
        )  # fmt: skip

    def part(self, task: int) -> int | None:
        """Part of a task, counted from 1; None: the array has no such task."""
        index, rest = divmod(task - self.first, self.step)
        return None if rest or not 0 <= index < self.count else index + 1


def parse_part(
    text: str, out: Path, environment: Mapping[str, str], store: Store | None = None
) -> tuple[int, int]:
    """Part of this machine: (I, N), of ``I/N`` or of the Slurm array that this process is in.

    Args:
        text: ``I/N`` or ``auto``.
        out: folder of the data set, where an array is recorded.
        environment: of the process.
        store: that receives the data set, if any: the array is recorded there instead.

    Raises:
        UsageError: anything else, or the array is not that of the folder.
        CavmaeError: the record of the array is damaged.
    """
    if text == "auto":
        return _array_part(out, environment, store)
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(
            f"--part {text!r} is neither I/N with I from 1 to N, as in --part 2/8, nor auto."
        )
    return int(match[1]), int(match[2])


def _array_part(out: Path, environment: Mapping[str, str], store: Store | None) -> tuple[int, int]:
    missing = [name for name in VARIABLES if not environment.get(name, "").isdecimal()]
    if missing:
        raise UsageError(
            f"--part auto numbers the tasks of a Slurm array by {', '.join(missing)}, which this "
            "process does not have: submit it with sbatch --array=1-N, or give --part I/N."
        )
    task, first, last, step, count = (int(environment[name]) for name in VARIABLES)
    place = store.url if store is not None else str(out)
    array = read_array(out, store)
    if array is None:
        array = TaskArray(first, step, count)
        if step < 1 or first + (count - 1) * step != last:
            raise UsageError(
                f"--part auto: the first array of {place} is {count} tasks from {first} to {last}, "
                "with gaps: submit all parts once with sbatch --array=1-N."
            )
        _create(ARRAY, json_bytes(dataclasses.asdict(array)), out, store)
        array = read_array(out, store)
        assert array is not None
    part = array.part(task)
    if part is None:
        raise UsageError(
            f"--part auto: {place} is made by the array {array.expression}, which has no task "
            f"{task}: submit these tasks, or choose another --out."
        )
    return part, array.count


def _read(name: str, out: Path, store: Store | None, remedy: str) -> tuple[str, Any]:
    """Address of a record, and its JSON; None: there is none. Raises JSONError, StoreError."""
    if store is not None:
        url, content = store.address(name), StoreRecord(store, name).read()
        if content is None:
            return url, None
        return url, parse_json(content, url, remedy=remedy, limit_bytes=LIMIT_BYTES)
    path = out / name
    try:
        return str(path), read_json(path, remedy=remedy, limit_bytes=LIMIT_BYTES)
    except FileNotFoundError:
        return str(path), None


def _create(name: str, content: bytes, out: Path, store: Store | None) -> None:
    """Creates a record with its content at once, unless another process does so before."""
    if store is None:
        _create_here(out / name, content)
        return
    with contextlib.suppress(RecordChanged):  # another machine was faster
        StoreRecord(store, name).write(content)


def _create_here(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f".{path.name}.{socket.gethostname()}.{uuid.uuid4().hex[:12]}.tmp"
    temporary = path.with_name(name)
    temporary.write_bytes(content)
    try:
        with contextlib.suppress(FileExistsError):
            try:
                os.link(temporary, path)  # atomic on shared file systems, too
            except OSError:
                if path.exists():
                    return
                with path.open("xb") as file:  # file systems without links
                    file.write(content)
    finally:
        temporary.unlink(missing_ok=True)


def share_of(
    items: Sequence[Input], part: tuple[int, int], out: Path, store: Store | None = None
) -> list[Input]:
    """Inputs of a part, in their order.

    Args:
        items: all inputs of the command line.
        part: (I, N).
        out: folder of the data set, where the shares are recorded.
        store: that receives the data set, if any: they are recorded there instead.

    Raises:
        CavmaeError: the record is damaged, or of another number of parts.
    """
    number, count = part
    shares = _read_shares(out, store, count)
    if shares is None:
        _record_shares(items, count, out, store)
        shares = _read_shares(out, store, count)
        assert shares is not None
    # By hash, not by position: the share of what is added is the same in every process.
    return [item for item in items if _part_of(item.identity, shares, count) == number]


def _part_of(identity: str, shares: Mapping[str, int], count: int) -> int:
    return shares.get(identity) or int(identity, 16) % count + 1


def _record_shares(items: Sequence[Input], count: int, out: Path, store: Store | None) -> None:
    begun = store is None and list(out.glob("inputs-part-*.jsonl"))  # before there were records
    balanced = {} if begun else balanced_shares(work_of(items), count)
    _create(SHARES, json_bytes({"parts": count, "shares": balanced}), out, store)


def _read_shares(out: Path, store: Store | None, count: int) -> dict[str, int] | None:
    """Recorded part of each input; None: none are recorded."""
    remedy = "choose another --out folder"
    place, record = _read(SHARES, out, store, remedy)
    if record is None:
        return None
    try:
        recorded = typed(record, "parts", int)
        shares: dict[str, int] = typed(record, "shares", dict)
        if not all(type(part) is int and 1 <= part <= count for part in shares.values()):
            raise ValueError("a share is no part")
    except (ValueError, TypeError) as error:
        raise CavmaeError(f"{place} is damaged ({error}): {remedy}.") from error
    if recorded != count:
        where = store.url if store is not None else out
        raise CavmaeError(f"{where} was made in {recorded} parts; {remedy}.")
    return shares


def read_array(out: Path, store: Store | None = None) -> TaskArray | None:
    """Array that makes a data set; None: none is recorded.

    Args:
        out: folder of the data set.
        store: that receives the data set, if any: the record is there.

    Raises:
        CavmaeError: the record is damaged, or the store cannot be read.
    """
    place, record = _read(ARRAY, out, store, "remove it, and submit all parts again")
    if record is None:
        return None
    try:
        array = TaskArray(*(typed(record, name, int) for name in ("first", "step", "count")))
        if array.first < 0 or min(array.step, array.count) < 1:
            raise ValueError("numbers out of range")
    except ValueError as error:
        raise CavmaeError(f"{place} is damaged ({error}): remove it.") from error
    return array
