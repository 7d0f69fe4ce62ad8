"""Manifest of a data set, ``manifest.json``: its shards with their sizes and hashes."""

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
REMEDY = "copy it again, or run `cavmae shard` again"
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SHARD_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}\.tar", re.ASCII)


@dataclasses.dataclass(frozen=True)
class ShardEntry:
    """Entry of a shard in the manifest.

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
        """Parses an entry from its JSON record.

        Raises:
            ValueError: a field is missing, or its value is out of range.
        """
        file, sha256 = typed(record, "file", str), typed(record, "sha256", str)
        samples, size = _count(record, "samples"), _count(record, "bytes")
        # A name in a manifest must not lead out of the folder.
        if not _SHARD_NAME.fullmatch(file) or not _HASH.fullmatch(sha256):
            raise ValueError(f"shard {file[:200]!r} has an invalid name or SHA-256")
        labels = None
        if record.get("labels") is not None:
            labels = tuple(map(_label_numbers, typed(record, "labels", list)))
        # A sample has at least one member, whose header has 512 bytes.
        if not 1 <= samples <= size // 512 or (labels is not None and len(labels) != samples):
            raise ValueError(f"shard {file} has counts that contradict its size or labels")
        return cls(file, samples, size, sha256, labels)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A data set: its shards, settings and labels.

    Attributes:
        folder: path or URL of the folder of the shards.
        shards: entries, in order.
        settings: settings of `cavmae shard` for the samples.
        labels: class names, sorted.
        inputs: number of inputs, skipped ones included.
        skipped: number of lines of ``skipped.jsonl``.
    """

    folder: str
    shards: tuple[ShardEntry, ...]
    settings: dict[str, Any]
    labels: tuple[str, ...] = ()
    inputs: int = 0
    skipped: int = 0

    @property
    def samples(self) -> int:
        """Number of samples."""
        return sum(shard.samples for shard in self.shards)

    def path_of(self, shard: ShardEntry) -> str:
        """Path or URL of a shard."""
        return files.join(self.folder, shard.file)

    def sample_labels(self, shard: ShardEntry) -> list[tuple[str, ...]]:
        """Label names of each sample of a shard."""
        if shard.labels is None:
            return [()] * shard.samples
        return [tuple(self.labels[i] for i in numbers) for numbers in shard.labels]

    def to_bytes(self) -> bytes:
        """Encodes the manifest as JSON."""
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
            location: the folder (path or URL), or the manifest itself.

        Raises:
            ShardError: the manifest is missing or damaged, or has another schema.
        """
        text = str(location).rstrip("/")
        folder = text[: -len(NAME)].rstrip("/") or "." if text.endswith(NAME) else text
        name = files.join(folder, NAME)
        try:
            record = read_json(name, remedy=REMEDY, limit_bytes=LIMIT_BYTES)
        except FileNotFoundError as error:
            raise ShardError(
                f"There is no {name}: {folder} is no data set, or `cavmae shard` has not finished "
                "it; run that again with the same arguments."
            ) from error
        except JSONError as error:
            raise ShardError(f"Cannot read the data set: {error}") from error
        return cls.from_record(folder, name, record)

    @classmethod
    def from_record(cls, folder: str, name: str, record: Any) -> "Manifest":
        """Parses a manifest from its JSON record.

        Args:
            folder: path or URL of the folder of the shards.
            name: of the manifest, for errors.

        Raises:
            ShardError: the record is damaged or has another schema.
        """
        schema = record.get("schema") if isinstance(record, dict) else None
        if schema != SCHEMA or isinstance(schema, bool):
            raise ShardError(
                f"{name} has schema {schema!r}; this version of cavmae reads schema {SCHEMA}. "
                "Use the version that wrote it, or run `cavmae shard` again."
            )
        try:
            shards = tuple(map(ShardEntry.from_record, typed(record, "shards", list)))
            labels = typed(record, "labels", list)
            if not all(isinstance(label, str) for label in labels):
                raise ValueError("a label is not a string")
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
        numbers = {n for shard in shards for labels in shard.labels or () for n in labels}
        if numbers and not 0 <= min(numbers) <= max(numbers) < len(manifest.labels):
            raise ShardError(f"{name} is damaged (it has labels without a name): {REMEDY}.")
        if len({shard.file for shard in shards}) != len(shards):
            raise ShardError(f"{name} is damaged (it names a shard twice): {REMEDY}.")
        return manifest

    def verify(
        self, method: Literal["size", "hash"], shards: Sequence[ShardEntry] | None = None
    ) -> None:
        """Checks that shards are present and unaltered.

        Remote shards are checked by size here, and by hash whenever they are copied.

        Args:
            method: ``size`` asks the file system only; ``hash`` reads every byte.
            shards: entries to check; None: all.

        Raises:
            ShardError: names the first shard that is missing, altered or unreadable.
        """
        chosen = self.shards if shards is None else shards
        with ThreadPoolExecutor(max_workers=4) as pool:
            for problem in pool.map(lambda shard: self.problem_with(shard, method), chosen):
                if problem is not None:
                    raise ShardError(f"{problem} Copy it again, or run `cavmae shard` again.")

    def problem_with(self, shard: ShardEntry, method: Literal["size", "hash"]) -> str | None:
        """Problem of a missing, altered or unreadable shard, as a sentence; None if intact."""
        name = self.path_of(shard)
        try:
            size = files.size_of(name)
            if size != shard.bytes:
                return f"Shard {name} has {size} bytes, the manifest says {shard.bytes}."
            hashed = method == "hash" and not files.is_url(name)
            if hashed and files.sha256_of(Path(name)) != shard.sha256:
                return f"Shard {name} was altered: its SHA-256 is not the manifest's."
        except FileNotFoundError:
            return f"Shard {name} is missing."
        except OSError as error:
            return f"Cannot read shard {name}: {error}."
        return None


def _label_numbers(labels: Any) -> tuple[int, ...]:
    if not isinstance(labels, list) or not all(type(number) is int for number in labels):
        raise ValueError("the labels of a sample are not a list of integers")
    return tuple(labels)


def _count(record: Any, name: str) -> int:
    value: int = typed(record, name, int)
    if value < 0:
        raise ValueError(f"field {name} is {value}")
    return value


def merge(folder: str, parts: Sequence[Manifest]) -> Manifest:
    """Merges the parts of several machines into one data set.

    Raises:
        ShardError: the parts have different settings.
    """
    labels = sorted({label for part in parts for label in part.labels})
    number_of = {label: i for i, label in enumerate(labels)}
    shards: list[ShardEntry] = []
    for part in parts:
        if part.settings != parts[0].settings:
            raise ShardError(
                f"The parts in {folder} have different settings; run `cavmae shard` again for all "
                "parts with the same settings."
            )
        for shard in part.shards:
            if labels:
                numbers = tuple(
                    tuple(sorted(number_of[name] for name in names))
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
