"""Shard reader: bytes of the selected members, from local or remote shards, decoded last."""

import dataclasses
import os
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

from cavmae.common.errors import SampleError, ShardError
from cavmae.common.files import Cache, is_url
from cavmae.common.json_files import json_bytes
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.format.sample import SampleInfo
from cavmae.datasets.format.shards import Entry, Shard
from cavmae.datasets.stream.shuffle import SampleRef, rng_for_sample
from cavmae.datasets.stream.view import Choice, View

OPEN_SHARDS = 8


@dataclasses.dataclass(frozen=True)
class Access:
    """Access to shards, and the treatment of broken samples.

    Args:
        verify: check shards before the first sample: by ``hash`` (every byte is read, the work is
            split between ranks), or by ``size`` only. Remote shards are hashed when they are
            copied.
        cache_dir: folder of the copies of remote shards; None: in the temporary folder.
        cache_gb: largest size of that folder, in 10^9 bytes.
        max_broken: fraction of an epoch's samples that may be broken; more is an error.
        quarantine: JSON-lines file that names broken samples; None: they are only counted.
    """

    verify: str = "hash"
    cache_dir: str | None = None
    cache_gb: float = 50.0
    max_broken: float = 0.01
    quarantine: str | None = None


@dataclasses.dataclass
class BufferedSample:
    """A sample in the shuffle buffer: the bytes of its members, not yet decoded."""

    ref: SampleRef
    key: str = ""
    choice: Choice | None = None
    members: dict[str, bytes] | None = None
    error: SampleError | None = None

    @property
    def loaded(self) -> bool:
        return self.members is not None or self.error is not None


class ShardOpener:
    """Opens local and remote shards by number, and keeps ``OPEN_SHARDS`` of them open."""

    def __init__(self, manifest: Manifest, access: Access):
        self._manifest = manifest
        self._access = access
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._cache: Cache | None = None

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def get(self, number: int) -> Shard:
        """Open shard of a number in the manifest.

        Raises:
            ShardError: the shard is missing or altered.
        """
        shard = self._open.get(number)
        if shard is not None:
            self._open.move_to_end(number)
            return shard
        entry = self._manifest.shards[number]
        name = self._manifest.path_of(entry)
        if is_url(name):
            if self._cache is None:
                self._cache = Cache(self._access.cache_dir, int(self._access.cache_gb * 1e9))
            path = self._cache.fetch(name, entry.sha256)
        else:
            path = Path(name)
        shard = Shard(path)
        if shard.size != entry.bytes or len(shard.entries) != entry.samples:
            shard.close()
            raise ShardError(
                f"Shard {name} has {len(shard.entries)} samples in {shard.size} bytes, the "
                f"manifest says {entry.samples} in {entry.bytes}. Copy it again or create the data "
                "set again."
            )
        self._open[number] = shard
        if len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)[1].close()
        return shard


class Reader:
    """Loads and decodes the samples of one worker process.

    Args:
        manifest: the data set.
        view: the part that is read of each sample.
        access: access to shards.
        seed: of every random choice.
        broken: counts broken samples by reason; None: nobody reads the counts.
    """

    def __init__(
        self,
        manifest: Manifest,
        view: View,
        access: Access,
        seed: int,
        broken: Counter[str] | None = None,
    ):
        self._manifest = manifest
        self._view = view
        self._access = access
        self._seed = seed
        self._shards = ShardOpener(manifest, access)
        self.broken: Counter[str] = Counter() if broken is None else broken

    def close(self) -> None:
        self._shards.close()

    def load(self, buffered: BufferedSample, epoch: int) -> None:
        """Reads the bytes of the members that the view selects, and no others.

        Raises:
            ShardError: the shard is missing or altered.
        """
        shard = self._shards.get(buffered.ref.shard)
        entry = shard.entries[buffered.ref.sample]
        buffered.key = entry.key
        try:
            buffered.choice, buffered.members = self._read(shard, entry, buffered.ref, epoch)
        except SampleError as error:
            buffered.error = error
        except OSError as error:
            raise ShardError(f"Cannot read shard {shard.path}: {error}.") from error

    def _read(
        self, shard: Shard, entry: Entry, ref: SampleRef, epoch: int
    ) -> tuple[Choice, dict[str, bytes]]:
        rng = rng_for_sample(self._seed, epoch, ref)
        info = None
        data = {"json": shard.read(entry, "json")}
        if self._view.needs_info:
            info = SampleInfo.from_bytes(data["json"])
        choice = self._view.select(list(entry.members), info, rng)
        for name in choice.members:
            if name not in data:
                data[name] = shard.read(entry, name)
        return choice, data

    def decode(self, buffered: BufferedSample) -> dict[str, Any] | None:
        """Decodes a loaded sample to arrays; None for a broken sample, which is counted."""
        try:
            if buffered.error is not None:
                raise buffered.error
            assert buffered.choice is not None and buffered.members is not None
            arrays = buffered.choice.decode(buffered.members)
        except SampleError as error:
            self._count_broken(buffered, error)
            return None
        arrays["key"] = buffered.key
        return arrays

    def _count_broken(self, buffered: BufferedSample, error: SampleError) -> None:
        self.broken[error.reason] += 1
        folder, shard = self._manifest.folder, self._manifest.shards[buffered.ref.shard].file
        quarantine(self._access, error, data_set=folder, shard=shard, key=buffered.key)


def quarantine(access: Access, error: SampleError, **where: str) -> None:
    """Appends a broken sample to the quarantine file, if ``access`` names one."""
    if access.quarantine is None:
        return
    line = json_bytes({**where, "reason": error.reason, "detail": error.detail})
    path = Path(access.quarantine)
    path.parent.mkdir(parents=True, exist_ok=True)
    # One write to a file opened for appending: lines of several processes do not mix.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)
