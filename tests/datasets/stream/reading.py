"""Helpers of the tests of streams."""

import itertools
from pathlib import Path
from typing import Any

from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.format.shards import Shard
from cavmae.datasets.stream.view import View

VIEW = View(fbank_frames=64, frames="random")


def keys(batches: Any, count: int) -> list[list[str]]:
    return [batch["key"] for batch in itertools.islice(iter(batches), count)]


def all_keys(manifest: Manifest) -> set[str]:
    result = set()
    for shard in manifest.shards:
        with Shard(Path(manifest.path_of(shard))) as opened:
            result |= {entry.key for entry in opened.entries}
    assert len(result) == manifest.samples
    return result
