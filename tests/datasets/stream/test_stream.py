import dataclasses
import itertools
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cavmae.common.errors import CavmaeError, ShardError, UsageError
from cavmae.common.files import sha256_of
from cavmae.datasets.format import sample
from cavmae.datasets.format.manifest import Manifest, ShardEntry
from cavmae.datasets.format.shards import END, encode_sample
from cavmae.datasets.format.shards import Shard as OpenShard
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.stream.shard_reader import Access, BufferedSample, Reader
from cavmae.datasets.stream.shuffle import SampleRef, class_balanced_weights
from cavmae.datasets.stream.stream import EvalStream, TrainStream
from cavmae.datasets.stream.view import View
from tests.datasets.stream.reading import VIEW, all_keys, keys
from tests.tools.helpers import samples_of


def test_a_batch(data_set: Manifest) -> None:
    view = View(fbank_frames=256, frames="all", window=1.0, waveform=True)
    stream = TrainStream(data_set, view, 4, labels=data_set.labels)
    batch = next(iter(Loader(stream)))
    assert batch["fbank"].shape == (4, 100, 128)
    assert batch["fbank"].dtype == torch.float16
    assert batch["frames"].shape == (4, 25, 32, 48, 3)
    assert batch["frames"].dtype == torch.uint8
    assert batch["waveform"].shape == (4, 16000)
    assert batch["labels"].shape == (4, 2)
    assert (batch["labels"].sum(1) >= 1).all()
    assert all(name is not None and name.startswith("s") for name in batch["speaker"])
    assert ((batch["frame_times"] >= -0.021) & (batch["frame_times"] < 1)).all()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_epoch_over_real_workers_is_exactly_once(data_set: Manifest, workers: int) -> None:
    stream = TrainStream(data_set, VIEW, 2, shuffle_buffer=4)
    seen = Counter(itertools.chain(*keys(Loader(stream, workers), 12)))
    assert set(seen) == all_keys(data_set)
    assert set(seen.values()) == {1}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    ranks=st.integers(1, 3), workers=st.integers(1, 2), batch=st.integers(1, 5),
    buffer=st.integers(1, 9), seed=st.integers(0, 99),
)  # fmt: skip
def test_epochs_are_exactly_once_over_ranks_and_workers(
    data_set: Manifest, ranks: int, workers: int, batch: int, buffer: int, seed: int
) -> None:
    per_worker = data_set.samples // (ranks * workers)
    seen: Counter[str] = Counter()
    for rank in range(ranks):
        stream = TrainStream(
            data_set, dataclasses.replace(VIEW, frames="none"), batch, seed, rank, ranks,
            shuffle_buffer=buffer, access=Access(verify="size"),
        )  # fmt: skip
        for worker in range(workers):
            worker_keys = itertools.chain.from_iterable(
                d.batch["key"] for d in stream.worker_batches(worker, workers)
            )
            seen.update(itertools.islice(worker_keys, per_worker))
    # 24 samples divide by all of these, so all partitions of the epoch have the same length.
    assert set(seen) == all_keys(data_set)
    assert set(seen.values()) == {1}


def test_epochs_differ_and_the_frames_of_a_sample_too(data_set: Manifest) -> None:
    view = dataclasses.replace(VIEW, frames="random")
    loader = iter(Loader(TrainStream(data_set, view, 24, shuffle_buffer=24)))
    first, second = next(loader), next(loader)
    assert first["key"] != second["key"]
    assert sorted(first["key"]) == sorted(second["key"])
    place = [second["key"].index(key) for key in first["key"]]
    same = (first["frame_times"] == second["frame_times"][place]).float().mean()
    assert same < 0.5


def test_the_buffer_mixes(data_set: Manifest) -> None:
    def order(buffer: int) -> list[str]:
        stream = TrainStream(data_set, VIEW, 24, shuffle_buffer=buffer)
        return keys(Loader(stream), 1)[0]

    assert order(1) != order(12)
    assert sorted(order(1)) == sorted(order(12))


def test_balanced_draws(data_set: Manifest) -> None:
    labels = [data_set.sample_labels(shard) for shard in data_set.shards]
    stream = TrainStream(
        data_set, VIEW, 4, shuffle_buffer=6, weights=class_balanced_weights(labels),
        labels=data_set.labels,
    )  # fmt: skip
    batches = [b["labels"] for b in itertools.islice(iter(Loader(stream)), 60)]
    music = torch.cat(batches)[:, data_set.labels.index("music")].mean()
    plain = 8 / 24
    assert music > 1.5 * plain


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (3, 0), (2, 3)])
def test_evaluation_is_exactly_once(data_set: Manifest, ranks: int, workers: int) -> None:
    seen: Counter[str] = Counter()
    for rank in range(ranks):
        stream = EvalStream(data_set, VIEW, 5, rank=rank, world_size=ranks)
        for batch in Loader(stream, workers):
            seen.update(batch["key"])
    assert set(seen) == all_keys(data_set)
    assert set(seen.values()) == {1}


def test_evaluation_repeats_itself_even_with_random_frames(data_set: Manifest) -> None:
    loader = Loader(EvalStream(data_set, VIEW, 8))
    for first, second in zip(list(loader), list(loader), strict=True):
        torch.testing.assert_close(first["frames"], second["frames"])


def test_evaluation_works_with_more_workers_than_shards_and_training_does_not(
    data_set: Manifest,
) -> None:
    with pytest.raises(UsageError, match="8 shards for 12 workers"):
        Loader(TrainStream(data_set, VIEW, 1, rank=0, world_size=6), workers=2)
    parts = [EvalStream(data_set, VIEW, 4, rank=r, world_size=30) for r in range(30)]
    assert sum(len(b["key"]) for part in parts for b in Loader(part)) == data_set.samples


@pytest.fixture
def copied(data_set: Manifest, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(data_set.folder, folder)
    return folder


def test_missing_altered_and_swapped_shards_stop_it_before_it_starts(copied: Path) -> None:
    manifest = Manifest.load(copied)
    first, second = (copied / shard.file for shard in manifest.shards[:2])
    content = first.read_bytes()
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 1

    first.write_bytes(flipped)
    with pytest.raises(ShardError, match=rf"{first.name} was altered"):
        TrainStream(manifest, VIEW, 1)
    first.write_bytes(content[:-512])
    with pytest.raises(ShardError, match=rf"{first.name} has .* bytes"):
        EvalStream(manifest, VIEW, 1, access=Access(verify="size"))
    shutil.copy(second, first)
    with pytest.raises(ShardError, match=first.name):
        TrainStream(manifest, VIEW, 1)
    first.unlink()
    with pytest.raises(ShardError, match=rf"{first.name} is missing"):
        TrainStream(manifest, VIEW, 1, access=Access(verify="size"))


def test_each_rank_hashes_its_share(copied: Path) -> None:
    manifest = Manifest.load(copied)
    path = copied / manifest.shards[3].file
    content = bytearray(path.read_bytes())
    content[-2000] ^= 1
    path.write_bytes(content)
    TrainStream(manifest, VIEW, 1, rank=0, world_size=2)
    with pytest.raises(ShardError, match="altered"):
        TrainStream(manifest, VIEW, 1, rank=1, world_size=2)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda m: m.update(schema=7), "schema 7"),
        (lambda m: m.pop("shards"), "damaged"),
        (lambda m: m["shards"][0].update(file="../../x.tar"), "invalid name or SHA-256"),
        (lambda m: m["shards"][0].update(sha256="0"), "invalid name or SHA-256"),
        (lambda m: m["shards"][0].update(samples=0), "counts"),
        (lambda m: m["shards"].append(m["shards"][0]), "twice"),
        (lambda m: m["shards"][0].update(labels=[[9]] * 3), "without a name"),
    ],
)
def test_manifests_refused(copied: Path, change: Any, complaint: str) -> None:
    path = copied / "manifest.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(ShardError, match=complaint):
        Manifest.load(copied)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no data set"):
        Manifest.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ShardError, match="Cannot read"):
        Manifest.load(tmp_path)


def rewrite(folder: Path, break_some: dict[str, bytes | None], which: set[int]) -> Manifest:
    """Replaces members of some samples, with a manifest that agrees: damage from the start."""
    manifest = Manifest.load(folder)
    shards: list[ShardEntry] = []
    number = 0
    for shard in manifest.shards:
        path = folder / shard.file
        blocks = []
        with OpenShard(path) as opened:
            for key, members in samples_of(opened):
                if number in which:
                    for name, data in break_some.items():
                        if data is None:
                            del members[name]
                        else:
                            members[name] = data
                blocks.append(encode_sample(key, members))
                number += 1
        path.write_bytes(b"".join([*blocks, END]))
        size = path.stat().st_size
        shards.append(dataclasses.replace(shard, bytes=size, sha256=sha256_of(path)))
    return dataclasses.replace(manifest, shards=tuple(shards))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"fbank.npy": b"junk"}, "bad_fbank"),
        ({"fbank.npy": sample.encode_fbank(np.full((198, 128), np.inf))}, "fbank_not_finite"),
        ({"json": b"{}"}, "unknown_schema"),
        ({"fbank.npy": None}, "missing_member"),
        ({f"{i:03d}.jpg": b"junk" for i in range(50)}, "bad_frame"),
    ],
)
def test_broken_samples_are_skipped_counted_and_named(
    copied: Path, tmp_path: Path, members: dict[str, bytes | None], reason: str, workers: int
) -> None:
    manifest = rewrite(copied, members, {4, 17})
    quarantine = tmp_path / "run" / "quarantine.jsonl"
    access = Access(max_broken=0.1, quarantine=str(quarantine))
    loader = Loader(TrainStream(manifest, VIEW, 2, shuffle_buffer=3, access=access), workers)
    seen = Counter(itertools.chain(*keys(loader, 11)))
    assert len(seen) == 22
    lines = [json.loads(line) for line in quarantine.read_text().splitlines()]
    named = {line["key"] for line in lines}
    assert named == all_keys(manifest) - set(seen)
    assert {line["reason"] for line in lines} == {reason}
    assert loader.broken[reason] >= 1
    evaluated = list(itertools.chain(*([*b["key"]] for b in Loader(EvalStream(
        manifest, VIEW, 5, access=Access(max_broken=0.1)
    ), workers))))  # fmt: skip
    assert len(evaluated) == 22


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [TrainStream, EvalStream])
def test_too_many_broken_samples_are_an_error(copied: Path, kind: Any, workers: int) -> None:
    manifest = rewrite(copied, {"fbank.npy": b"junk"}, set(range(0, 24, 4)))
    loader = Loader(kind(manifest, VIEW, 2, access=Access(max_broken=0.1)), workers)
    with pytest.raises(CavmaeError, match="bad_fbank of 24"):
        keys(loader, 100)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_of_broken_samples_does_not_hang(copied: Path, workers: int) -> None:
    manifest = rewrite(copied, {"json": b"junk"}, set(range(24)))
    loader = Loader(TrainStream(manifest, VIEW, 2), workers)
    with pytest.raises(CavmaeError, match="Too many broken samples"):
        next(iter(loader))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_goes_missing_in_mid_training(copied: Path, workers: int) -> None:
    manifest = Manifest.load(copied)
    stream = TrainStream(manifest, VIEW, 1, shuffle_buffer=1)
    for shard in manifest.shards:
        (copied / shard.file).unlink()
    with pytest.raises(ShardError, match="Cannot open shard"):
        keys(Loader(stream, workers), 1)


def test_frames_of_several_sizes_get_a_clear_error(copied: Path) -> None:
    manifest = Manifest.load(copied)
    with OpenShard(copied / manifest.shards[0].file) as opened:
        _, members = next(iter(samples_of(opened)))
    info = sample.SampleInfo.from_bytes(members["json"])
    small = sample.encode_frame(np.zeros((16, 16, 3), np.uint8), 90)
    changed: dict[str, bytes | None] = {name: small for name in members if name.endswith("jpg")}
    changed["json"] = dataclasses.replace(info, frame_size=(16, 16)).to_bytes()
    manifest = rewrite(copied, changed, {3})
    with pytest.raises(CavmaeError, match="frame_size"):
        keys(Loader(EvalStream(manifest, View(), 24)), 1)
    view = View(frame_size=(24, 40))
    batch = next(iter(Loader(EvalStream(manifest, view, 24))))
    assert batch["frames"].shape == (24, 1, 24, 40, 3)


def test_the_shuffle_buffer_holds_bytes_of_selected_members(data_set: Manifest) -> None:
    reader = Reader(data_set, dataclasses.replace(VIEW, frames="middle"), Access(), seed=0)
    buffered = BufferedSample(SampleRef(0, 0, 0))
    reader.load(buffered, 0)
    assert buffered.members is not None
    assert {type(data) for data in buffered.members.values()} == {bytes}
    assert set(buffered.members) == {"json", "fbank.npy", "008.jpg"}  # one of 16 frames, no flac
    reader.close()


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"rank": 2, "world_size": 2}, {"seed": -1}, {"access": Access(verify="x")}],
)
def test_bad_options(data_set: Manifest, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TrainStream(data_set, VIEW, **{"batch_size": 1, **options})


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_random_state_of_training_alone(
    data_set: Manifest, workers: int
) -> None:
    before = torch.get_rng_state()
    keys(Loader(TrainStream(data_set, VIEW, 2), workers), 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_do_not_outlive_an_abandoned_loader(data_set: Manifest) -> None:
    iterator = iter(Loader(TrainStream(data_set, VIEW, 1), workers=2))
    next(iterator)
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if not children.exists():
        pytest.skip("needs /proc")
    before = len(children.read_text().split())
    del iterator
    assert len(children.read_text().split()) <= before - 2
