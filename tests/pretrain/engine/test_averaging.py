"""The mean of weights takes each epoch's end once."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cavmae.pretrain.engine.averaging import WeightAverage
from cavmae.pretrain.engine.settings import OptimizerSettings


@settings(max_examples=30)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 6))
def test_the_mean_of_epochs_is_that_of_a_loop(ends: list[bool], first: int) -> None:
    model = nn.Linear(1, 1)
    average = WeightAverage(model, OptimizerSettings(average_from_epoch=first), 1.0)
    epoch = 0
    passed = []
    for step, end in enumerate(ends, 1):
        with torch.no_grad():
            model.weight.fill_(step)
        epoch += end
        average.update(model, epoch if end else 0)
        if end and epoch >= first:
            passed.append(step)
        weights = average.state_dict()
        if not passed:
            assert weights is None
            continue
        assert weights is not None
        torch.testing.assert_close(float(weights["weight"]), sum(passed) / len(passed), rtol=1e-5,
                                   atol=0)  # fmt: skip
        expected = {"first_epoch": first, "last_epoch": first + len(passed) - 1}
        assert average.description() == expected
