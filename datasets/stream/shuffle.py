"""Shuffle order and partition of samples: pure functions of (seed, epoch, partition).

A partition is the share of one worker of one rank. Shards are permuted; the sequence of all their
samples is cut into ``num_partitions`` parts of equal length (a shard on a cut belongs to two
partitions, each with its own samples); and each partition is mixed through a shuffle buffer. The
order follows without reading any data, so a stream that resumes only has to count.

A place is the position of a sample in the sequence of an epoch. Where a stream goes on with another
number of partitions in mid-epoch, it follows in the same way which places were given, and the rest
is cut anew.
"""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

# Purposes of generators: a seed of its own for each keeps them independent.
_SHARDS, _DRAWS, _BUFFER, _SAMPLE = range(4)


class SampleRef(NamedTuple):
    """Reference to a sample of an epoch: shard, index in the shard, repeat within the epoch."""

    shard: int
    sample: int
    repeat: int


class Layout(NamedTuple):
    """Partitions that gave samples before the present ones did.

    Attributes:
        shuffle_buffer: of each, in samples; 0: their samples were not shuffled, but dealt in turn.
        positions: (epoch, samples of that epoch) that each partition has reached.
    """

    shuffle_buffer: int
    positions: tuple[tuple[int, int], ...]


def _rng(purpose: int, seed: int, *numbers: int) -> np.random.Generator:
    return np.random.default_rng([purpose, seed, *numbers])


def rng_for_sample(seed: int, epoch: int, ref: SampleRef) -> random.Random:
    """Generator of every random choice about one sample reference in an epoch."""
    # Python's own: numpy's take ten times as long to make, which counts for millions of samples.
    mixed = _SAMPLE
    for number in (seed, epoch, *ref):
        mixed = mixed << 40 | number
    return random.Random(mixed)


def class_balanced_weights(
    labels: Sequence[Sequence[Sequence[str]]],
) -> list[np.ndarray]:
    """Sampling weight of each sample, which balances the classes.

    The weight of a clip is the sum over its labels of 1000 / (count of the label + 0.01), as in
    the CAV-MAE reference.

    Args:
        labels: of each sample of each shard.

    Returns:
        float64 [samples] for each shard. Samples without a label have a weight of 0.
    """
    counts: dict[str, int] = {}
    for shard in labels:
        for names in shard:
            for name in names:
                counts[name] = counts.get(name, 0) + 1
    return [
        np.array([sum(1000 / (counts[name] + 0.01) for name in names) for names in shard])
        for shard in labels
    ]


def epoch_sample_refs(
    counts: Sequence[int],
    seed: int,
    epoch: int,
    partition: int,
    num_partitions: int,
    weights: Sequence[np.ndarray] | None = None,
    history: Sequence[Layout] = (),
) -> Iterator[SampleRef]:
    """Sample references of a partition in an epoch, shard by shard.

    Over all partitions every sample occurs exactly once; or, with ``weights``, as often as it comes
    up in as many draws with replacement as there are samples. The draws of an epoch are the same
    for any number of partitions.

    Args:
        counts: samples of each shard.
        weights: for each shard float [samples], see :func:`class_balanced_weights`; None: no draws.
        history: partitions before these, whose samples are left out.
    """
    order = _rng(_SHARDS, seed, epoch).permutation(len(counts))
    times: list[np.ndarray] | None = None
    sizes = [int(count) for count in counts]
    if weights is not None:
        probs = np.concatenate(weights)
        drawn = _rng(_DRAWS, seed, epoch).multinomial(sum(sizes), probs / probs.sum())
        times = np.split(drawn, np.cumsum(sizes)[:-1])
        sizes = [int(t.sum()) for t in times]
    places = share(sum(sizes), seed, epoch, partition, num_partitions, history)
    position = 0
    for shard in order:
        inside = _within(places, position, position + sizes[shard])
        position += sizes[shard]
        if not len(inside):
            continue
        if times is None:
            for sample in inside:
                yield SampleRef(int(shard), int(sample), 0)
        else:
            for sample, repeat in _repeated(times[shard])[np.asarray(inside)]:
                yield SampleRef(int(shard), int(sample), int(repeat))


def share(
    total: int,
    seed: int,
    epoch: int,
    partition: int,
    num_partitions: int,
    history: Sequence[Layout] = (),
) -> range | np.ndarray:
    """Places of a partition in an epoch of ``total`` samples, ascending."""
    history = [own for own in history if any(reached >= epoch for reached, _ in own.positions)]
    if not history:
        return range(total * partition // num_partitions, total * (partition + 1) // num_partitions)
    rest = rest_of_epoch(total, seed, epoch, history)
    count = len(rest)
    first, last = count * partition // num_partitions, count * (partition + 1) // num_partitions
    return rest[first:last].copy()  # a view would keep all of the rest


def rest_of_epoch(total: int, seed: int, epoch: int, history: Sequence[Layout]) -> np.ndarray:
    """Places of an epoch that no partition of the history has given: int64, ascending."""
    rest = np.arange(total)
    for layout in history:
        partitions = len(layout.positions)
        left = []
        for number, (reached, given) in enumerate(layout.positions):
            if layout.shuffle_buffer:
                count = len(rest)
                own = rest[count * number // partitions : count * (number + 1) // partitions]
            else:
                own = rest[number::partitions]
            if reached < epoch:
                left.append(own)
            elif reached == epoch:
                gone = _first_given(own, given, seed, epoch, number, layout.shuffle_buffer)
                left.append(own[~np.isin(own, gone, assume_unique=True)])
        rest = np.concatenate(left) if left else rest[:0]
        if not layout.shuffle_buffer:  # dealt in turn
            rest = np.sort(rest)
    return rest


def _first_given(
    places: np.ndarray, given: int, seed: int, epoch: int, partition: int, size: int
) -> np.ndarray:
    """Places that leave a shuffle buffer first; of size 0: the first ones."""
    if not size:
        return places[:given]
    buffer = places[:size].tolist()
    entering = places[size : size + given].tolist()
    gone = []
    for place, slot in zip(entering, buffer_slots(seed, epoch, partition, size), strict=False):
        gone.append(buffer[slot])
        buffer[slot] = place
    if len(gone) < given:
        order = drain_order(seed, epoch, partition, len(buffer))
        gone += [buffer[slot] for slot in order[: given - len(gone)]]
    return np.array(gone, dtype=np.int64)


def _within(places: range | np.ndarray, start: int, end: int) -> range | np.ndarray:
    """Places from ``start`` to ``end``, counted from ``start``."""
    if isinstance(places, range):
        return range(max(places.start - start, 0), min(places.stop, end) - start)
    low, high = np.searchsorted(places, [start, end])
    return places[low:high] - start


def _repeated(times: np.ndarray) -> np.ndarray:
    """Pairs of (sample, repeat) of a shard, int [sum of times, 2]."""
    samples = np.repeat(np.arange(len(times)), times)
    starts = np.cumsum(times) - times
    return np.stack([samples, np.arange(len(samples)) - starts[samples]], axis=1)


def buffer_slots(seed: int, epoch: int, partition: int, size: int) -> Iterator[int]:
    """Endless random slots of a full shuffle buffer of ``size`` samples."""
    rng = _rng(_BUFFER, seed, epoch, partition)
    while True:
        yield from rng.integers(size, size=1024).tolist()


def drain_order(seed: int, epoch: int, partition: int, size: int) -> list[int]:
    """Order in which the last ``size`` samples leave the shuffle buffer at the end of an epoch."""
    order: list[int] = _rng(_BUFFER, seed, epoch, partition, size).permutation(size).tolist()
    return order


def evaluation_sample_refs(
    counts: Sequence[int], partition: int, num_partitions: int
) -> Iterator[SampleRef]:
    """Sample references of a partition, in order; each sample once over all partitions."""
    total = sum(counts)
    first, last = total * partition // num_partitions, total * (partition + 1) // num_partitions
    position = 0
    for shard, count in enumerate(counts):
        for sample in range(max(first - position, 0), min(last - position, count)):
            yield SampleRef(shard, sample, 0)
        position += count
