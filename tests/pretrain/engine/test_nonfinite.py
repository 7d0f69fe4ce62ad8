"""Non-finite steps: PyTorch's own protocol for skipping them."""

import pytest
import torch

from cavmae.pretrain.engine.nonfinite import skip_step_if


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_a_fused_optimizer_skips_a_step_and_its_count(kind: type[torch.optim.AdamW]) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = kind([parameter], lr=0.1, fused=True)
    parameter.grad = torch.ones(3)
    skip_step_if(optimizer, torch.tensor(False))
    optimizer.step()
    before = parameter.detach().clone()
    assert (before < 1).all()
    parameter.grad = torch.full((3,), torch.nan)
    skip_step_if(optimizer, torch.tensor(True))
    optimizer.step()
    assert torch.equal(parameter, before)
    assert optimizer.state[parameter]["step"] == 1
    parameter.grad = torch.ones(3)
    skip_step_if(optimizer, torch.tensor(False))
    optimizer.step()
    assert (parameter < before).all()
    assert optimizer.state[parameter]["step"] == 2
