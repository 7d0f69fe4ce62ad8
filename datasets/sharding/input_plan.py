"""Plan of a sharding run: the inputs in their order, kept in ``inputs.jsonl``.

The file is the only copy: a plan of a million inputs takes 16 MB of a process, where the inputs
themselves take hundreds.
"""

import shutil
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from cavmae.common.errors import CavmaeError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import parse_json
from cavmae.datasets.sharding.inputs import FileIdentities, Input
from cavmae.datasets.sharding.job_state import (
    InputLayout,
    json_line,
    parse_input,
    read_lines_at,
)

ATTEMPTS = 1 << 16  # that the keys of a task tell apart


class PlannedInputs:
    """Inputs of a plan's file, each read when it is needed.

    Args:
        path: of the file.
        offsets: position of each input's line, in bytes; may grow.
    """

    def __init__(self, path: Path, offsets: Sequence[int]):
        self._path, self._offsets = path, offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, number: int) -> Input:
        with self._path.open("rb") as file:
            file.seek(self._offsets[number])
            return parse_input(parse_json(file.readline(), str(self._path)), self._path)

    def __iter__(self) -> Iterator[Input]:
        for _, record in read_lines_at(self._path):
            yield parse_input(record, self._path)


class Plan:
    """Ordered list of all inputs, which is only ever appended to.

    Attributes:
        items: the inputs.

    Raises:
        CavmaeError: the file is damaged.
    """

    def __init__(self, layout: InputLayout):
        self._path = layout.plan
        self._keys, self._offsets = array("Q"), array("Q")
        for offset, record in read_lines_at(self._path):
            self._keys.append(_key(parse_input(record, self._path).task))
            self._offsets.append(offset)
        self.items = PlannedInputs(self._path, self._offsets)

    def numbers(self, tasks: Sequence[str]) -> list[int]:
        """Number of each task's input; -1: it is not planned."""
        wanted = np.fromiter(map(_key, tasks), np.uint64, len(tasks))
        if not self._keys:
            return [-1] * len(tasks)
        known = np.frombuffer(self._keys, np.uint64)
        order = np.argsort(known, kind="stable")
        places = np.searchsorted(known, wanted, sorter=order)
        numbers = order[np.minimum(places, len(order) - 1)]
        return np.where(known[numbers] == wanted, numbers, -1).tolist()

    def first_outside(self, items: Sequence[Input]) -> Input | None:
        """First planned input that is not among some inputs; None: all are."""
        named = np.fromiter((_key(item.task) // ATTEMPTS for item in items), np.uint64, len(items))
        planned = np.frombuffer(self._keys, np.uint64) if self._keys else np.zeros(0, np.uint64)
        outside = np.flatnonzero(~np.isin(planned // np.uint64(ATTEMPTS), named))
        return self.items[int(outside[0])] if outside.size else None

    def extend(self, items: Sequence[Input]) -> int:
        """Add the inputs that are not planned yet under any name of their files.

        Returns:
            Number of inputs that are added.

        Raises:
            CavmaeError: an input is planned already with other labels or masks, or two inputs have
                the same hash.
        """
        fresh = self._unplanned(items)
        if fresh and len(self.items):
            identities = FileIdentities()
            wanted = [identities.of(item) for item in fresh]
            among = set(wanted)
            planned = {x for item in self.items if (x := identities.of(item)) in among}
            fresh = [item for item, x in zip(fresh, wanted, strict=True) if x not in planned]
        return self._append(fresh)

    def extend_by_retries(self, items: Sequence[Input]) -> int:
        """Add retries of planned inputs that are not planned yet; like :meth:`extend`."""
        return self._append(self._unplanned(items))

    def _unplanned(self, items: Sequence[Input]) -> list[Input]:
        """Inputs whose tasks are not planned; the others have to be as they were."""
        numbers = self.numbers([item.task for item in items])
        fresh = [item for item, number in zip(items, numbers, strict=True) if number < 0]
        if len(fresh) == len(items):
            return fresh
        with self._path.open("rb") as file:
            for item, number in zip(items, numbers, strict=True):
                if number < 0:
                    continue
                file.seek(self._offsets[number])
                # Lines are compared first, since parsing takes several times as long.
                if file.readline() != json_line(item.to_json()):
                    self._check_unchanged(self.items[number], item)
        return fresh

    def _check_unchanged(self, planned: Input, item: Input) -> None:
        if FileIdentities().of(planned) != FileIdentities().of(item):
            _refuse_equal_hashes(planned, item)
        if planned != item:
            raise CavmaeError(
                f"{item.source} is in {self._path} with other labels or masks; choose another "
                "--out folder for the changed list."
            )

    def _append(self, fresh: Sequence[Input]) -> int:
        if not fresh:
            return 0
        keys = np.fromiter((_key(item.task) for item in fresh), np.uint64, len(fresh))
        order = np.argsort(keys, kind="stable")
        if (equal := np.flatnonzero(np.diff(keys[order]) == 0)).size:
            _refuse_equal_hashes(*(fresh[n] for n in order[equal[0] : equal[0] + 2]))
        with write_atomically(self._path) as file:
            if self._offsets:
                with self._path.open("rb") as old:
                    shutil.copyfileobj(old, file)
            for item in fresh:
                self._offsets.append(file.tell())
                file.write(json_line(item.to_json()))
        self._keys.extend(keys.tolist())
        return len(fresh)


def _key(task: str) -> int:
    """Key of a task in 64 bits: the hash of its input, and the attempt."""
    identity, _, attempt = task.partition("-")
    return int(identity, 16) * ATTEMPTS + int(attempt) % ATTEMPTS


def _refuse_equal_hashes(first: Input, second: Input) -> NoReturn:
    raise CavmaeError(
        f"{first.source} and {second.source} have the same hash, which names their samples: rename "
        "one of them, or leave one out."
    )
