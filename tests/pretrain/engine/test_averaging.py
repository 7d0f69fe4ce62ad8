"""The mean of weights takes each epoch's end once."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cavmae.pretrain.engine.averaging import WeightAverage
from cavmae.pretrain.engine.settings import OptimizerSettings


@settings(max_examples=30)
@given(st.floats(1.0, 15.0), st.integers(1, 6))
def test_the_mean_of_epochs_is_that_of_a_loop(epoch_steps: float, first: int) -> None:
    model = nn.Linear(1, 1)
    average = WeightAverage(model, OptimizerSettings(average_from_epoch=first), epoch_steps)
    ends = [round(epoch * epoch_steps) for epoch in range(1, 8)]
    for step in range(1, ends[-1] + 1):
        with torch.no_grad():
            model.weight.fill_(step)
        average.update(model, step)
        passed = [end for end in ends[first - 1 :] if end <= step]
        weights = average.state_dict()
        if not passed:
            assert weights is None
            continue
        assert weights is not None
        torch.testing.assert_close(float(weights["weight"]), sum(passed) / len(passed), rtol=1e-5,
                                   atol=0)  # fmt: skip
        expected = {"first_epoch": first, "last_epoch": first + len(passed) - 1}
        assert average.description() == expected
