"""A stream that resumes gives the batches that are left, with any readers, each sample once."""

import itertools
import json
import logging
from collections import Counter
from typing import Any

import pytest
import torch

from cavmae.common.errors import CavmaeError
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.stream.base import Position
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.stream.stream import TrainStream
from tests.datasets.stream.reading import VIEW, all_keys, keys


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("point", [0, 1, 5, 8, 13, 29])
def test_a_resumed_stream_gives_the_batches_that_would_have_come_next(
    data_set: Manifest, workers: int, point: int
) -> None:
    def loader() -> Loader:
        return Loader(TrainStream(data_set, VIEW, 3, seed=5, shuffle_buffer=7), workers)

    whole = list(itertools.islice(iter(loader()), point + 12))
    first = loader()
    for _ in itertools.islice(iter(first), point):
        pass
    state = json.loads(json.dumps(first.state_dict()))
    second = loader()
    second.load_state_dict(state)
    for expected, resumed in zip(whole[point:], iter(second), strict=False):
        assert resumed["key"] == expected["key"]
        torch.testing.assert_close(resumed["frames"], expected["frames"], rtol=0, atol=0)
        torch.testing.assert_close(resumed["fbank"], expected["fbank"], rtol=0, atol=0)


def test_resuming_twice_and_between_0_and_1_workers(data_set: Manifest) -> None:
    def loader(workers: int) -> Loader:
        return Loader(TrainStream(data_set, VIEW, 2, shuffle_buffer=5), workers)

    expected = keys(loader(0), 20)
    resumed = []
    state = None
    for number, workers in [(7, 0), (3, 1), (10, 0)]:
        resumed_loader = loader(workers)
        if state is not None:
            resumed_loader.load_state_dict(state)
        resumed += keys(resumed_loader, number)
        state = resumed_loader.state_dict()
    assert resumed == expected


def test_a_state_of_something_else_is_refused(data_set: Manifest) -> None:
    with pytest.raises(CavmaeError, match="state"):
        Loader(TrainStream(data_set, VIEW, 3)).load_state_dict({})


def test_other_data_resume_at_the_epoch_and_log_it(
    data_set: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    loader = Loader(TrainStream(data_set, VIEW, 3, shuffle_buffer=4))
    list(itertools.islice(iter(loader), 11))  # 33 samples: in epoch 1
    assert loader.epoch == 1
    other = Loader(TrainStream(data_set, VIEW, 3, seed=1, shuffle_buffer=4))
    with caplog.at_level(logging.WARNING, logger="cavmae"):
        other.load_state_dict(loader.state_dict())
    assert "as seed changed: it resumes at the beginning of epoch 1" in caplog.text
    expected = Loader(TrainStream(data_set, VIEW, 3, seed=1, shuffle_buffer=4))
    expected._readers[0].positions = [Position(epoch=1)]
    assert keys(other, 3) == keys(expected, 3)


def test_one_state_of_two_ranks_is_not_enough(
    data_set: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    first = Loader(TrainStream(data_set, VIEW, 2, world_size=2))
    with caplog.at_level(logging.WARNING, logger="cavmae"):
        Loader(TrainStream(data_set, VIEW, 2)).load_state_dict(first.state_dict())
    assert "world_size changed: it resumes at the beginning of epoch 0" in caplog.text


@pytest.mark.parametrize(
    "runs",
    [
        [(1, 0, 3, 4)],  # of (ranks, workers, samples of a batch, shuffle buffer)
        [(3, 1, 2, 5), (1, 2, 4, 5)],
        [(2, 2, 1, 1), (4, 1, 1, 30), (1, 0, 3, 2)],
    ],
)
@pytest.mark.parametrize("batches", [1, 2])
def test_other_ranks_and_workers_lose_and_repeat_nothing(
    data_set: Manifest, runs: list[tuple[int, int, int, int]], batches: int
) -> None:
    """Each run gives some batches of the epoch, three readers of single samples give the rest."""

    def loaders(ranks: int, workers: int, size: int, buffer: int) -> list[Loader]:
        options: dict[str, Any] = {"seed": 3, "world_size": ranks, "shuffle_buffer": buffer}
        streams = [TrainStream(data_set, VIEW, size, rank=r, **options) for r in range(ranks)]
        readers = [Loader(stream, workers) for stream in streams]
        for loader in readers if states else []:
            loader.load_states(json.loads(json.dumps(states)))
        return readers

    states: list[dict[str, Any]] = []
    seen: Counter[str] = Counter()
    for run in runs:
        readers = loaders(*run)
        for loader in readers:
            seen.update(itertools.chain.from_iterable(keys(loader, batches)))
        states = [loader.state_dict() for loader in readers]
    assert 0 < sum(seen.values()) < data_set.samples
    epochs: list[Counter[str]] = [seen, Counter(), Counter()]
    for loader in loaders(3, 0, 1, 4):
        for batch in loader:
            if loader.epoch == 2:
                break
            epochs[loader.epoch].update(batch["key"])
    for epoch in epochs[:2]:
        assert set(epoch) == all_keys(data_set)
        assert set(epoch.values()) == {1}
