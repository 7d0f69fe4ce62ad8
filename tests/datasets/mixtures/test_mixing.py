"""Mixing of voices: levels, fades, and parts that add up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cavmae.datasets.mixtures.mixing import (
    EDGE,
    PEAK,
    REFERENCE,
    active_rms,
    fade,
    generate_noise,
    mix,
    scale_to_level,
)
from cavmae.datasets.stream.features import SAMPLE_RATE


def voice(seed: int, seconds: float = 1.0, loud: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(int(seconds * SAMPLE_RATE)) * loud).astype(np.float32)


def test_pauses_do_not_count() -> None:
    wave = voice(0)
    with_pauses = np.concatenate([np.zeros(SAMPLE_RATE, np.float32), wave, wave * 1e-3])
    assert active_rms(with_pauses) == pytest.approx(active_rms(wave), rel=1e-3)
    assert active_rms(wave) == pytest.approx(np.sqrt(np.mean(wave**2)), rel=1e-3)
    assert active_rms(np.zeros(SAMPLE_RATE, np.float32)) == 0
    assert active_rms(np.zeros(3, np.float32)) == 0


@given(
    levels=st.lists(st.floats(-20, 20), min_size=1, max_size=4),
    lengths=st.lists(st.integers(0, 3000), min_size=4, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_parts_add_up_and_have_their_levels(levels: list[float], lengths: list[int]) -> None:
    waves = [voice(n)[: 8000 + lengths[n]] for n in range(len(levels))]
    mixed = mix(waves, levels, 10_000)
    np.testing.assert_allclose(mixed.parts.sum(axis=0), mixed.mixture, atol=1e-6)
    assert np.abs(mixed.mixture).max() <= PEAK + 1e-6
    assert 0 < mixed.gain <= 1
    for part, level in zip(mixed.parts, levels, strict=True):
        measured = 20 * np.log10(active_rms(part) / REFERENCE / mixed.gain)
        assert measured == pytest.approx(level, abs=0.01)


def test_silence_is_not_amplified() -> None:
    mixed = mix([np.zeros(4000, np.float32), voice(1)], [0.0, 0.0], 4000)
    assert not mixed.parts[0].any()
    assert not scale_to_level(np.full(4000, 1e-8, np.float32), 0).any()
    assert mix([], [], 100).mixture.tolist() == [0] * 100


def test_edges_are_soft_inside_and_untouched_at_the_ends() -> None:
    wave = np.ones(4000, np.float32)
    inside = fade(wave, 1000, 3000)
    assert not inside[:1000].any() and not inside[3000:].any()
    assert (inside[1000 + EDGE : 3000 - EDGE] == 1).all()
    assert np.abs(np.diff(inside)).max() < 0.02
    assert (fade(wave, 0, 4000) == 1).all()
    assert not fade(wave, 50, 50).any()


@pytest.mark.parametrize("kind", ["white", "pink", "hum"])
def test_noises(kind: str) -> None:
    wave = generate_noise(kind, SAMPLE_RATE * 2, np.random.default_rng(0))  # type: ignore[arg-type]
    assert np.sqrt(np.mean(wave**2)) == pytest.approx(1, rel=1e-3)
    power = np.abs(np.fft.rfft(wave)) ** 2
    low, high = power[200:400].sum(), power[3200:6400].sum()  # 100-200 Hz, 1600-3200 Hz
    if kind == "white":
        assert high / low == pytest.approx(16, rel=0.4)
    if kind == "pink":
        assert high / low == pytest.approx(1, rel=0.4)
    if kind == "hum":
        assert high < low * 1e-3
