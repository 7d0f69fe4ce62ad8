"""Job state of sharding: the files of a run and its progress, read by a rerun.

A folder under construction holds ``inputs.jsonl`` (the plan: only ever appended to), finished
shards, and ``.work/`` with parts (a file of samples for each input, or for each of its stretches),
``shards.jsonl`` (the sealed shards, with the labels of their samples: only ever appended to) and
``state.json`` (how far they reach into the plan).
"""

import dataclasses
import functools
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from cavmae.common import locks
from cavmae.common.errors import CavmaeError
from cavmae.common.files import CHUNK, flush_folder, write_atomically
from cavmae.common.json_files import json_bytes, parse_json, read_json, value_as
from cavmae.datasets.format.manifest import LIMIT_BYTES, NAME, Manifest, ShardEntry, merge
from cavmae.datasets.sharding.inputs import Input
from cavmae.datasets.sharding.messages import Skip

ARRAY = "array.json"
SHARES = "shares.json"
ANEW = "choose another --out folder, or remove this one"
FINAL_REASONS = frozenset({"too_short", "bad_address"})  # trying again cannot help


@dataclasses.dataclass(frozen=True)
class InputLayout:
    """File names of a data set, or of one part of N of it.

    Args:
        folder: of the data set.
        name: prefix of the shards' file names.
        part: (I, N) if this machine writes part I of N.
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
    def uploads(self) -> Path:
        return self.folder / f"uploads{self.suffix}.jsonl"

    @property
    def work_folder(self) -> Path:
        return self.folder / f".work{self.suffix}"

    @property
    def state(self) -> Path:
        return self.work_folder / "state.json"

    @property
    def sealed(self) -> Path:
        return self.work_folder / "shards.jsonl"

    @property
    def progress(self) -> str:
        """Name of the record of the uploads at a store."""
        return f"progress{self.suffix}.json"

    def read_manifest(self) -> Manifest:
        """Read the manifest. Raises CavmaeError."""
        record = read_json(self.manifest, limit_bytes=LIMIT_BYTES)
        return Manifest.from_record(str(self.folder), str(self.manifest), record)

    def shard(self, number: int) -> Path:
        return self.folder / f"{self.name}{self.suffix}-{number:06d}.tar"

    def part_file(self, item: Input) -> Path:
        return self.work_folder / f"{item.task}.part"

    def stretch_file(self, item: Input, number: int) -> Path:
        return self.work_folder / f"{item.task}.{number}.part"

    def part_files(self, item: Input, stretches: int) -> list[Path]:
        """Files of an input's samples, in order; of 0 stretches, the one of the whole input."""
        if not stretches:
            return [self.part_file(item)]
        return [self.stretch_file(item, number) for number in range(stretches)]

    def part_record(self, item: Input) -> Path:
        return self.work_folder / f"{item.task}.json"


def locked(layout: InputLayout) -> AbstractContextManager[None]:
    """Lock a data set's folder for this process.

    Raises:
        CavmaeError: another process holds the lock.
    """
    return locks.locked(
        layout.work_folder,
        f"Another `cavmae shard` is writing to {layout.folder}; wait for it to end.",
    )


def copy_prefix(part: Path) -> str:
    """Prefix of the folders of copies for a part file, which a killed worker leaves."""
    return f"{part.stem}.input-"


def remove_copies(folder: Path, prefix: str) -> None:
    """Remove the folders that begin with a prefix: what killed workers and programs left."""
    for left in folder.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield records of a JSON-lines file, none if there is no file; see :func:`read_lines_at`."""
    for _, record in read_lines_at(path):
        yield record


def read_lines_at(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield records and their positions in bytes, without a last line that a kill cut off.

    Raises:
        CavmaeError: another line is damaged.
    """
    if not path.exists():
        return
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            if line != b"\n":
                record = parse_json(line, f"{path}, line {number}", remedy=ANEW)
                if not isinstance(record, dict):
                    raise CavmaeError(f"{path}, line {number} is not a JSON object: {ANEW}.")
                yield offset, record
            offset += len(line)


def count_lines(path: Path) -> int:
    """Number of whole lines of a file, 0 if there is none."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(functools.partial(file.read, CHUNK), b""))


def remove_work(layout: InputLayout) -> None:
    """Empty the work folder of a complete data set, whose lock this process holds.

    A kill on the way leaves a whole state, or none, where the manifest is what a rerun loads. The
    marker of the lock stays until the lock is released: without it another process could begin.
    """
    layout.state.unlink(missing_ok=True)  # before the list of shards that it counts
    flush_folder(layout.work_folder)
    for path in layout.work_folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != locks.MARKER:
            path.unlink(missing_ok=True)


def parse_input(record: Any, path: Path) -> Input:
    """Input of a JSON record of a file. Raises CavmaeError."""
    try:
        item: Input = value_as(Input, record, "an input")
    except ValueError as error:
        raise CavmaeError(f"{path} is damaged ({error}): {ANEW}.") from error
    return item


def json_line(record: dict[str, Any]) -> bytes:
    """Line of a JSON-lines file, with sorted keys."""
    return json_bytes(record, sort_keys=True)


@dataclasses.dataclass
class State:
    """Progress of the sealed shards through the plan.

    Attributes:
        settings: of the samples.
        item, sample: numbers of the next input of the plan, and of its next sample, to write.
        shards: sealed shards; their labels are indices into ``labels``.
        labels: class names in order of appearance.
        skipped_bytes: valid length of ``skipped.jsonl``.
        skipped: valid lines of it.
        sealed_bytes: valid length of ``shards.jsonl``.
        sealed: valid lines of it.
        samples: of those shards.
    """

    settings: dict[str, Any]
    item: int = 0
    sample: int = 0
    shards: list[ShardEntry] = dataclasses.field(default_factory=list)
    labels: list[str] = dataclasses.field(default_factory=list)
    skipped_bytes: int = 0
    skipped: int = 0
    sealed_bytes: int = 0
    sealed: int = 0
    samples: int = 0

    @classmethod
    def load(cls, layout: InputLayout, settings: dict[str, Any]) -> "State":
        """Load the state of an earlier run in this folder, or a new one.

        Raises:
            CavmaeError: the earlier run had other settings, or its state is damaged.
        """
        state = cls(settings)
        if layout.state.exists():
            state = cls._read(layout)
        elif layout.manifest.exists():
            manifest = layout.read_manifest()
            state = cls(
                manifest.settings,
                manifest.inputs,
                0,
                list(manifest.shards),
                list(manifest.labels),
                0,
                manifest.skipped,
            )
        # A kill leaves lines that are not counted yet (they are written again), or, in
        # drop_retried, fewer than were counted.
        counted, state.skipped, state.skipped_bytes = state.skipped, 0, 0
        if layout.skipped.exists():
            with layout.skipped.open("rb") as file:
                for _, line in zip(range(counted), file, strict=False):
                    state.skipped += 1
                    state.skipped_bytes += len(line)
            os.truncate(layout.skipped, state.skipped_bytes)
        check_settings(str(layout.folder), state.settings, settings)
        return state

    @classmethod
    def _read(cls, layout: InputLayout) -> "State":
        path = layout.state
        record = read_json(path, remedy=ANEW)
        try:
            state = cls.from_record(record)
            path = layout.sealed
            lines = path.read_bytes()[: state.sealed_bytes].splitlines() if state.sealed else []
            records = [parse_json(line, f"{path}, line {n}") for n, line in enumerate(lines, 1)]
            state.take_shards(records)
            if len(state.shards) != state.sealed:
                raise ValueError(f"it has {len(state.shards)} shards, not {state.sealed}")
        except (OSError, ValueError) as error:
            raise CavmaeError(f"{path} is damaged ({error}): {ANEW}.") from error
        return state

    @classmethod
    def from_record(cls, record: Any) -> "State":
        """State of its JSON record, without shards. Raises ValueError."""
        if not isinstance(record, dict):
            raise ValueError("it is not a JSON object")
        if "shards" in record:
            raise ValueError("it is of a former version")
        state: State = value_as(cls, {**record, "shards": []}, "it")
        counts = (
            state.item, state.sample, state.skipped, state.skipped_bytes, state.sealed,
            state.sealed_bytes, state.samples,
        )  # fmt: skip
        if min(counts) < 0:
            raise ValueError("a count is negative")
        return state

    def take_shards(self, records: list[Any]) -> None:
        """Sets the shards, of their JSON records. Raises ValueError."""
        self.shards = list(map(ShardEntry.from_record, records))
        numbers = {
            n for shard in self.shards for of_sample in shard.labels or () for n in of_sample
        }
        if numbers and not 0 <= min(numbers) <= max(numbers) < len(self.labels):
            raise ValueError("it has labels without a name")

    def to_record(self) -> dict[str, Any]:
        """JSON record, without shards."""
        return {k: v for k, v in vars(self).items() if k != "shards"}

    def save(self, layout: InputLayout) -> None:
        """Append the shards that are new, then write the rest.

        Labels of millions of samples are not written again with each shard.
        """
        if fresh := self.shards[self.sealed :]:
            with layout.sealed.open("ab") as file:
                file.truncate(self.sealed_bytes)
                file.seek(0, os.SEEK_END)
                # Not dataclasses.asdict, which takes seconds for millions of samples' labels.
                file.write(b"".join(json_bytes(vars(shard)) for shard in fresh))
                file.flush()
                os.fsync(file.fileno())
                self.sealed_bytes = file.tell()
            self.sealed = len(self.shards)
            self.samples += sum(shard.samples for shard in fresh)
        with write_atomically(layout.state) as file:
            file.write(json_bytes(self.to_record()))


def check_settings(place: str, recorded: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raises CavmaeError if the samples of a data set were made with other settings.

    Args:
        place: of the data set.
        recorded: settings of its samples.
        settings: of this run.
    """
    for name, value in settings.items():
        if recorded.get(name) != value:
            raise CavmaeError(
                f"{place} holds samples made with {name} {recorded.get(name)!r}, not {value!r}; "
                "choose another --out folder or the earlier setting."
            )


def skip_record(item: Input, skip: Skip, done: tuple[int, float] | None) -> dict[str, Any]:
    """Record of ``skipped.jsonl``: the source, the reason, and the input of a retry."""
    record: dict[str, Any] = {"source": item.source, **skip._asdict()}
    if skip.clips == 1:
        del record["clips"], record["last"]
    if skip.reason not in FINAL_REASONS:
        retry = item.retry(skip.start, done if skip.start is None else None, record.get("last"))
        record["retry"] = retry.to_json()
    return record


def pending_retries(layout: InputLayout) -> list[Input]:
    """Inputs for `--retry-skipped`: failures in ``skipped.jsonl`` that a retry may mend."""
    retries: dict[str, Input] = {}
    for record in read_lines(layout.skipped):
        if "retry" in record:
            item = parse_input(record["retry"], layout.skipped)
            retries[item.task] = (
                retries[item.task].merge_retry(item) if item.task in retries else item
            )
    return list(retries.values())


def drop_retried(layout: InputLayout, state: State) -> None:
    """Remove the records of :func:`pending_retries`, which the plan holds now."""
    state.skipped = 0
    with write_atomically(layout.skipped) as file:
        for record in read_lines(layout.skipped):
            if "retry" not in record:
                file.write(json_line(record))
                state.skipped += 1
    state.skipped_bytes = layout.skipped.stat().st_size
    state.save(layout)


def complete_manifest(layout: InputLayout) -> Manifest | None:
    """Manifest of a data set or part; None: inputs are planned that it does not have.

    That of an earlier run stays while inputs are added, or skipped ones are tried again.

    Raises:
        CavmaeError: it is damaged.
    """
    if not layout.manifest.exists():
        return None
    manifest = layout.read_manifest()
    return manifest if manifest.inputs == count_lines(layout.plan) else None


def merge_parts(folder: Path, parts: int, place: str | None = None) -> Manifest | None:
    """Write the manifest of the whole data set once every part has all its inputs.

    Parts that end at the same time may all join. Each reads the parts again after it has written,
    until the files are what it reads: else an older manifest of another part could remain.

    Args:
        folder: of the parts' plans, manifests and lists of what was skipped.
        parts: their number.
        place: of the data set, for errors; by default the folder.

    Returns:
        The whole data set's manifest; None while a part is not complete.
    """
    layouts = [InputLayout(folder, part=(i + 1, parts)) for i in range(parts)]
    joined = InputLayout(folder)
    while True:
        manifests = []
        for layout in layouts:
            manifest = complete_manifest(layout)
            if manifest is None:
                return None
            manifests.append(manifest)
        whole = merge(place or str(folder), manifests)
        skips = [layout.skipped.read_bytes() for layout in layouts if layout.skipped.exists()]
        files = {joined.skipped: b"".join(skips), joined.manifest: whole.to_bytes()}
        old = [path for path in files if not path.exists() or path.read_bytes() != files[path]]
        if not old:
            return whole
        for path in old:
            with write_atomically(path) as file:
                file.write(files[path])
