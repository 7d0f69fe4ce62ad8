from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cavmae.datasets.stream.shuffle import (
    Layout,
    SampleRef,
    buffer_slots,
    class_balanced_weights,
    drain_order,
    epoch_sample_refs,
    evaluation_sample_refs,
    rest_of_epoch,
    rng_for_sample,
    share,
)

COUNTS = st.lists(st.integers(1, 30), min_size=1, max_size=12)


def everything(counts: list[int]) -> Counter[tuple[int, int]]:
    return Counter((s, i) for s, n in enumerate(counts) for i in range(n))


@given(COUNTS, st.integers(0, 99), st.integers(0, 5), st.integers(1, 9))
def test_an_epoch_has_every_sample_exactly_once(
    counts: list[int], seed: int, epoch: int, partitions: int
) -> None:
    parts = [list(epoch_sample_refs(counts, seed, epoch, p, partitions)) for p in range(partitions)]
    assert Counter((ref.shard, ref.sample) for part in parts for ref in part) == everything(counts)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1  # no worker runs ahead of the others


@given(COUNTS, st.integers(1, 4), st.integers(1, 4))
def test_evaluation_has_every_sample_exactly_once(
    counts: list[int], ranks: int, workers: int
) -> None:
    partitions = ranks * workers
    seen = Counter(
        (ref.shard, ref.sample)
        for p in range(partitions)
        for ref in evaluation_sample_refs(counts, p, partitions)
    )
    assert seen == everything(counts)


def test_the_order_depends_on_seed_and_epoch_and_nothing_else() -> None:
    counts = [5] * 20

    def order(seed: int, epoch: int) -> list[SampleRef]:
        return list(epoch_sample_refs(counts, seed, epoch, 0, 1))

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


@given(st.integers(0, 2**40 - 1), st.integers(0, 1000), st.integers(0, 1000))
def test_rng_of_a_sample_reference(seed: int, epoch: int, sample: int) -> None:
    ref = SampleRef(3, sample, 0)
    first = rng_for_sample(seed, epoch, ref).random()
    assert first == rng_for_sample(seed, epoch, ref).random()
    assert first != rng_for_sample(seed, epoch + 1, ref).random()
    assert first != rng_for_sample(seed, epoch, ref._replace(repeat=1)).random()
    assert first != rng_for_sample(seed, epoch, ref._replace(sample=sample + 1)).random()


@given(st.integers(0, 50), st.integers(0, 9))
def test_draining_is_a_permutation(size: int, seed: int) -> None:
    assert sorted(drain_order(seed, 0, 0, size)) == list(range(size))


def test_class_balanced_weights_are_the_references() -> None:
    labels = [[("a",), ("a",), ("a", "b")], [("a",), ()]]
    weights = class_balanced_weights(labels)
    count = {"a": 4, "b": 1}
    weight = [[sum(1000 / (count[n] + 0.01) for n in names) for names in s] for s in labels]
    for actual, expected in zip(weights, weight, strict=True):
        np.testing.assert_allclose(actual, np.array(expected))
    assert weights[1][1] == 0  # no label: never


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 5))
def test_draws_come_as_often_as_they_should(seed: int, partitions: int) -> None:
    weights = [np.array([0.0, 1.0, 2.5]), np.array([0.2, 3.0])]
    seen: Counter[tuple[int, int]] = Counter()
    epochs, counts = 200, [3, 2]
    for epoch in range(epochs):
        refs = [
            ref
            for partition in range(partitions)
            for ref in epoch_sample_refs(counts, seed, epoch, partition, partitions, weights)
        ]
        # As many as there are samples, each reference once, the same for any partition.
        assert len(refs) == len(set(refs)) == 5
        assert set(refs) == set(epoch_sample_refs(counts, seed, epoch, 0, 1, weights))
        seen.update((ref.shard, ref.sample) for ref in refs)
    assert seen[0, 0] == 0
    for shard, own in enumerate(weights):
        for sample, weight in enumerate(own):
            prob = weight / 6.7
            error = 6 * (5 * epochs * prob * (1 - prob)) ** 0.5  # six standard deviations
            assert seen[shard, sample] == pytest.approx(5 * epochs * prob, abs=error + 1e-9)


@given(
    total=st.integers(1, 60),
    seed=st.integers(0, 99),
    runs=st.lists(
        st.tuples(st.integers(1, 5), st.integers(0, 9), st.lists(st.integers(0, 20), min_size=5)),
        min_size=1,
        max_size=4,
    ),
)
def test_layouts_that_follow_each_other_give_every_place_once(
    total: int, seed: int, runs: list[tuple[int, int, list[int]]]
) -> None:
    """Some partitions are an epoch ahead, some behind: of epoch 1, every place is given once."""
    history: list[Layout] = []
    seen: list[int] = []
    for partitions, buffer, amounts in runs:
        positions = []
        rest = rest_of_epoch(total, seed, 1, history)
        for partition in range(partitions):
            own = rest[partition::partitions]
            if buffer:
                first = len(rest) * partition // partitions
                own = rest[first : len(rest) * (partition + 1) // partitions]
                shuffled = shuffled_by_hand(own.tolist(), seed, partition, buffer)
                assert list(share(total, seed, 1, partition, partitions, history)) == own.tolist()
            else:
                shuffled = own.tolist()
            amount = amounts[partition]
            epoch = 0 if amount == 0 else 1 if amount <= len(own) else 2
            seen += {0: [], 1: shuffled[:amount], 2: shuffled}[epoch]
            positions.append((epoch, amount if epoch == 1 else 0))
        history.append(Layout(buffer, tuple(positions)))
    seen += rest_of_epoch(total, seed, 1, history).tolist()
    assert sorted(seen) == list(range(total))


def shuffled_by_hand(places: list[int], seed: int, partition: int, size: int) -> list[int]:
    """A buffer of a stream, place by place."""
    slots = buffer_slots(seed, 1, partition, size)
    buffer: list[int] = []
    order = []
    for place in places:
        if len(buffer) < size:
            buffer.append(place)
        else:
            slot = next(slots)
            order.append(buffer[slot])
            buffer[slot] = place
    return order + [buffer[slot] for slot in drain_order(seed, 1, partition, len(buffer))]
