"""Attention, MLP and pooling are timm's, weight for weight."""

import pytest
import torch
from timm.layers.attention import Attention as TimmAttention
from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.mlp import Mlp as TimmMlp
from torch import nn

from cavmae.pretrain.blocks import Attention, AttentionPool, Mlp


@pytest.mark.parametrize(
    ("ours", "timms"),
    [
        (Attention(24, 3), TimmAttention(24, num_heads=3, qkv_bias=True)),
        (Mlp(24, 40), TimmMlp(24, hidden_features=40)),
        (AttentionPool(24, 3, 16), AttentionPoolLatent(24, num_heads=3, out_features=16)),
    ],
)
def test_same_names_outputs_and_gradients(ours: nn.Module, timms: nn.Module) -> None:
    ours.load_state_dict(timms.state_dict())
    x = torch.randn(2, 7, 24)
    expected, result = timms(x), ours(x)
    torch.testing.assert_close(result, expected)
    weights = torch.randn_like(expected)
    for module, output in ((timms, expected), (ours, result)):
        (output * weights).sum().backward()
        assert all(p.grad is not None for p in module.parameters())
    for (name, a), b in zip(ours.named_parameters(), timms.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda m, name=name: f"{name}: {m}")


def test_the_learned_query_begins_within_two_deviations() -> None:
    latent = AttentionPool(4096, 4, 8).latent.detach()
    deviation = 4096**-0.5
    assert latent.abs().max() <= 2 * deviation
    assert float(latent.std()) == pytest.approx(0.88 * deviation, rel=0.05)  # of a cut normal
