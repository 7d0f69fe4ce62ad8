"""What the tests of sharding share."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from cavmae.datasets.format.manifest import Manifest, ShardEntry
from cavmae.datasets.format.sample import SampleInfo
from cavmae.datasets.format.shards import Shard
from cavmae.datasets.sharding.input_plan import Plan
from cavmae.datasets.sharding.inputs import Input
from cavmae.datasets.sharding.job_state import InputLayout
from cavmae.datasets.sharding.settings import ShardRunSettings

Maker = Callable[..., Path]
Samples = dict[str, dict[str, bytes]]

RUN_SETTINGS = ShardRunSettings(workers=2, timeout=60.0)
# Small clips, so that a few short videos fill several shards.
TINY = {
    "profile": "speakers", "clip_seconds": 1.0, "min_seconds": 0.5, "shorter_side": 64,
    "shard_samples": 3,
}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def samples_of(shard: Shard) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Keys of all samples of a shard, with the bytes of all their members."""
    for entry in shard.entries:
        yield entry.key, {extension: shard.read(entry, extension) for extension in entry.members}


def load(folder: Path) -> Samples:
    manifest = Manifest.load(folder)
    manifest.verify("hash")
    found: Samples = {}
    for entry in manifest.shards:
        with Shard(folder / entry.file) as shard:
            assert len(shard.entries) == entry.samples
            found.update(samples_of(shard))
    assert len(found) == manifest.samples
    return found


def end_part(folder: Path, part: int, inputs: int) -> InputLayout:
    """Writes what the end of a part of two leaves, after a plan of so many inputs."""
    layout = InputLayout(folder, part=(part, 2))
    Plan(layout).extend([Input(f"{part}-{n}.mp4") for n in range(inputs)])
    layout.skipped.write_text(f"part {part} with {inputs} inputs\n")
    shard = ShardEntry(layout.shard(0).name, inputs, 10240 * inputs, f"{inputs:064x}")
    shards = (shard,) if inputs else ()
    layout.manifest.write_bytes(Manifest(str(folder), shards, {}, (), inputs).to_bytes())
    return layout


def infos(folder: Path) -> list[SampleInfo]:
    return [SampleInfo.from_bytes(members["json"]) for members in load(folder).values()]


def skipped(folder: Path) -> dict[str, str]:
    lines = (folder / "skipped.jsonl").read_text().splitlines()
    return {Path(json.loads(x)["source"]).name: json.loads(x)["reason"] for x in lines}


def run_command(*words: str, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "cavmae.tools.shard", *words],
        stderr=subprocess.PIPE, start_new_session=True, **options,  # type: ignore[call-overload]
    )  # fmt: skip


WORDS = [w for k, v in TINY.items() for w in ("--" + k.replace("_", "-"), str(v))]
