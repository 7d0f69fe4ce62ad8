"""Joins parts into shards, in the order of the plan, so that a kill at any moment loses nothing.

A folder under construction holds ``inputs.jsonl`` (the plan: only ever appended to), finished
shards, and ``.work/`` with parts (one file of samples for each input) and ``state.json`` (which
shards are sealed and how far into the plan they reach). Each step is written beside its final name
and renamed, so a rerun finds either the step or what came before it.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from cavmae.datasets.errors import CavmaeError
from cavmae.datasets.manifest import NAME, Manifest, ShardEntry, merge
from cavmae.datasets.shards import END
from cavmae.datasets.storage import flush_folder, write_atomically
from cavmae.tools.sharding.clips import Skip, Written
from cavmae.tools.sharding.inputs import Input

FINAL_REASONS = frozenset({"too_short"})  # trying again cannot help


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names of the files of a data set, or of one part of N of it.

    Args:
        folder: of the data set.
        name: what shards' names begin with.
        part: (I, N) if this machine makes one part of N.
    """

    folder: Path
    name: str = "clips"
    part: tuple[int, int] | None = None

    @property
    def suffix(self) -> str:
        return "" if self.part is None else f"-part-{self.part[0]}-of-{self.part[1]}"

    @property
    def manifest(self) -> Path:
        return self.folder / NAME.replace(".json", f"{self.suffix}.json")

    @property
    def skipped(self) -> Path:
        return self.folder / f"skipped{self.suffix}.jsonl"

    @property
    def plan(self) -> Path:
        return self.folder / f"inputs{self.suffix}.jsonl"

    @property
    def work(self) -> Path:
        return self.folder / f".work{self.suffix}"

    @property
    def state(self) -> Path:
        return self.work / "state.json"

    def shard(self, number: int) -> Path:
        return self.folder / f"{self.name}{self.suffix}-{number:06d}.tar"

    def part_file(self, item: Input) -> Path:
        return self.work / f"{item.task}.part"

    def part_record(self, item: Input) -> Path:
        return self.work / f"{item.task}.json"


@contextlib.contextmanager
def locked(layout: Layout):  # type: ignore[no-untyped-def]
    """Holds a data set's folder for this process.

    Raises:
        CavmaeError: another process is at it.
    """
    layout.work.mkdir(parents=True, exist_ok=True)
    with (layout.work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CavmaeError(
                f"Another `cavmae shard` is writing to {layout.folder}; wait for it to end."
            ) from error
        yield


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Records of a JSON-lines file; a last line cut off by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines if line]


class Plan:
    """The ordered list of everything to do, kept in ``inputs.jsonl``."""

    def __init__(self, layout: Layout):
        self._layout = layout
        self.items = [Input.from_json(record) for record in read_lines(layout.plan)]

    def extend(self, items: Sequence[Input]) -> list[Input]:
        """Adds those items that the plan does not have yet, and returns them.

        Raises:
            CavmaeError: an item is planned already with other labels or masks.
        """
        known = {item.task: item for item in self.items}
        fresh = []
        for item in items:
            old = known.get(item.task)
            if old is None:
                fresh.append(item)
            elif old != item:
                raise CavmaeError(
                    f"{item.source} is in {self._layout.plan} with other labels or masks; choose "
                    "another --out folder for the changed list."
                )
        if fresh:
            self.items += fresh
            with write_atomically(self._layout.plan) as file:
                for item in self.items:
                    file.write(_line(item.to_json()))
        return fresh


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True).encode() + b"\n"


@dataclasses.dataclass
class State:
    """How far the sealed shards reach.

    Attributes:
        settings: what samples are made with.
        item, sample: the next input of the plan, and its next sample, to go into a shard.
        shards: sealed ones; their labels are numbers in ``labels``.
        labels: class names in the order they came.
        skipped_bytes: valid length of ``skipped.jsonl``.
        skipped: valid lines of it.
    """

    settings: dict[str, Any]
    item: int = 0
    sample: int = 0
    shards: list[ShardEntry] = dataclasses.field(default_factory=list)
    labels: list[str] = dataclasses.field(default_factory=list)
    skipped_bytes: int = 0
    skipped: int = 0

    @classmethod
    def load(cls, layout: Layout, settings: dict[str, Any]) -> "State":
        """Where an earlier run in this folder stopped, or the beginning.

        Raises:
            CavmaeError: that run had other settings.
        """
        state = cls(settings)
        if layout.state.exists():
            record = json.loads(layout.state.read_bytes())
            shards = [ShardEntry(**entry) for entry in record.pop("shards")]
            state = cls(**record, shards=shards)
        elif layout.manifest.exists():
            text = json.loads(layout.manifest.read_bytes())
            manifest = Manifest._from_record(str(layout.folder), str(layout.manifest), text)
            size = layout.skipped.stat().st_size if layout.skipped.exists() else 0
            state = cls(
                manifest.settings,
                manifest.inputs,
                0,
                list(manifest.shards),
                list(manifest.labels),
                size,
                manifest.skipped,
            )
        for name, value in settings.items():
            if state.settings.get(name) != value:
                raise CavmaeError(
                    f"{layout.folder} holds samples made with {name} {state.settings.get(name)!r}, "
                    f"not {value!r}; choose another --out folder or the old setting."
                )
        return state

    def save(self, layout: Layout) -> None:
        with write_atomically(layout.state) as file:
            file.write(json.dumps(dataclasses.asdict(self)).encode())


class Assembler:
    """Puts finished inputs into shards, in order."""

    def __init__(self, layout: Layout, plan: Plan, state: State, samples: int, size: float):
        self._layout = layout
        self._plan = plan
        self.state = state
        self._samples, self._bytes = samples, size
        self._records: dict[int, tuple[list[Written], list[Skip]]] = {}
        self._position = state.item, state.sample
        self._skips: list[bytes] = []
        self._used: list[Input] = []
        self._file: IO[bytes] | None = None
        self._new_shard()

    def _new_shard(self) -> None:
        self._hash = hashlib.sha256()
        self._size = 0
        self._labels: list[tuple[int, ...]] = []

    def find_finished(self) -> None:
        """Takes up what an earlier run finished but did not assemble."""
        for number in range(self.state.item, len(self._plan.items)):
            path = self._layout.part_record(self._plan.items[number])
            if path.exists():
                record = json.loads(path.read_bytes())
                self._records[number] = (
                    [Written(*w) for w in record["written"]],
                    [Skip(*s) for s in record["skips"]],
                )

    def has(self, number: int) -> bool:
        return number in self._records

    def finish_item(self, number: int, messages: Sequence[Written | Skip]) -> None:
        """Records that an input is done. Its part file holds the samples written."""
        written = [m for m in messages if isinstance(m, Written)]
        skips = [m for m in messages if isinstance(m, Skip)]
        with write_atomically(self._layout.part_record(self._plan.items[number])) as file:
            file.write(json.dumps({"written": written, "skips": skips}).encode())
        self._records[number] = written, skips

    def advance(self) -> int | None:
        """Assembles all that can be.

        Returns:
            Number of an input whose part was damaged on disk since it was written and has to be
            made again; None if there is none.
        """
        while self._position[0] in self._records:
            number, first = self._position
            item = self._plan.items[number]
            written, skips = self._records[number]
            for one, blocks in self._read_part(item, written, first):
                if blocks is None:
                    del self._records[number]
                    self._layout.part_record(item).unlink()
                    return number
                if self._full(len(blocks)):
                    self._seal()
                self._append(blocks, item.labels)
                self._position = number, one + 1
            done = (written[-1].clip, written[-1].start) if written else None
            for skip in skips:
                self._skips.append(_line(_skip_record(item, skip, done)))
            self._used.append(item)
            del self._records[number]
            self._position = number + 1, 0
        return None

    def _read_part(
        self, item: Input, written: list[Written], first: int
    ) -> Iterator[tuple[int, bytes | None]]:
        """Samples of a part from number ``first`` on; None for one that is not as written."""
        if first == len(written):
            return
        try:
            file = self._layout.part_file(item).open("rb")
        except FileNotFoundError:
            yield first, None
            return
        with file:
            file.seek(sum(one.size for one in written[:first]))
            for number in range(first, len(written)):
                blocks = file.read(written[number].size)
                good = zlib.crc32(blocks) == written[number].crc
                yield number, blocks if good else None

    def _full(self, size: int) -> bool:
        held = len(self._labels)
        return held >= self._samples or (held > 0 and self._size + size + len(END) > self._bytes)

    def _append(self, blocks: bytes, labels: Sequence[str]) -> None:
        if self._file is None:
            self._file = (self._layout.work / "shard.tmp").open("wb")
        self._write(blocks)
        numbers = set()
        for label in labels:
            if label not in self.state.labels:
                self.state.labels.append(label)
            numbers.add(self.state.labels.index(label))
        self._labels.append(tuple(sorted(numbers)))

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data)

    def _seal(self) -> None:
        """Gives the shard its name and records how far the sealed shards reach."""
        if self._file is not None:
            self._write(END)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
            path = self._layout.shard(len(self.state.shards))
            (self._layout.work / "shard.tmp").replace(path)
            flush_folder(path.parent)
            self.state.shards.append(
                ShardEntry(
                    path.name,
                    len(self._labels),
                    self._size,
                    self._hash.hexdigest(),
                    tuple(self._labels),
                )
            )
            self._new_shard()
        self._append_skips()
        self.state.item, self.state.sample = self._position
        self.state.save(self._layout)
        for item in self._used:
            self._layout.part_file(item).unlink(missing_ok=True)
            self._layout.part_record(item).unlink(missing_ok=True)
        self._used = []

    def _append_skips(self) -> None:
        with self._layout.skipped.open("ab") as file:
            file.truncate(self.state.skipped_bytes)
            file.seek(0, os.SEEK_END)
            file.write(b"".join(self._skips))
            file.flush()
            os.fsync(file.fileno())
            self.state.skipped_bytes = file.tell()
        self.state.skipped += len(self._skips)
        self._skips = []

    def finish(self) -> Manifest:
        """Seals the last shard and writes the manifest; the working folder goes."""
        self._seal()
        state = self.state
        names = sorted(state.labels)
        number = {name: i for i, name in enumerate(names)}
        shards = []
        for shard in state.shards:
            numbers = None
            if names:
                numbers = tuple(
                    tuple(sorted(number[state.labels[i]] for i in one))
                    for one in shard.labels or ((),) * shard.samples
                )
            shards.append(dataclasses.replace(shard, labels=numbers))
        manifest = Manifest(
            str(self._layout.folder),
            tuple(shards),
            state.settings,
            tuple(names),
            state.item,
            state.skipped,
        )
        with write_atomically(self._layout.manifest) as file:
            file.write(manifest.to_bytes())
        shutil.rmtree(self._layout.work)
        return manifest


def _skip_record(item: Input, skip: Skip, done: tuple[int, float] | None) -> dict[str, Any]:
    """A line of ``skipped.jsonl``: what, why, and what a retry would do."""
    record: dict[str, Any] = {"source": item.source, **skip._asdict()}
    if skip.reason not in FINAL_REASONS:
        retry = item.retry(skip.start) if skip.start is not None else item.retry(done=done)
        record["retry"] = retry.to_json()
    return record


def retries(layout: Layout, state: State) -> list[Input]:
    """Inputs of ``skipped.jsonl`` to be tried again; their lines are taken out of it."""
    again: dict[str, Input] = {}
    kept = []
    for record in read_lines(layout.skipped):
        if "retry" not in record:
            kept.append(_line(record))
            continue
        item = Input.from_json(record["retry"])
        again[item.task] = again[item.task].joined(item) if item.task in again else item
    with write_atomically(layout.skipped) as file:
        file.write(b"".join(kept))
    state.skipped_bytes = layout.skipped.stat().st_size
    state.skipped = len(kept)
    state.save(layout)
    return list(again.values())


def merge_parts(folder: Path, parts: int) -> Manifest | None:
    """Writes the manifest of all parts' shards once every part's own is there.

    Returns:
        The whole data set's manifest; None while parts are missing.
    """
    layouts = [Layout(folder, part=(i + 1, parts)) for i in range(parts)]
    if not all(layout.manifest.exists() for layout in layouts):
        return None
    manifests = []
    for layout in layouts:
        record = json.loads(layout.manifest.read_bytes())
        manifests.append(Manifest._from_record(str(folder), str(layout.manifest), record))
    whole = merge(str(folder), manifests)
    whole_layout = Layout(folder)
    with write_atomically(whole_layout.skipped) as file:
        for layout in layouts:
            file.write(layout.skipped.read_bytes() if layout.skipped.exists() else b"")
    with write_atomically(whole_layout.manifest) as file:
        file.write(whole.to_bytes())
    return whole
