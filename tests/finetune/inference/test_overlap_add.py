"""Windows of a long recording, and voices added up over them."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cavmae.finetune.inference.overlap_add import CrossfadeWeights, OverlapAdd, window_starts


@given(frames=st.integers(1, 400), length=st.integers(1, 64), share=st.floats(0.02, 1))
def test_windows_cover_everything_and_weigh_one(frames: int, length: int, share: float) -> None:
    hop = max(1, int(share * length))
    starts = window_starts(frames, length, hop)
    assert starts[0] == 0
    assert all(0 < b - a <= hop for a, b in itertools.pairwise(starts))
    assert starts[-1] + length == max(frames, length)
    total = np.zeros(max(frames, length))
    weights = CrossfadeWeights(starts, length)
    for number, start in enumerate(starts):
        share_of = weights.of(number)
        assert (share_of > 0).all()
        total[start : start + length] += share_of
    np.testing.assert_allclose(total, 1, atol=1e-5)


@given(frames=st.integers(1, 200), length=st.integers(2, 32), late=st.integers(0, 5))
def test_a_wave_that_all_windows_agree_on_comes_out_as_it_is(
    frames: int, length: int, late: int
) -> None:
    starts = window_starts(frames, length, max(1, length // 2))
    wave = np.random.default_rng(frames).normal(size=frames + length).astype(np.float32)
    overlap_add = OverlapAdd(starts, length, frames)
    joined = np.zeros(frames, dtype=np.float32)
    newcomer = np.zeros(frames, dtype=np.float32)
    until = 0
    for number, start in enumerate(starts):
        waves = {0: wave[start : start + length]}
        if number >= late:
            waves[7] = np.ones(length, dtype=np.float32)
        first, parts = overlap_add.add(waves)
        assert first == until  # nothing is left out and nothing comes twice
        until = first + len(parts[0])
        joined[first:until] = parts[0]
        newcomer[first:until] = parts.get(7, 0)
    assert until == frames
    np.testing.assert_allclose(joined, wave[:frames], atol=1e-5)
    if late and late < len(starts):
        # A voice is silent before its first window, and then fades in.
        assert not newcomer[: starts[late]].any()
        rising = newcomer[starts[late] : starts[late] + length // 2]
        assert (np.diff(rising) > -1e-5).all()
    elif late == 0:
        np.testing.assert_allclose(newcomer, 1, atol=1e-5)


def test_absent_people_use_no_memory() -> None:
    """An hour with hundreds of people who come and go keeps no more than two windows of each."""
    starts = list(range(0, 8 * 300, 8))
    overlap_add = OverlapAdd(starts, 16, 8 * 300 + 8)
    for number in range(300):
        _, parts = overlap_add.add(
            {0: np.ones(16, np.float32), 1 + number: np.ones(16, np.float32)}
        )
        assert len(parts) <= 3
        assert len(overlap_add._pending) <= 3
