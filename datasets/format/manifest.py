"""``manifest.json``: which shards make a data set, and how to tell that they are unaltered."""

import dataclasses
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from cavmae.common import files
from cavmae.common.errors import ShardError
from cavmae.common.json_files import JSONError, json_bytes, read_json, typed
from cavmae.datasets.format.sample import SCHEMA

NAME = "manifest.json"
LIMIT_BYTES = 256 << 20  # two million samples with labels have 20 MB
REMEDY = "copy it again, or make the data set anew"
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SHARD_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}\.tar", re.ASCII)


@dataclasses.dataclass(frozen=True)
class ShardEntry:
    """One shard.

    Attributes:
        file: name inside the data set's folder.
        samples: number of samples.
        bytes: size of the file.
        sha256: of the file.
        labels: for each sample the numbers of its labels in ``Manifest.labels``; None without any.
    """

    file: str
    samples: int
    bytes: int
    sha256: str
    labels: tuple[tuple[int, ...], ...] | None = None

    @classmethod
    def from_record(cls, record: Any) -> "ShardEntry":
        """A shard as JSON has it.

        Raises:
            ValueError: it cannot be one.
        """
        file, sha256 = typed(record, "file", str), typed(record, "sha256", str)
        samples, size = _count(record, "samples"), _count(record, "bytes")
        # A name in a manifest must not lead out of the folder.
        if not _SHARD_NAME.fullmatch(file) or not _HASH.fullmatch(sha256):
            raise ValueError(f"it names a shard {file[:200]!r} that cannot be one")
        labels = None
        if record.get("labels") is not None:
            labels = tuple(map(_label_numbers, typed(record, "labels", list)))
        # The header of a member alone has 512 bytes.
        if not 1 <= samples <= size // 512 or (labels is not None and len(labels) != samples):
            raise ValueError(f"shard {file} has no sensible counts")
        return cls(file, samples, size, sha256, labels)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A data set.

    Attributes:
        folder: path or URL of the folder the shards lie in.
        shards: in order.
        settings: what the samples were made with.
        labels: class names, sorted.
        inputs: how many inputs were turned into samples or skipped.
        skipped: lines of ``skipped.jsonl``.
    """

    folder: str
    shards: tuple[ShardEntry, ...]
    settings: dict[str, Any]
    labels: tuple[str, ...] = ()
    inputs: int = 0
    skipped: int = 0

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    def path_of(self, shard: ShardEntry) -> str:
        return files.join(self.folder, shard.file)

    def sample_labels(self, shard: ShardEntry) -> list[tuple[str, ...]]:
        """Label names of each sample of a shard."""
        if shard.labels is None:
            return [()] * shard.samples
        return [tuple(self.labels[i] for i in numbers) for numbers in shard.labels]

    def to_bytes(self) -> bytes:
        shards = []
        for shard in self.shards:
            record = dataclasses.asdict(shard)
            if shard.labels is None:
                del record["labels"]
            shards.append(record)
        record = {
            "schema": SCHEMA,
            "settings": self.settings,
            "labels": list(self.labels),
            "inputs": self.inputs,
            "skipped": self.skipped,
            "samples": self.samples,
            "shards": shards,
        }
        return json_bytes(record, indent=1, sort_keys=True)

    @classmethod
    def load(cls, location: str | Path) -> "Manifest":
        """Reads the manifest of a data set.

        Args:
            where: the folder (path or URL), or the manifest itself.

        Raises:
            ShardError: there is none, or it is not one of ours.
        """
        text = str(location).rstrip("/")
        folder = text[: -len(NAME)].rstrip("/") or "." if text.endswith(NAME) else text
        name = files.join(folder, NAME)
        try:
            record = read_json(name, remedy=REMEDY, limit_bytes=LIMIT_BYTES)
        except FileNotFoundError as error:
            raise ShardError(
                f"There is no {name}: {folder} is no data set, or `cavmae shard` has not finished "
                "it; run that again with the same words."
            ) from error
        except JSONError as error:
            raise ShardError(f"Cannot read the data set: {error}") from error
        return cls.from_record(folder, name, record)

    @classmethod
    def from_record(cls, folder: str, name: str, record: Any) -> "Manifest":
        found = record.get("schema") if isinstance(record, dict) else None
        if found != SCHEMA or isinstance(found, bool):
            raise ShardError(
                f"{name} has schema {found!r}; this program knows {SCHEMA}. "
                "Use the version of cavmae that made it, or make the data set anew."
            )
        try:
            shards = tuple(map(ShardEntry.from_record, typed(record, "shards", list)))
            labels = typed(record, "labels", list)
            if not all(isinstance(label, str) for label in labels):
                raise ValueError("a label is not a text")
            manifest = cls(
                folder=folder,
                shards=shards,
                settings=typed(record, "settings", dict),
                labels=tuple(labels),
                inputs=_count(record, "inputs"),
                skipped=_count(record, "skipped"),
            )
        except ValueError as error:
            raise ShardError(f"{name} is damaged ({error}): {REMEDY}.") from error
        numbers = {n for shard in shards for one in shard.labels or () for n in one}
        if numbers and not 0 <= min(numbers) <= max(numbers) < len(manifest.labels):
            raise ShardError(f"{name} is damaged: it has labels without a name.")
        if len({shard.file for shard in shards}) != len(shards):
            raise ShardError(f"{name} is damaged: it names a shard twice.")
        return manifest

    def verify(
        self, method: Literal["size", "hash"], shards: Sequence[ShardEntry] | None = None
    ) -> None:
        """Checks that shards are there and unaltered.

        Remote shards are checked by size here, and by hash whenever they are copied.

        Args:
            how: ``size`` asks the file system only; ``hash`` reads every byte.
            shards: some of them; None: all.

        Raises:
            ShardError: naming the first shard that is not as it was.
        """
        chosen = self.shards if shards is None else shards
        with ThreadPoolExecutor(max_workers=4) as pool:
            for problem in pool.map(lambda shard: self.problem_with(shard, method), chosen):
                if problem is not None:
                    raise ShardError(f"{problem} Copy it again, or make the data set anew.")

    def problem_with(self, shard: ShardEntry, method: Literal["size", "hash"]) -> str | None:
        """What is wrong with a shard, as a sentence; None if nothing is."""
        name = self.path_of(shard)
        try:
            size = files.size_of(name)
            if size != shard.bytes:
                return f"Shard {name} has {size} bytes, the manifest says {shard.bytes}."
            if method == "hash" and not files.is_url(name):
                found = files.sha256_of(Path(name))
                if found != shard.sha256:
                    return f"Shard {name} was altered: its SHA-256 is not the manifest's."
        except FileNotFoundError:
            return f"Shard {name} is missing."
        except OSError as error:
            return f"Cannot read shard {name}: {error}."
        return None


def _label_numbers(labels: Any) -> tuple[int, ...]:
    if not isinstance(labels, list) or not all(type(number) is int for number in labels):
        raise ValueError("the labels of a sample are not a list of whole numbers")
    return tuple(labels)


def _count(record: Any, name: str) -> int:
    value: int = typed(record, name, int)
    if value < 0:
        raise ValueError(f"field {name} is {value}")
    return value


def merge(folder: str, parts: Sequence[Manifest]) -> Manifest:
    """One data set of the parts that several machines made.

    Raises:
        ShardError: the parts were made with different settings.
    """
    labels = sorted({label for part in parts for label in part.labels})
    number = {label: i for i, label in enumerate(labels)}
    shards: list[ShardEntry] = []
    for part in parts:
        if part.settings != parts[0].settings:
            raise ShardError(
                f"The parts in {folder} were made with different settings; make them anew "
                "with the same ones."
            )
        for shard in part.shards:
            if labels:
                numbers = tuple(
                    tuple(sorted(number[name] for name in names))
                    for names in part.sample_labels(shard)
                )
                shard = dataclasses.replace(shard, labels=numbers)
            shards.append(shard)
    return Manifest(
        folder,
        tuple(shards),
        parts[0].settings,
        tuple(labels),
        sum(part.inputs for part in parts),
        sum(part.skipped for part in parts),
    )
