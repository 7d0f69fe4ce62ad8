"""In which order samples are visited: pure functions of (seed, epoch, reader, readers).

A reader is one worker of one rank. Shards are put in a random order; the line of all their samples
is cut into as many equal pieces as there are readers (a shard on a cut is read by two, each its
own part); and each reader mixes its piece through a buffer. No data is needed to know the order,
so a stream that goes on in the middle only has to count.
"""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

# What the generators are for: keeps them independent of each other.
_SHARDS, _REPEATS, _BUFFER, _VISIT = range(4)


class SampleRef(NamedTuple):
    """One visit to a sample: its shard, its place there, and which visit in the epoch it is."""

    shard: int
    sample: int
    repeat: int


def _generator(purpose: int, seed: int, *numbers: int) -> np.random.Generator:
    return np.random.default_rng([purpose, seed, *numbers])


def rng_for_sample(seed: int, epoch: int, visit: SampleRef) -> random.Random:
    """Generator for everything random about one visit."""
    # Python's own: numpy's take ten times as long to make, which counts for millions of visits.
    mixed = _VISIT
    for number in (seed, epoch, *visit):
        mixed = mixed << 40 | number
    return random.Random(mixed)


def class_balanced_repeats(
    labels: Sequence[Sequence[Sequence[str]]],
) -> list[np.ndarray]:
    """How often each sample is to be visited an epoch, on average, to balance the classes.

    The weight of a clip is the sum over its labels of 1000 / (count of the label + 0.01), as in
    the CAV-MAE reference; scaled here so that an epoch has as many visits as samples.

    Args:
        labels: of each sample of each shard.

    Returns:
        float64 [samples] for each shard. Samples without a label are never visited.
    """
    counts: dict[str, int] = {}
    for shard in labels:
        for names in shard:
            for name in names:
                counts[name] = counts.get(name, 0) + 1
    weights = [
        np.array([sum(1000 / (counts[name] + 0.01) for name in names) for names in shard])
        for shard in labels
    ]
    total, number = sum(w.sum() for w in weights), sum(len(w) for w in weights)
    return [w * number / total for w in weights] if total else weights


def epoch_samples(
    counts: Sequence[int],
    seed: int,
    epoch: int,
    reader: int,
    readers: int,
    repeats: Sequence[np.ndarray] | None = None,
) -> Iterator[SampleRef]:
    """A reader's visits of an epoch, shard by shard.

    Over all readers every sample is visited exactly once, or with ``repeats`` as often on average
    as that says (each time rounded up or down at random).

    Args:
        counts: samples of each shard.
    """
    order = _generator(_SHARDS, seed, epoch).permutation(len(counts))
    times: list[np.ndarray] | None = None
    sizes = [int(count) for count in counts]
    if repeats is not None:
        chance = _generator(_REPEATS, seed, epoch)
        times = [np.floor(r + chance.random(len(r))).astype(np.int64) for r in repeats]
        sizes = [int(t.sum()) for t in times]
    total = sum(sizes)
    first, last = total * reader // readers, total * (reader + 1) // readers
    position = 0
    for shard in order:
        low, high = max(first - position, 0), min(last - position, sizes[shard])
        position += sizes[shard]
        if low >= high:
            continue
        if times is None:
            for number in range(low, high):
                yield SampleRef(int(shard), number, 0)
        else:
            for sample, repeat in _repeated(times[shard])[low:high]:
                yield SampleRef(int(shard), int(sample), int(repeat))


def _repeated(times: np.ndarray) -> np.ndarray:
    """[visits, 2]: (sample, how manyeth visit to it) of a shard."""
    samples = np.repeat(np.arange(len(times)), times)
    starts = np.cumsum(times) - times
    return np.stack([samples, np.arange(len(samples)) - starts[samples]], axis=1)


def buffer_draws(seed: int, epoch: int, reader: int, size: int) -> Iterator[int]:
    """Endless draws of a place in a full shuffle buffer of ``size``."""
    chance = _generator(_BUFFER, seed, epoch, reader)
    while True:
        yield from chance.integers(size, size=1024).tolist()


def drain_order(seed: int, epoch: int, reader: int, size: int) -> list[int]:
    """Order in which what is left in the buffer comes out at the end of an epoch."""
    result: list[int] = _generator(_BUFFER, seed, epoch, reader, size).permutation(size).tolist()
    return result


def evaluation_samples(counts: Sequence[int], reader: int, readers: int) -> Iterator[SampleRef]:
    """A reader's share of all samples, each exactly once over all readers, in order."""
    total = sum(counts)
    first, last = total * reader // readers, total * (reader + 1) // readers
    position = 0
    for shard, count in enumerate(counts):
        for number in range(max(first - position, 0), min(last - position, count)):
            yield SampleRef(shard, number, 0)
        position += count
