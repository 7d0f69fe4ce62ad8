"""Status of a data set and its parts: what is done, running, stopped or missing, and what to run.

The status of a data set at an object store is read there, so that it is the same on all machines.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from cavmae.common.errors import CavmaeError
from cavmae.common.files import is_url
from cavmae.common.json_files import parse_json, read_json, typed
from cavmae.common.locks import Holder, holder_of, is_held
from cavmae.common.store_records import StoreRecord
from cavmae.common.stores import Store
from cavmae.common.tables import markdown_table
from cavmae.datasets.format.manifest import LIMIT_BYTES, Manifest
from cavmae.datasets.sharding.job_state import InputLayout, complete_manifest, count_lines
from cavmae.datasets.sharding.parts import TaskArray, read_array
from cavmae.datasets.sharding.upload_claim import UploadProgress
from cavmae.datasets.sharding.upload_record import store_of

State = Literal["done", "running", "stopped", "missing"]
STATES: tuple[State, ...] = ("done", "running", "stopped", "missing")


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


def part_states(place: str | Path) -> list[PartStatus]:
    """Progress of all parts of a data set, in order; of the whole if it is not made in parts.

    Args:
        place: folder of a data set, address of one at a store, or the local folder of one there.

    Raises:
        CavmaeError: there is no data set, its state is damaged, or the store cannot be read.
    """
    out, store = _located(place)
    if store is not None:
        names = store.sizes()
        layouts = _layouts(out, names, read_array(out, store), store.url)
        states = [_stored(layout, n, store, names) for n, layout in enumerate(layouts, 1)]
    else:
        files = [path.name for path in (*out.glob("*-part-*"), *out.glob(".work-part-*"))]
        layouts = _layouts(out, files, read_array(out), str(out))
        states = [_status(layout, n) for n, layout in enumerate(layouts, 1)]
    if layouts[0].part is None and states[0].state == "missing":
        raise CavmaeError(f"{place} is no folder of `cavmae shard`: name one.")
    return states


def _located(place: str | Path) -> tuple[Path, Store | None]:
    """Folder of a data set, and the store that has it, if any."""
    url = str(place) if is_url(str(place)) else store_of(Path(place))
    return Path(place), None if url is None else Store.parse(url)


def _layouts(
    out: Path, names: Iterable[str], array: TaskArray | None, place: str
) -> list[InputLayout]:
    """Layouts of the parts, or of the whole.

    Args:
        out: folder of the layouts.
        names: of files at the place of the data set.
        array: that makes it, if any.
        place: for errors.
    """
    matches = (re.search(r"-part-\d+-of-(\d+)", name) for name in names)
    counts = {int(match[1]) for match in matches if match}
    if array is not None:
        counts.add(array.count)
    if len(counts) > 1:
        raise CavmaeError(f"{place} has parts of several counts ({sorted(counts)}).")
    for count in counts:
        return [InputLayout(out, part=(n, count)) for n in range(1, count + 1)]
    return [InputLayout(out)]


def _stored(layout: InputLayout, number: int, store: Store, names: Collection[str]) -> PartStatus:
    """Progress by the files of a store: one with a manifest and without a claim is done."""
    record = StoreRecord(store, layout.progress)
    content = record.read() if layout.progress in names else None
    if content is not None:
        progress = UploadProgress.parse(content, record.url)
        held = progress.is_held(record.age)
        samples = sum(shard.samples for shard in progress.state.shards)
        return PartStatus(
            number, "running" if held else "stopped", progress.planned, progress.state.item,
            samples, progress.holder if held else None,
        )  # fmt: skip
    content = StoreRecord(store, layout.manifest.name).read()
    if content is None:
        state: State = "stopped" if layout.plan.name in names else "missing"
        return PartStatus(number, state, 0, 0, 0, None)
    url = store.address(layout.manifest.name)
    manifest = Manifest.from_record(
        store.url, url, parse_json(content, url, limit_bytes=LIMIT_BYTES)
    )
    return PartStatus(number, "done", manifest.inputs, manifest.inputs, manifest.samples, None)


def _status(layout: InputLayout, number: int) -> PartStatus:
    inputs = count_lines(layout.plan)
    held = is_held(layout.work_folder)
    if not held and (manifest := complete_manifest(layout)):
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


def status_text(place: str | Path) -> str:
    """Table of the parts of a data set in Markdown, and how to run those that are not done.

    Args:
        place: see :func:`part_states`, whose errors it raises.
    """
    states = part_states(place)
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
    array = read_array(*_located(place))
    if left and array is not None:
        lines.append(f"Submit the same job with --array={array.subset(left)} for what is left.")
    elif left and len(states) == 1:
        lines.append("Run the same command again for what is left.")
    elif left:
        named = ", ".join(f"{part}/{len(states)}" for part in left)
        lines.append(f"Run the same command with --part {named} for what is left.")
    return "\n".join(lines)
