"""Joint assignment by masks and voices; finite SDR and energies."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.audio import signal_noise_ratio

from cavmae.finetune.speaker.matcher import (
    CAP_DB,
    People,
    Points,
    assign,
    draw_points,
    energies_db,
    joint_costs,
    mask_costs,
    points_of,
    sdr,
    sdr_pairs,
)
from cavmae.finetune.speaker.settings import LossSettings


def weights_of(
    state: float, entropy: float, dice: float, sdr_db: float, silence: float
) -> LossSettings:
    return LossSettings(
        state_weight=state, entropy_weight=entropy, dice_weight=dice, sdr_weight=sdr_db,
        silence_weight=silence,
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(3, 5), st.integers(0, 10**6))
def test_the_cheapest_assignment_of_all(people: int, slots: int, seed: int) -> None:
    costs = torch.randn(1, slots, people, generator=torch.Generator().manual_seed(seed))
    assignment = assign(costs, torch.ones(1, people, dtype=torch.bool))[0].tolist()
    assert len(set(assignment)) == people
    cost = sum(float(costs[0, s, p]) for p, s in enumerate(assignment))
    best = min(
        sum(float(costs[0, s, p]) for p, s in enumerate(order))
        for order in itertools.permutations(range(slots), people)
    )
    assert cost == pytest.approx(best, abs=1e-5)


def test_a_cue_fixes_slot_0_and_the_rest_is_matched() -> None:
    costs = torch.tensor([[[0.0, 9.0, 9.0], [9.0, 0.0, 9.0], [9.0, 9.0, 0.0], [5.0, 5.0, 5.0]]])
    present = torch.ones(1, 3, dtype=torch.bool)
    assert assign(costs, present).tolist() == [[0, 1, 2]]
    assert assign(costs, present, torch.tensor([-1])).tolist() == [[0, 1, 2]]
    assert assign(costs, present, torch.tensor([2])).tolist() == [[3, 1, 0]]


def test_absent_people_have_no_slot() -> None:
    costs = torch.randn(2, 4, 3)
    present = torch.tensor([[True, False, False], [False, False, False]])
    assignment = assign(costs, present)
    assert (assignment[~present] == -1).all()
    assert assignment[0, 0] == costs[0, :, 0].argmin()


def test_more_people_than_slots() -> None:
    with pytest.raises(ValueError, match="3 people for 2 slots"):
        assign(torch.zeros(1, 2, 3), torch.ones(1, 3, dtype=torch.bool))


def test_costs_that_are_not_finite_are_not_chosen() -> None:
    costs = torch.tensor([[[math.nan], [1.0], [math.inf]]])
    assert assign(costs, torch.ones(1, 1, dtype=torch.bool)).tolist() == [[1]]


def test_sdr_is_torchmetrics_below_the_cap() -> None:
    truth = torch.randn(3, 8_000)
    estimates = 0.7 * truth + torch.tensor([[2.0], [0.3], [0.1]]) * torch.randn(3, 8_000)
    expected = signal_noise_ratio(estimates, truth)
    torch.testing.assert_close(sdr(estimates, truth), expected, atol=0.1, rtol=0)
    pairs = sdr_pairs(estimates[None], truth[None])[0]
    torch.testing.assert_close(pairs.diagonal(), expected, atol=0.1, rtol=0)
    assert pairs[0, 1] == pytest.approx(float(sdr(estimates[0], truth[1])), abs=1e-2)


@pytest.mark.parametrize("kind", ["same", "silent estimate", "silent truth", "both silent"])
def test_sdr_and_its_gradient_are_finite(kind: str) -> None:
    truth = torch.randn(1, 8_000)
    estimate = torch.randn(1, 8_000) if kind == "silent truth" else truth.clone()
    if kind in ("silent estimate", "both silent"):
        estimate = torch.zeros(1, 8_000)
    if "truth" in kind or "both" in kind:
        truth = torch.zeros(1, 8_000)
    estimate.requires_grad_()
    value = sdr(estimate, truth)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(estimate.grad).all()
    if kind == "same":
        assert value.item() == pytest.approx(CAP_DB, abs=0.1)
    if kind == "silent estimate":
        assert estimate.grad.abs().sum() > 0  # the estimate can leave silence


def test_sdr_depends_on_scale() -> None:
    truth = torch.randn(1, 8_000)
    assert sdr(10 * truth, truth).item() == pytest.approx(-20 * math.log10(9), abs=0.1)


def test_energies_are_relative_and_have_a_floor() -> None:
    mixture = torch.randn(1, 8_000)
    waves = torch.stack([mixture[0], 0.1 * mixture[0], torch.zeros(8_000)])[None]
    waves.requires_grad_()
    energies = energies_db(waves, mixture)
    torch.testing.assert_close(energies, torch.tensor([[0.0, -20.0, -60.0]]), atol=0.01, rtol=0)
    energies.sum().backward()
    assert torch.isfinite(waves.grad).all()
    assert torch.isfinite(energies_db(torch.zeros(1, 1, 10), torch.zeros(1, 10))).all()


def test_costs_of_masks_against_a_naive_loop() -> None:
    x, t = torch.randn(2, 3, 40), (torch.rand(2, 2, 40) > 0.6).float()
    entropy, dice = mask_costs(Points(x, t))
    for n, q, p in np.ndindex(2, 3, 2):
        total, both, size = 0.0, 0.0, 0.0
        for k in range(40):
            prob = 1 / (1 + math.exp(-float(x[n, q, k])))
            true = float(t[n, p, k])
            total -= math.log(prob if true else 1 - prob)
            both += prob * true
            size += prob + true
        assert float(entropy[n, q, p]) == pytest.approx(total / 40, rel=1e-4)
        assert float(dice[n, q, p]) == pytest.approx(1 - (2 * both + 1) / (size + 1), rel=1e-4)


def test_points_are_read_where_they_lie() -> None:
    """A mask at a quarter of the size, read at pixels of the whole."""
    truth = torch.zeros(1, 1, 2, 16, 24, dtype=torch.bool)
    truth[:, :, 0, :8, :12] = True
    truth[:, :, 1, 8:, 12:] = True
    logits = torch.nn.functional.avg_pool2d(truth[0, 0].float(), 4)[None, None] * 20 - 10
    points = points_of(logits, truth, draw_points(truth.shape, 300, truth.device))
    agree = ((points.predicted > 0) == (points.truth > 0.5)).float().mean()
    assert float(agree) > 0.9
    assert 0.15 < float(points.truth.mean()) < 0.35


def _people(active: list[bool], voices: torch.Tensor) -> People:
    n = len(active)
    present = torch.ones(1, n, dtype=torch.bool)
    return People(present, torch.tensor([active]), present, voices[None])


def test_joint_assignment_where_masks_and_voices_disagree() -> None:
    """The larger cost decides for masks and voices together."""
    time = torch.arange(8_000) / 16_000
    voices = torch.stack([torch.sin(2 * torch.pi * f * time) for f in (200.0, 330.0)])
    people = _people([True, True], voices)
    truth = torch.zeros(1, 2, 100)
    truth[0, 0, :50] = 1
    truth[0, 1, 50:] = 1
    masks = Points(truth * 8 - 4, truth)  # slot 0 is person 0 by its mask
    swapped = voices.flip(0)[None]  # and person 1 by its voice
    states = torch.zeros(1, 2, 4)
    mixture = voices.sum(0)[None]
    for weights, expected in (
        (weights_of(1, 5, 5, 0.01, 0.01), [[0, 1]]),
        (weights_of(1, 0.01, 0.01, 1, 0.01), [[1, 0]]),
    ):
        costs = joint_costs(people, weights, states, masks, swapped, mixture)
        assert assign(costs, people.present).tolist() == expected


def test_a_silent_person_takes_the_silent_slot() -> None:
    voices = torch.zeros(2, 8_000)
    voices[0] = torch.randn(8_000)
    people = _people([True, False], voices)
    waves = torch.stack([torch.zeros(8_000), voices[0], 0.5 * voices[0]])[None]
    points = Points(torch.zeros(1, 3, 10), torch.zeros(1, 2, 10))
    weights = weights_of(1, 1, 1, 0.1, 0.1)
    costs = joint_costs(people, weights, torch.zeros(1, 3, 4), points, waves, voices[:1])
    assert assign(costs, people.present).tolist() == [[1, 0]]
