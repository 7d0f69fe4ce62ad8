"""Pixel decoders of the registry, and pooling attention beside torchvision's."""

import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.video import mvit

from cavmae.finetune.speaker.pixel_decoders.base import PixelDecoder
from cavmae.finetune.speaker.pixel_decoders.pooling import (
    PoolingAttention,
    PoolingBlock,
    pooled_grid,
)
from cavmae.finetune.speaker.pixel_decoders.settings import PIXEL_DECODERS
from cavmae.pretrain.blocks import NORM_EPS, Attention

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def build(name: str, grid: tuple[int, int]) -> PixelDecoder:
    torch.manual_seed(0)
    built: PixelDecoder = PIXEL_DECODERS.build(PIXEL_DECODERS.options(name)(), 24, 6, 16, grid)
    return built


def inputs(grid: tuple[int, int], count: int = 2) -> Inputs:
    rows, columns = grid
    return (
        torch.randn(count, rows * columns, 24), torch.randn(count, 3, 16 * rows, 16 * columns),
        torch.randn(count, 6, 5, 7),
    )  # fmt: skip


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (5, 3)])
@pytest.mark.parametrize("name", sorted(PIXEL_DECODERS))
def test_maps_and_coarsest_level(name: str, grid: tuple[int, int]) -> None:
    rows, columns = grid
    decoder, values = build(name, grid), inputs(grid)
    fine, coarse = decoder(*values)
    assert fine.shape == (2, 16, 4 * rows, 4 * columns)
    assert coarse.shape == (2, rows * columns, 64)
    assert float(fine.detach().std()) == pytest.approx(1, abs=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        half = decoder(*values)
    for actual, expected in zip(half, (fine, coarse), strict=True):
        assert actual.shape == expected.shape
        assert torch.isfinite(actual).all()


@pytest.mark.parametrize("name", sorted(PIXEL_DECODERS))
def test_every_weight_gets_a_gradient_and_every_input_counts(name: str) -> None:
    decoder = build(name, (2, 3))
    values = inputs((2, 3))
    for value in values:
        value.requires_grad_()
    fine, coarse = decoder(*values)
    (fine[:, :, 3, 5].square().sum() + coarse.square().mean()).backward()
    for key, parameter in decoder.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key
    for value in values:
        assert value.grad is not None and value.grad.any()


@pytest.mark.parametrize("name", sorted(PIXEL_DECODERS))
def test_frames_do_not_know_of_each_other(name: str) -> None:
    decoder, values = build(name, (2, 3)), inputs((2, 3), 3)
    for alone, together in zip(
        decoder(*(value[1:2] for value in values)), decoder(*values), strict=True
    ):
        torch.testing.assert_close(alone, together[1:2], atol=1e-5, rtol=1e-4)


# Parts of torchvision's names, and ours.
NAMES = (
    (r"\.pool\.weight", ".conv.weight"), (r"\.norm_act\.0", ".norm"), (r"project\.0", "proj"),
    (r"^project\.", "shortcut."), (r"^mlp\.0", "mlp.fc1"), (r"^mlp\.3", "mlp.fc2"),
)  # fmt: skip


def load_torchvision(module: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Weights of torchvision's attention or block, whose grids have one frame."""
    renamed = {}
    for key, value in weights.items():
        for pattern, name in NAMES:
            key = re.sub(pattern, name, key)
        renamed[key] = value[:, :, 0] if value.ndim == 5 else value
    module.load_state_dict(renamed)


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("residual_query", [True, False], ids=["v2", "v1"])
@pytest.mark.parametrize(
    ("grid", "kernel", "query_stride", "key_stride"),
    [((4, 6), 3, 1, 2), ((5, 7), 3, 2, 4), ((6, 3), 3, 2, 8), ((3, 4), 1, 1, 1)],
)
def test_attention_is_torchvisions(
    grid: tuple[int, int], kernel: int, query_stride: int, key_stride: int,
    residual_query: bool, class_token: bool,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    reference = mvit.MultiscaleAttention(
        [1, *grid], 12, 24, 3, [1, kernel, kernel], [1, kernel, kernel],
        [1, query_stride, query_stride], [1, key_stride, key_stride],
        residual_pool=residual_query, residual_with_cls_embed=False, rel_pos_embed=False,
        norm_layer=partial(nn.LayerNorm, eps=NORM_EPS),
    )  # fmt: skip
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours = PoolingAttention(
        12, 24, 3, kernel, query_stride, key_stride, residual_query, class_token
    )
    load_torchvision(ours, reference.state_dict())
    tokens = torch.randn(2, grid[0] * grid[1] + 1, 12)
    if class_token:
        expected, (_, *size) = reference(tokens, (1, *grid))
        assert tuple(size) == pooled_grid(grid, query_stride)
        torch.testing.assert_close(ours(tokens, grid), expected, atol=1e-5, rtol=1e-4)
    else:  # torchvision always has one: a naive formula
        torch.testing.assert_close(
            ours(tokens[:, 1:], grid), naive(ours, tokens[:, 1:], grid), atol=1e-5, rtol=1e-4
        )


def naive(attention: PoolingAttention, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """softmax(P_q(X W_q) P_k(X W_k)^T / sqrt(d)) P_v(X W_v), head by head, pixel by pixel."""
    rows, columns = grid
    parts = attention.qkv(x).unflatten(-1, (3, attention.heads, -1))
    outputs = []
    for head in range(attention.heads):
        pooled = []
        for index, pool in enumerate((attention.pool_q, attention.pool_k, attention.pool_v)):
            part = parts[:, :, index, head]
            if pool is not None:
                stride, weight = pool.conv.stride[0], pool.conv.weight[:, 0]
                padded = nn.functional.pad(part.unflatten(1, grid), (0, 0, 1, 1, 1, 1))
                part = torch.stack([
                    torch.einsum("nijc,cij->nc", padded[:, i : i + 3, j : j + 3], weight)
                    for i in range(0, rows, stride) for j in range(0, columns, stride)
                ], dim=1)  # fmt: skip
                part = pool.norm(part)
            pooled.append(part)
        q, k, v = pooled
        output = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        outputs.append(output + q if attention.residual_query else output)
    projected: torch.Tensor = attention.proj(torch.cat(outputs, dim=-1))
    return projected


def test_kernel_and_stride_of_1_are_plain_attention() -> None:
    torch.manual_seed(0)
    ours = PoolingAttention(24, 24, 3, 1, 1, 1, residual_query=False)
    plain = Attention(24, 3)
    plain.load_state_dict(ours.state_dict())
    tokens = torch.randn(2, 6, 24)
    torch.testing.assert_close(ours(tokens, (2, 3)), plain(tokens))


@pytest.mark.parametrize(
    ("width", "query_stride", "grid"), [(12, 1, (4, 6)), (24, 2, (4, 6)), (24, 2, (5, 7))]
)
def test_a_block_is_torchvisions(width: int, query_stride: int, grid: tuple[int, int]) -> None:
    """But for the class token, which torchvision's attention always has."""
    torch.manual_seed(0)
    config: Any = mvit.MSBlockConfig(
        num_heads=3, input_channels=12, output_channels=width, kernel_q=[1, 3, 3],
        kernel_kv=[1, 3, 3], stride_q=[1, query_stride, query_stride], stride_kv=[1, 2, 2],
    )  # fmt: skip
    reference = mvit.MultiscaleBlock(
        [1, *grid], config, residual_pool=True, residual_with_cls_embed=False,
        rel_pos_embed=False, proj_after_attn=True,
        norm_layer=partial(nn.LayerNorm, eps=NORM_EPS),
    )  # fmt: skip
    ours = PoolingBlock(12, width, 3, query_stride, 2, residual_query=True)
    load_torchvision(ours, reference.state_dict())

    class WithoutClassToken(nn.Module):
        def forward(self, x: torch.Tensor, size: tuple[int, int, int]) -> Any:
            attended = nn.functional.pad(ours.attn(x[:, 1:], grid), (0, 0, 1, 0))
            return attended, (1, *pooled_grid(grid, query_stride))

    reference.attn = WithoutClassToken()
    maps = torch.randn(2, 12, *grid)
    tokens, (_, *size) = reference(nn.functional.pad(maps.flatten(2).mT, (0, 0, 1, 0)), (1, *grid))
    expected = tokens[:, 1:].mT.unflatten(2, size)
    torch.testing.assert_close(ours(maps), expected, atol=1e-5, rtol=1e-4)
