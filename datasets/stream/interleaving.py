"""Interleaving of several data sets in proportion to weights: pure functions of the counts drawn.

No dice: the next sample is of the data set whose turn has to come soonest, by the algorithm of
Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980). After any number n of
samples, each data set has been drawn less than one sample more or fewer than its share of n.

The counts are the whole state. Each reader has counts of its own; reader p begins as if p samples
had been drawn, so that the readers of a run do not all come to a rare data set in the same step.
"""

from collections.abc import Sequence

_ROUNDING = 1e-9  # of shares that do not add up to exactly 1


def shares_of(weights: Sequence[float]) -> tuple[float, ...]:
    """Share of the samples of each data set, by weights above 0."""
    largest = max(weights)  # a sum of huge weights would overflow
    scaled = [weight / largest for weight in weights]
    total = sum(scaled)
    return tuple(weight / total for weight in scaled)


def next_data_set(drawn: Sequence[int], shares: Sequence[float]) -> int:
    """Number of the data set that the next sample is of.

    Args:
        drawn: samples drawn of each data set so far.
        shares: of the samples, see :func:`shares_of`.
    """
    if len(shares) == 1:
        return 0
    count = sum(drawn) + 1
    least = 1 / (2 * len(shares) - 2)
    owed = [share * count - own for share, own in zip(shares, drawn, strict=True)]
    # A data set that is owed less would be drawn too early. The largest debt is at least 1 / sets.
    ready = [number for number, debt in enumerate(owed) if debt >= least - _ROUNDING]
    if not ready:  # an exact tie of two, after so many samples that rounding exceeds the tolerance
        return owed.index(max(owed))
    return min(ready, key=lambda number: (1 - least - owed[number]) / shares[number])


def drawn_after(count: int, shares: Sequence[float]) -> list[int]:
    """Samples of each data set among the first ``count``."""
    drawn = [0] * len(shares)
    for _ in range(count):
        drawn[next_data_set(drawn, shares)] += 1
    return drawn
