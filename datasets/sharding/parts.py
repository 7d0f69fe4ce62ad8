"""Parts of a data set that several machines write: the share of each, and what is done.

A part is numbered by hand (``--part 2/8``), or by the task of a Slurm array (``--part auto``). The
first task to start records the array in ``array.json``; an array that runs only the missing tasks
again has another count, and finds the first one there. It also records in ``shares.json`` which
input belongs to which part, so that all have about as many bytes; inputs that are added later are
shared out by their hash, which needs no record. Of a data set at an object store both records are
there, so that machines whose local folders are not the same agree.
"""

import contextlib
import dataclasses
import heapq
import itertools
import os
import re
import socket
import threading
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import is_url
from cavmae.common.json_files import json_bytes, read_json, typed
from cavmae.common.locks import Holder, holder_of, is_held
from cavmae.common.stores import NameTaken, Store
from cavmae.common.tables import markdown_table
from cavmae.datasets.format.manifest import LIMIT_BYTES
from cavmae.datasets.sharding.inputs import Input
from cavmae.datasets.sharding.job_state import (
    ARRAY,
    SHARES,
    InputLayout,
    complete_manifest,
    count_lines,
)
from cavmae.datasets.sharding.upload_record import is_published

VARIABLES = tuple(f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "STEP", "COUNT"))
State = Literal["done", "running", "stopped", "missing"]
STATES: tuple[State, ...] = ("done", "running", "stopped", "missing")


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


class PartStatus(NamedTuple):
    """Progress of a part.

    Attributes:
        part: its number, from 1.
        state: ``done``: all inputs that are planned; ``running``: a process holds its lock;
            ``stopped``: one began it; ``missing``: none did.
        inputs: that are planned.
        sealed: of them, in finished shards.
        samples: in finished shards.
        holder: process that works on it; None: none.
    """

    part: int
    state: State
    inputs: int
    sealed: int
    samples: int
    holder: Holder | None


def parse_part(
    text: str, out: Path, environment: Mapping[str, str], store: Store | None = None
) -> tuple[int, int]:
    """Part of this machine: (I, N), of ``I/N`` or of the Slurm array that this process is in.

    Args:
        text: ``I/N`` or ``auto``.
        out: folder of the data set, where an array is recorded.
        environment: of the process.
        store: that receives the data set, if any: the array is recorded there, too.

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
    if store is not None:
        _share_record(store, out / ARRAY)
    array = read_array(out)
    if array is None:
        array = TaskArray(first, step, count)
        if step < 1 or first + (count - 1) * step != last:
            raise UsageError(
                f"--part auto: the first array of {out} is {count} tasks from {first} to {last}, "
                "with gaps: submit all parts once with sbatch --array=1-N."
            )
        _create(out / ARRAY, json_bytes(dataclasses.asdict(array)), store)
        array = read_array(out)
        assert array is not None
    part = array.part(task)
    if part is None:
        raise UsageError(
            f"--part auto: {out} is made by the array {array.expression}, which has no task "
            f"{task}: submit these tasks, or choose another --out."
        )
    return part, array.count


def _create(path: Path, content: bytes, store: Store | None) -> None:
    """Creates a file with its content at once, unless another process does so before.

    With a store the file is created there in the same way, and the copy here is that of the store.
    """
    _create_here(path, content)
    if store is not None:
        _share_record(store, path)


def _share_record(store: Store, path: Path) -> None:
    """Makes a record the same here and at the store; that of the store counts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    known = store.fetch(path.name, temporary)
    if not known and path.exists():
        with contextlib.suppress(NameTaken):  # another machine was faster
            store.upload(path, path.name, threading.Event(), new=True)
        known = store.fetch(path.name, temporary)
    if known:
        temporary.replace(path)


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
        store: that receives the data set, if any: they are recorded there, too.

    Raises:
        CavmaeError: the record is damaged, or of another number of parts.
    """
    number, count = part
    if store is not None:
        _share_record(store, out / SHARES)
    shares = _read_shares(out, count)
    if shares is None:
        _record_shares(items, count, out, store)
        shares = _read_shares(out, count)
        assert shares is not None
    # By hash, not by position: the share of what is added is the same in every process.
    return [item for item in items if _part_of(item.identity, shares, count) == number]


def _part_of(identity: str, shares: Mapping[str, int], count: int) -> int:
    return shares.get(identity) or int(identity, 16) % count + 1


def _record_shares(items: Sequence[Input], count: int, out: Path, store: Store | None) -> None:
    begun = list(out.glob("inputs-part-*.jsonl"))  # before there were records
    balanced = {} if begun else balanced_shares(_sizes(items), count)
    _create(out / SHARES, json_bytes({"parts": count, "shares": balanced}), store)


def balanced_shares(sizes: Sequence[tuple[str, float]], count: int) -> dict[str, int]:
    """Part of each input, from 1, such that all parts have about the same size.

    The largest input first, each goes to the smallest part so far (LPT, Graham 1969): no part is
    larger than 4/3 of the smallest possible largest one.

    Args:
        sizes: identity and bytes of each input.
        count: number of parts.
    """
    loads = [(0.0, 0, part) for part in range(1, count + 1)]  # bytes, inputs, part: a heap
    shares = {}
    for identity, size in sorted(sizes, key=lambda pair: (-pair[1], pair[0])):
        total, inputs, part = loads[0]
        heapq.heapreplace(loads, (total + size, inputs + 1, part))
        shares[identity] = part
    return shares


def _sizes(items: Sequence[Input]) -> list[tuple[str, float]]:
    """Identity and bytes of each input, 0 where unknown; a file's rows have equal shares of it."""
    rows = Counter(item.source for item in items)
    sizes = {}
    for source, count in rows.items():
        size = 0
        with contextlib.suppress(OSError, ValueError):  # a line in skipped.jsonl later
            size = 0 if is_url(source) else os.stat(source).st_size  # noqa: PTH116 - faster
        sizes[source] = size / count
    return [(item.identity, sizes[item.source]) for item in items]


def _read_shares(out: Path, count: int) -> dict[str, int] | None:
    """Recorded part of each input; None: none are recorded."""
    path = out / SHARES
    try:
        record = read_json(path, limit_bytes=LIMIT_BYTES)
        recorded = typed(record, "parts", int)
        shares: dict[str, int] = typed(record, "shares", dict)
        if not all(type(part) is int and 1 <= part <= count for part in shares.values()):
            raise ValueError("a share is no part")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise CavmaeError(f"{path} is damaged ({error}): choose another --out folder.") from error
    if recorded != count:
        raise CavmaeError(f"{out} was made in {recorded} parts; choose another --out folder.")
    return shares


def read_array(out: Path) -> TaskArray | None:
    """Array that makes a data set; None: none is recorded.

    Raises:
        CavmaeError: the record is damaged.
    """
    path = out / ARRAY
    try:
        record = read_json(path, remedy="remove it, and submit all parts again")
        array = TaskArray(*(typed(record, name, int) for name in ("first", "step", "count")))
        if array.first < 0 or min(array.step, array.count) < 1:
            raise ValueError("numbers out of range")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CavmaeError(f"{path} is damaged ({error}): remove it.") from error
    return array


def part_states(out: Path) -> list[PartStatus]:
    """Progress of all parts of a folder, in order; of the whole if it is not made in parts.

    Raises:
        CavmaeError: there is no data set, or its state is damaged.
    """
    counts = {
        int(match[1])
        for path in itertools.chain(out.glob("*-part-*"), out.glob(".work-part-*"))
        if (match := re.search(r"-part-\d+-of-(\d+)", path.name))
    }
    array = read_array(out) if out.is_dir() else None
    if array is not None:
        counts.add(array.count)
    if len(counts) > 1:
        raise CavmaeError(f"{out} has parts of several counts ({sorted(counts)}).")
    if counts:
        (count,) = counts
        return [_status(InputLayout(out, part=(n, count)), n) for n in range(1, count + 1)]
    whole = _status(InputLayout(out), 1)
    if whole.state == "missing":
        raise CavmaeError(f"{out} is no folder of `cavmae shard`: name one.")
    return [whole]


def _status(layout: InputLayout, number: int) -> PartStatus:
    inputs = count_lines(layout.plan)
    held = is_held(layout.work_folder)
    if not held and (manifest := complete_manifest(layout)) and is_published(layout):
        return PartStatus(number, "done", inputs, inputs, manifest.samples, None)
    item, samples = _sealed(layout)
    state: State = "running" if held else "stopped" if inputs else "missing"
    return PartStatus(
        number, state, inputs, item, samples, holder_of(layout.work_folder) if held else None
    )


def _sealed(layout: InputLayout) -> tuple[int, int]:
    """Numbers of inputs and samples in finished shards, as a rerun finds them."""
    with contextlib.suppress(FileNotFoundError):
        record = read_json(layout.state)
        return typed(record, "item", int), typed(record, "samples", int)
    if not layout.manifest.exists():
        return 0, 0
    manifest = layout.read_manifest()
    return manifest.inputs, manifest.samples


def status_text(out: Path) -> str:
    """Table of the parts of a data set in Markdown, and how to run those that are not done.

    Raises:
        CavmaeError: there is no data set, or its state is damaged.
    """
    states = part_states(out)
    rows = [
        [
            str(s.part), s.state, f"{s.sealed} of {s.inputs}", str(s.samples),
            f"process {s.holder.pid} of {s.holder.host}" if s.holder else "",
        ]
        for s in states
    ]  # fmt: skip
    head = ["part", "state", "inputs in finished shards", "samples", "held by"]
    counts = Counter(s.state for s in states)
    lines = [
        markdown_table(head, rows, (1, 4)), "",
        ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) + ".",
    ]  # fmt: skip
    left = [s.part for s in states if s.state in ("stopped", "missing")]
    array = read_array(out)
    if left and array is not None:
        lines.append(f"Submit the same job with --array={array.subset(left)} for what is left.")
    elif left and len(states) == 1:
        lines.append("Run the same command again for what is left.")
    elif left:
        named = ", ".join(f"{part}/{len(states)}" for part in left)
        lines.append(f"Run the same command with --part {named} for what is left.")
    return "\n".join(lines)
