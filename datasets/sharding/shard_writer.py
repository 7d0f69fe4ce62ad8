"""Shard writer: joins parts into shards in the order of the plan, safe against kills.

Each step is written to a temporary file and renamed, so a rerun reads either the new state or the
earlier one.
"""

import dataclasses
import hashlib
import logging
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from cavmae.common.files import flush_folder, write_atomically
from cavmae.common.json_files import JSONError, json_bytes, read_json, typed, value_as
from cavmae.datasets.format.manifest import Manifest, ShardEntry
from cavmae.datasets.format.shards import END
from cavmae.datasets.sharding.input_plan import Plan
from cavmae.datasets.sharding.job_state import InputLayout, State, json_line, skip_record
from cavmae.datasets.sharding.messages import Skip, Written
from cavmae.datasets.sharding.settings import SHARD_BYTES
from cavmae.datasets.sharding.uploads import Uploads

log = logging.getLogger("cavmae")
WAITING_BYTES = 4 * SHARD_BYTES  # of finished inputs that wait for an earlier one
UNSAVED = 1000  # inputs without a sample after which the state is saved
TASK = re.compile(r"[0-9a-f]{12}-\d{1,9}")


class _Record(NamedTuple):
    """Record of an input that is done.

    Attributes:
        written: samples in its part files, one file after the other.
        skips: its clips without a sample.
        stretches: number of part files; 0: it was one task, with one file.
    """

    written: list[Written]
    skips: list[Skip]
    stretches: int

    @property
    def bytes(self) -> int:
        return sum(clip.size for clip in self.written)


class Assembler:
    """Writes finished inputs into shards, in order; ``uploads`` takes the sealed ones, if any."""

    def __init__(
        self,
        layout: InputLayout,
        plan: Plan,
        state: State,
        samples: int,
        size: float,
        uploads: Uploads | None = None,
    ):
        self._layout = layout
        self._uploads = uploads
        self._plan = plan
        self.state = state
        self._samples, self._bytes = samples, size
        self._records: dict[int, _Record] = {}
        self._waiting = 0  # bytes of those
        self._position = state.item, state.sample
        self._skips: list[bytes] = []
        self._used: list[Path] = []  # of inputs that are in shards
        self._file: IO[bytes] | None = None
        self._new_shard()

    def _new_shard(self) -> None:
        self._hash = hashlib.sha256()
        self._size = 0
        self._labels: list[tuple[int, ...]] = []

    def load_finished(self) -> None:
        """Load the records of inputs that an earlier run finished but did not assemble."""
        records = self._layout.work_folder.glob("*.json")
        tasks = [path.stem for path in records if TASK.fullmatch(path.stem)]
        for number, task in zip(self._plan.numbers(tasks), tasks, strict=True):
            if number < self.state.item or (item := self._plan.items[number]).task != task:
                continue
            path = self._layout.part_record(item)
            try:
                record = read_json(path)
                written = value_as(list[Written], typed(record, "written", list), "written")
                skips = value_as(list[Skip], typed(record, "skips", list), "skips")
                stretches = typed(record, "stretches", int)
                if any(clip.size < 1 for clip in written):
                    raise ValueError("a sample has a size below 1")
            except (JSONError, ValueError) as error:
                log.warning("%s; its input is read again.", error)
                path.unlink()
            else:
                self._keep(number, _Record(written, skips, stretches))

    @property
    def next_item(self) -> int:
        """Number of the input to assemble next."""
        return self._position[0]

    def awaited(self) -> int | None:
        """Number of the input for which other new ones have to wait; None: for none.

        With uploads the disk is to hold a few shards, not all that is finished after a slow input.
        """
        held_up = self._uploads is not None and self._waiting > WAITING_BYTES
        return self.next_item if held_up else None

    def finished(self) -> set[int]:
        """Numbers of the inputs that are finished and not assembled."""
        return {*self._records}

    def finish_item(
        self, number: int, messages: Sequence[Written | Skip], stretches: int = 0
    ) -> None:
        """Record that an input is done; its part files hold the samples written.

        Args:
            stretches: number of part files; 0: it was one task, with one file.
        """
        written = [m for m in messages if isinstance(m, Written)]
        skips = [m for m in messages if isinstance(m, Skip)]
        record = _Record(written, skips, stretches)
        with write_atomically(self._layout.part_record(self._plan.items[number])) as file:
            file.write(json_bytes(record._asdict()))
        self._keep(number, record)

    def _keep(self, number: int, record: _Record) -> None:
        self._records[number] = record
        self._waiting += record.bytes

    def _drop(self, number: int) -> None:
        self._waiting -= self._records.pop(number).bytes

    def advance(self, wait: bool = False) -> int | None:
        """Assemble the finished inputs that are next in the plan.

        Args:
            wait: for uploads; else it ends early while sealed shards wait for theirs.

        Returns:
            Number of an input whose part is damaged on disk and has to be extracted again; None
            if there is none.
        """
        if not self._has_room(wait):
            return None
        while self._position[0] in self._records:
            number, first = self._position
            item = self._plan.items[number]
            written, skips, stretches = self._records[number]
            files = self._layout.part_files(item, stretches)
            for place, blocks in _read_parts(files, written, first):
                if blocks is None:
                    self._drop(number)
                    self._layout.part_record(item).unlink()
                    return number
                if self._full(len(blocks)):
                    if not self._has_room(wait):
                        return None
                    self._seal()
                self._append(blocks, item.labels)
                self._position = number, place + 1
            done = (written[-1].clip, written[-1].start) if written else None
            for skip in skips:
                self._skips.append(json_line(skip_record(item, skip, done)))
            self._used += [*files, self._layout.part_record(item)]
            self._drop(number)
            self._position = number + 1, 0
            if self._file is None and self._position[0] - self.state.item >= UNSAVED:
                self._seal()
        return None

    def _has_room(self, wait: bool) -> bool:
        return self._uploads is None or self._uploads.has_room(wait)

    def _full(self, size: int) -> bool:
        count = len(self._labels)
        return count >= self._samples or (count > 0 and self._size + size + len(END) > self._bytes)

    def _append(self, blocks: bytes, labels: Sequence[str]) -> None:
        if self._file is None:
            self._file = (self._layout.work_folder / "shard.tmp").open("wb")
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
        """Rename the shard, if one is open, to its final name and save the state."""
        sealed = self._file is not None
        if self._file is not None:
            self._write(END)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
            path = self._layout.shard(len(self.state.shards))
            (self._layout.work_folder / "shard.tmp").replace(path)
            flush_folder(path.parent)
            self.state.shards.append(
                ShardEntry(
                    path.name,
                    len(self._labels),
                    self._size,
                    self._hash.hexdigest(),
                    tuple(self._labels) if any(self._labels) else None,
                )
            )
            self._new_shard()
        self._append_skips()
        self.state.item, self.state.sample = self._position
        self.state.save(self._layout)
        if sealed and self._uploads is not None:
            self._uploads.add(self.state.shards[-1])
        for path in self._used:
            path.unlink(missing_ok=True)
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
        """Seal the last shard and write the manifest."""
        self._seal()
        state = self.state
        names = sorted(state.labels)
        number = {name: i for i, name in enumerate(names)}
        shards = []
        for shard in state.shards:
            numbers = None
            if names:
                numbers = tuple(
                    tuple(sorted(number[state.labels[i]] for i in of_sample))
                    for of_sample in shard.labels or ((),) * shard.samples
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
        return manifest


def _read_parts(
    files: Sequence[Path], written: Sequence[Written], first: int
) -> Iterator[tuple[int, bytes | None]]:
    """Read samples of part files from number ``first`` on; None for a damaged sample."""
    rest = iter(files)
    skipped = sum(clip.size for clip in written[:first])
    number = first
    while number < len(written):
        path = next(rest, None)
        whole = path.stat().st_size if path is not None and path.exists() else 0
        if path is None:
            yield number, None
            return
        if skipped >= whole:
            skipped -= whole
            continue
        with path.open("rb") as file:
            file.seek(skipped)
            skipped = 0
            while file.tell() < whole and number < len(written):
                blocks = file.read(min(whole, written[number].size))
                good = zlib.crc32(blocks) == written[number].crc
                yield number, blocks if good else None
                number += 1
