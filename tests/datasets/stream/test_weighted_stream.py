"""Several data sets in proportion to weights, each exactly once in each of its own epochs."""

import dataclasses
import itertools
import json
import logging
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.stream.base import Stream
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.stream.shard_reader import Access
from cavmae.datasets.stream.stream import TrainStream
from cavmae.datasets.stream.view import View
from cavmae.datasets.stream.weighted_stream import training_stream
from tests.datasets.clips import clip, data_set_of
from tests.datasets.stream.reading import all_keys

VIEW = View(fbank=False, frames="none")
FRAMES = View(fbank=False, frames="random", frame_size=(32, 48))
Draw = tuple[str, int, str]
SIZES = (12, 5, 7)
WEIGHTS = (4.0, 1.0, 2.5)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """Data sets of 12, 5 and 7 clips in 4 shards each."""
    root = tmp_path_factory.mktemp("weighted")
    manifests = []
    for number, size in enumerate(SIZES):
        clips = [clip(100 * number + n, frames=2) for n in range(size)]
        bounds = [size * n // 4 for n in range(5)]
        shards = [clips[a:b] for a, b in itertools.pairwise(bounds)]
        manifests.append(data_set_of(root / "abc"[number], *shards))
    return manifests


def mixture(
    sets: Sequence[Manifest],
    weights: Sequence[float] = WEIGHTS,
    batch: int = 3,
    buffer: int = 6,
    seed: int = 5,
    view: View = VIEW,
    **options: Any,
) -> Stream:
    def build(manifest: Manifest, own_seed: int, share: float) -> TrainStream:
        size = max(1, round(share * buffer))
        return TrainStream(manifest, view, batch, own_seed, shuffle_buffer=size, **options)

    return training_stream(sets, weights[: len(sets)], seed, build)


def keys(loader: Loader, batches: int) -> list[str]:
    own = [batch["key"] for batch in itertools.islice(iter(loader), batches)]
    return list(itertools.chain(*own))


def by_set(seen: Sequence[str]) -> dict[str, list[str]]:
    """Keys of each data set in their order, of keys ``FOLDER: KEY``."""
    result = defaultdict(list)
    for key in seen:
        folder, name = key.split(": ")
        result[folder].append(name)
    return result


def draws(loader: Loader, batches: int) -> Iterator[Draw]:
    """Data set, its epoch and key of each sample, of batches of a sample."""
    for batch in itertools.islice(iter(loader), batches):
        state = loader.state_dict()
        folder, key = batch["key"][0].split(": ")
        folders = [member.manifest.folder for member in loader.stream.members]
        positions = state["data_sets"][folders.index(folder)]["positions"]
        yield folder, positions[state["turn"] - 1]["epoch"], key


def saved(loaders: Sequence[Loader]) -> list[dict[str, Any]]:
    states: list[dict[str, Any]] = json.loads(json.dumps([own.state_dict() for own in loaders]))
    return states


def test_a_data_set_keeps_its_seed_among_others(sets: list[Manifest]) -> None:
    def seeds(*own: Manifest) -> dict[str, int]:
        stream = mixture(own, [1.0] * len(own))
        return {m.manifest.folder: m.seed for m in stream.members}

    a, b, c = sets
    every = seeds(a, b, c)
    assert every[a.folder] == 5 and len({*every.values()}) == 3
    assert seeds(a, c) == {a.folder: 5, c.folder: every[c.folder]}
    assert seeds(a, c, b) == every


def test_one_data_set_is_the_stream_that_it_always_was(sets: list[Manifest]) -> None:
    stream = mixture(sets[:1], buffer=5)
    assert isinstance(stream, TrainStream)
    assert keys(Loader(stream), 9) == keys(
        Loader(TrainStream(sets[0], VIEW, 3, 5, shuffle_buffer=5)), 9
    )
    # Recorded before there were several data sets: an order that changes breaks runs in progress.
    batches = itertools.islice(iter(Loader(mixture(sets[:1], buffer=5, view=FRAMES))), 8)
    seen = " ".join(
        f"{key[1:]}@{time * 25:.0f}"
        for batch in batches
        for key, time in zip(batch["key"], batch["frame_times"][:, 0].tolist(), strict=True)
    )
    assert seen == GOLDEN


GOLDEN = (
    "0@1 1@1 9@0 2@0 11@0 6@0 10@0 8@1 4@1 7@1 3@1 5@1 "
    "10@1 3@0 4@1 6@1 7@1 9@0 5@1 8@0 11@1 2@1 0@1 1@0"
)


@pytest.mark.parametrize("workers", [0, 2])
def test_proportions_and_the_order_within_a_data_set(sets: list[Manifest], workers: int) -> None:
    """Each data set comes as weighted, without end, and once in each of its own epochs."""
    readers = max(1, workers)
    seen = keys(Loader(mixture(sets, view=FRAMES), workers), 50)
    total = sum(WEIGHTS)
    for weight, (folder, own) in zip(WEIGHTS, sorted(by_set(seen).items()), strict=True):
        assert abs(len(own) - 150 * weight / total) < 2 * readers, folder
    if workers:
        return
    for manifest in sets:
        own = by_set(seen)[manifest.folder]
        size = manifest.samples
        assert len(own) > 3 * size  # no data set ends with another
        for epoch in range(len(own) // size):
            part = own[epoch * size : (epoch + 1) * size]
            assert set(part) == all_keys(manifest)
            assert len(set(part)) == size
    alone = TrainStream(sets[0], FRAMES, 3, 5, shuffle_buffer=round(6 * 4 / 7.5))
    assert by_set(seen)[sets[0].folder][:60] == keys(Loader(alone), 20)


@settings(max_examples=25)
@given(
    weights=st.lists(st.floats(0.2, 5), min_size=3, max_size=3),
    buffers=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    seed=st.integers(0, 99),
    runs=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 15)), min_size=1, max_size=3),
)
def test_other_readers_lose_and_repeat_nothing_of_any_data_set(
    sets: list[Manifest],
    weights: list[float],
    buffers: list[int],
    seed: int,
    runs: list[tuple[int, int]],
) -> None:
    """Runs of (processes, batches) follow each other, each with other weights and buffers."""
    states: list[dict[str, Any]] = []
    seen: Counter[Draw] = Counter()
    for number, (ranks, batches) in enumerate([*runs, (1, 150)]):
        turned = [*weights[number % 3 :], *weights[: number % 3]]
        options: dict[str, Any] = {"batch": 1, "buffer": buffers[number], "seed": seed}
        loaders = [
            Loader(mixture(sets, turned, rank=rank, world_size=ranks, **options))
            for rank in range(ranks)
        ]
        for loader in loaders:
            if states:
                loader.load_states(states)
            seen.update(draws(loader, batches))
        states = saved(loaders)
    assert set(seen.values()) == {1}
    for manifest, part in zip(sets, states[0]["data_sets"], strict=True):
        (position,) = part["positions"]
        for epoch in range(position["epoch"]):
            assert {key for f, e, key in seen if (f, e) == (manifest.folder, epoch)} == all_keys(
                manifest
            )


@pytest.mark.parametrize(("workers", "point"), [(0, 7), (2, 0), (2, 5), (3, 10)])
def test_a_resumed_mixture_gives_the_batches_that_would_have_come_next(
    sets: list[Manifest], workers: int, point: int
) -> None:
    def loader() -> Loader:
        return Loader(mixture(sets, view=FRAMES), workers)

    whole = list(itertools.islice(iter(loader()), point + 8))
    first = loader()
    for _ in itertools.islice(iter(first), point):
        pass
    second = loader()
    second.load_states(saved([first]))
    for expected, resumed in zip(whole[point:], iter(second), strict=False):
        assert resumed["key"] == expected["key"]
        torch.testing.assert_close(resumed["frames"], expected["frames"], rtol=0, atol=0)


def test_real_workers_go_on_with_what_others_left(sets: list[Manifest]) -> None:
    """From two processes with a worker each to one with three workers."""
    first = [Loader(mixture(sets, batch=1, rank=rank, world_size=2), 1) for rank in range(2)]
    seen = Counter(draw for loader in first for draw in draws(loader, 7))
    later = Loader(mixture(sets, batch=1), 3)
    later.load_states(saved(first))
    seen.update(draws(later, 60))
    assert set(seen.values()) == {1}
    for manifest in sets:
        assert {key for f, e, key in seen if (f, e) == (manifest.folder, 0)} == all_keys(manifest)


def test_the_epoch_of_a_run_counts_the_samples_of_all(sets: list[Manifest]) -> None:
    total = sum(SIZES)
    stream = mixture(sets, batch=1)
    assert stream.samples == total
    loader = Loader(stream)
    epochs = []
    for _ in itertools.islice(iter(loader), 2 * total):
        epochs.append(loader.epoch)
    assert epochs == [(n + 1) // total for n in range(2 * total)]
    other = [Loader(mixture(sets, batch=1, rank=rank, world_size=2)) for rank in range(2)]
    for own in other:
        own.load_states(saved([loader]))
        assert own.epoch == 2
        keys(own, total // 2)
        assert own.epoch == 3


def test_a_data_set_that_is_added_begins_and_the_others_go_on(
    sets: list[Manifest], caplog: pytest.LogCaptureFixture
) -> None:
    alone = Loader(mixture(sets[:1], batch=1))
    seen = keys(alone, 5)
    both = Loader(mixture(sets[:2], (1.0, 1.0), batch=1))
    with caplog.at_level(logging.INFO, logger="cavmae"):
        both.load_states(saved([alone]))
    assert f"{sets[1].folder} begins: the run has not drawn from it" in caplog.text
    later = by_set(keys(both, 14))
    assert set(seen) | set(later[sets[0].folder]) == all_keys(sets[0])
    assert len(later[sets[0].folder]) == 7
    again = Loader(mixture(sets[:1], batch=1))
    again.load_states(saved([both]))
    assert set(keys(again, 12)) == all_keys(sets[0])


def test_data_sets_that_cannot_be_mixed(sets: list[Manifest], tmp_path: Path) -> None:
    copied = dataclasses.replace(sets[0], folder=str(tmp_path / "copy"))
    shutil.copytree(sets[0].folder, copied.folder)
    with pytest.raises(UsageError, match="have the same shards") as error:
        mixture([sets[0], copied])
    assert sets[0].folder in str(error.value)
    assert copied.folder in str(error.value)
    with pytest.raises(UsageError, match="4 shards for 5 workers") as error:
        Loader(mixture(sets), 5)
    assert sets[0].folder in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_samples_count_for_their_own_data_set(
    sets: list[Manifest], tmp_path: Path, workers: int
) -> None:
    """One of 12 clips in a mixture with 12 others: 8 % of its data set, not 4 %."""
    clips = [clip(200 + n, frames=2) for n in range(12)]
    clips[4][1]["000.jpg"] = clips[4][1]["001.jpg"] = b"junk"
    bad = data_set_of(tmp_path / "bad", *([own] for own in clips))
    named = tmp_path / "broken.jsonl"
    access = Access(max_broken=0.06, quarantine=str(named))
    loader = Loader(mixture([sets[0], bad], (1.0, 1.0), view=FRAMES, access=access), workers)
    with pytest.raises(CavmaeError, match=f"broken samples in {bad.folder}: 1 bad_frame of 12"):
        keys(loader, 60)
    record = json.loads(named.read_text().splitlines()[0])
    assert (record["data_set"], record["key"]) == (bad.folder, "k204")
    access = dataclasses.replace(access, max_broken=0.1)
    loader = Loader(mixture([sets[0], bad], (1.0, 1.0), view=FRAMES, access=access), workers)
    own = by_set(keys(loader, 20))
    assert abs(len(own[bad.folder]) - 30) <= 2  # the proportion is of samples that are given
    assert loader.broken["bad_frame"] >= 1
