"""The interleaving is in proportion at every place, and a function of the counts alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cavmae.datasets.stream.interleaving import drawn_after, next_data_set, shares_of

WEIGHTS = st.lists(
    st.one_of(st.integers(1, 9), st.floats(1e-3, 1e3), st.sampled_from([1e-300, 1e300])),
    min_size=1,
    max_size=6,
)


@given(WEIGHTS, st.integers(1, 400))
def test_every_prefix_is_within_a_sample_of_its_share(weights: list[float], count: int) -> None:
    shares = shares_of(weights)
    drawn = [0] * len(shares)
    for number in range(1, count + 1):
        drawn[next_data_set(drawn, shares)] += 1
        assert all(abs(n - s * number) < 1 for n, s in zip(drawn, shares, strict=True))
    assert drawn == drawn_after(count, shares)


def test_whole_weights_repeat_exactly() -> None:
    shares = shares_of([3, 1])
    drawn = [0, 0]
    order = []
    for _ in range(12):
        order.append(next_data_set(drawn, shares))
        drawn[order[-1]] += 1
    assert order == order[:4] * 3
    assert sorted(order[:4]) == [0, 0, 0, 1]


@given(WEIGHTS, st.integers(2, 40), st.integers(1, 30))
def test_readers_do_not_all_draw_a_rare_data_set_at_once(
    weights: list[float], readers: int, steps: int
) -> None:
    """In a step all readers together draw what the pattern has in as many samples."""
    shares = shares_of(weights)
    counts = [drawn_after(reader, shares) for reader in range(readers)]
    for _ in range(steps):
        before = [sum(column) for column in zip(*counts, strict=True)]
        for own in counts:
            own[next_data_set(own, shares)] += 1
        after = [sum(column) for column in zip(*counts, strict=True)]
        for old, new, share in zip(before, after, shares, strict=True):
            assert abs(new - old - share * readers) < 2


@pytest.mark.parametrize("weights", [(15, 11), (7, 5), (1, 9), (3, 3)])
@pytest.mark.parametrize("count", [10**7, 10**9, 10**12])
def test_ties_after_very_many_samples(weights: tuple[float, float], count: int) -> None:
    """Rounding grows with the count; a tie then must still name one of the two."""
    shares = shares_of(weights)
    total = sum(weights)
    for first in range(count, count + 300):
        drawn = [first * int(weights[0]) // int(total), first * int(weights[1]) // int(total)]
        assert next_data_set(drawn, shares) in (0, 1)
