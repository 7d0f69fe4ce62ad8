"""Temporal attentions: published outputs, naive loops, and laws of time."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from cavmae.pretrain.blocks import Attention
from cavmae.pretrain.temporal.base import TemporalAttention
from cavmae.pretrain.temporal.divided import DividedAttention
from cavmae.pretrain.temporal.orthoformer import (
    OrthoformerAttention,
    attend_by_prototypes,
    choose_prototypes,
)
from cavmae.pretrain.temporal.settings import (
    TEMPORAL,
    DividedOptions,
    JointOptions,
    OrthoformerOptions,
    PerFrameOptions,
    TemporalOptions,
    TrajectoryOptions,
)
from cavmae.pretrain.temporal.trajectory import TrajectoryAttention

GOLDEN = Path(__file__).parents[1] / "golden" / "trajectory_attention.safetensors"
WIDTH, HEADS, FRAMES, TOKENS = 8, 2, 3, 5
ENTRIES: list[TemporalOptions] = [
    PerFrameOptions(),
    JointOptions(),
    DividedOptions(),
    TrajectoryOptions(),
    TrajectoryOptions(project_values=True),
    OrthoformerOptions(prototypes=4),
    OrthoformerOptions(prototypes=4, project_values=True),
]


def attention_of(options: TemporalOptions, trained: bool = True, seed: int = 0) -> Any:
    """Attention in double precision, at its start or with every weight moved away from it."""
    torch.manual_seed(seed)
    attention: TemporalAttention = TEMPORAL.build(options, WIDTH, HEADS).double().eval()
    if trained:
        with torch.no_grad():
            for parameter in attention.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return attention


def clip(seed: int = 1) -> Tensor:
    """Tokens of a batch: [2, FRAMES * TOKENS, WIDTH]."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(2, FRAMES * TOKENS, WIDTH, generator=rng, dtype=torch.float64)


def test_every_entry_has_its_laws() -> None:
    assert {options.name for options in ENTRIES} == set(TEMPORAL)


@pytest.fixture(scope="module")
def golden() -> tuple[dict[str, int], dict[str, Tensor]]:
    with safe_open(str(GOLDEN), "pt") as file:
        numbers = {k: int(v) for k, v in file.metadata().items() if k != "note"}
        return numbers, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@torch.no_grad()
def test_trajectory_attention_is_the_published_one(
    golden: tuple[dict[str, int], dict[str, Tensor]],
) -> None:
    """Its class token is no key, so that the patches do not depend on it."""
    numbers, values = golden
    width = numbers["dim"]
    attention = TrajectoryAttention(TrajectoryOptions(project_values=True), width, numbers["heads"])
    weights = {k.removeprefix("model."): v for k, v in values.items() if k.startswith("model.")}
    key_value, bias = weights.pop("proj_kv.weight"), weights.pop("proj_kv.bias")
    attention.load_state_dict(
        {k.replace("proj_q", "time_q"): v for k, v in weights.items()}
        | {"time_k.weight": key_value[:width], "time_v.weight": key_value[width:]}
        | {"time_v.bias": bias[width:]}
    )
    x, y = values["io.x"][:, 1:], values["io.y"][:, 1:]
    torch.testing.assert_close(attention(x, numbers["frames"]), y, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_attention_by_prototypes_is_the_published_one(
    golden: tuple[dict[str, int], dict[str, Tensor]],
) -> None:
    numbers, values = golden
    q, k, v = (values[f"io.orth_{name}"] for name in "qkv")
    scaled = values["io.orth_prototypes_scaled"]
    places = torch.cdist(q * q.shape[-1] ** -0.25, scaled).argmin(dim=1)  # [B, R]
    # They lie in the order of the queries: which one was first is not known.
    choices = [choose_prototypes(q, first, numbers["landmarks"]) for first in places.unbind(1)]
    equal = torch.stack([(c.sort(dim=1)[0] == places).all(dim=1) for c in choices])
    assert torch.all(equal.any(dim=0))
    prototypes = q.gather(1, places[..., None].expand(-1, -1, q.shape[-1]))
    torch.testing.assert_close(prototypes * q.shape[-1] ** -0.25, scaled)
    frames = numbers["frames"]
    out = attend_by_prototypes(*(x[:, None] for x in (q, k, v, prototypes)), frames)
    torch.testing.assert_close(
        out[:, :, 0].transpose(1, 2), values["io.orth_out"], rtol=1e-5, atol=1e-5
    )


def softmax_mean(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Mean of values, weighted by the softmax of scaled products."""
    weights = torch.stack([(query @ key) * len(query) ** -0.5 for key in keys]).exp()
    return sum(w * value for w, value in zip(weights / weights.sum(), values, strict=True))  # type: ignore[return-value]


def by_head(x: Tensor, linear: Any, part: int = 0) -> Tensor:
    """A projection's part (of q, k, v) by head and token: [HEADS, L, E]."""
    rows = slice(part * WIDTH, (part + 1) * WIDTH)
    y = x @ linear.weight[rows].T + (0 if linear.bias is None else linear.bias[rows])
    return y.unflatten(-1, (HEADS, -1)).transpose(0, 1)


def naive_attention(attention: Attention, x: Tensor, groups: list[list[int]]) -> Tensor:
    """Self-attention of tokens [L, D], each to those of its own group."""
    q, k, v = (by_head(x, attention.qkv, part) for part in range(3))
    out = torch.empty_like(x).unflatten(-1, (HEADS, -1))
    for group in groups:
        for head, token in itertools.product(range(HEADS), group):
            keys, values = [k[head, t] for t in group], [v[head, t] for t in group]
            out[token, head] = softmax_mean(q[head, token], keys, values)
    return attention.proj(out.flatten(1))  # type: ignore[no-any-return]


IN_FRAME = [[f * TOKENS + s for s in range(TOKENS)] for f in range(FRAMES)]
IN_PLACE = [[f * TOKENS + s for f in range(FRAMES)] for s in range(TOKENS)]
ALL = [[*range(FRAMES * TOKENS)]]


def naive_prototypes(q: Tensor, count: int) -> list[int]:
    """Greedy choice among [L, E], from the longest on."""
    chosen = [max(range(len(q)), key=lambda i: float(q[i].norm()))]
    while len(chosen) < count:
        rest = [i for i in range(len(q)) if i not in chosen]
        cosine = lambda i, j: float(functional.cosine_similarity(q[i], q[j], dim=0).abs())  # noqa: E731
        chosen.append(min(rest, key=lambda i: max(cosine(i, j) for j in chosen)))
    return chosen


def naive_trajectory(attention: TrajectoryAttention, x: Tensor) -> Tensor:
    """Trajectory attention of tokens [L, D], with prototypes or without."""
    q, k, v = (by_head(x, attention.qkv, part) for part in range(3))
    y = torch.empty(len(x), FRAMES, HEADS, WIDTH // HEADS, dtype=x.dtype)
    for head in range(HEADS):
        prototypes = []
        if isinstance(attention, OrthoformerAttention):
            prototypes = [q[head, i] for i in naive_prototypes(q[head], attention.prototypes)]
        for frame, token in itertools.product(range(FRAMES), range(len(x))):
            keys = [k[head, t] for t in IN_FRAME[frame]]
            values = [v[head, t] for t in IN_FRAME[frame]]
            if prototypes:
                values = [softmax_mean(p, keys, values) for p in prototypes]
                keys = prototypes
            y[token, frame, head] = softmax_mean(q[head, token], keys, values)
    out = torch.empty_like(x).unflatten(-1, (HEADS, -1))
    for token in range(len(x)):
        path = y[token].flatten(1)  # [F, D]
        query = by_head(path[token // TOKENS][None], attention.time_q)
        keys_of = by_head(path, attention.time_k)
        no_projection = path.unflatten(-1, (HEADS, -1)).transpose(0, 1)
        values_of = no_projection if attention.time_v is None else by_head(path, attention.time_v)
        for head in range(HEADS):
            out[token, head] = softmax_mean(
                query[head, 0], list(keys_of[head]), list(values_of[head])
            )
    return attention.proj(out.flatten(1))  # type: ignore[no-any-return]


def naive(attention: Any, x: Tensor) -> Tensor:
    """Output of an entry for tokens [L, D]."""
    if isinstance(attention, TrajectoryAttention):
        return naive_trajectory(attention, x)
    if isinstance(attention, DividedAttention):
        over_time = naive_attention(attention.time, x, IN_PLACE)
        return over_time + naive_attention(attention, x + over_time, IN_FRAME)
    per_frame = type(attention).__name__ == "PerFrameAttention"
    return naive_attention(attention, x, IN_FRAME if per_frame else ALL)


@pytest.mark.parametrize("options", ENTRIES, ids=str)
@torch.no_grad()
def test_against_naive_loops(options: TemporalOptions) -> None:
    attention, x = attention_of(options), clip()
    expected = torch.stack([naive(attention, tokens) for tokens in x])
    # Cosines are compared in single precision.
    torch.testing.assert_close(attention(x, FRAMES), expected)


@pytest.mark.parametrize("options", ENTRIES, ids=str)
@torch.no_grad()
def test_permuting_frames_permutes_the_output(options: TemporalOptions) -> None:
    attention, x = attention_of(options), clip().unflatten(1, (FRAMES, TOKENS))
    order = [2, 0, 1]
    moved = attention(x[:, order].flatten(1, 2), FRAMES).unflatten(1, (FRAMES, TOKENS))
    result = attention(x.flatten(1, 2), FRAMES).unflatten(1, (FRAMES, TOKENS))
    torch.testing.assert_close(moved, result[:, order])


@pytest.mark.parametrize("options", ENTRIES, ids=str)
@torch.no_grad()
def test_a_static_video_at_the_start(options: TemporalOptions) -> None:
    """With the initial weights it gives what one frame gives; prototypes, what two frames give."""
    attention, frame = attention_of(options, trained=False), clip()[:, :TOKENS]
    count = 2 if isinstance(options, OrthoformerOptions) else 1
    few = attention(frame.repeat(1, count, 1), count)[:, :TOKENS]
    result = attention(frame.repeat(1, 4, 1), 4)
    torch.testing.assert_close(result, few.repeat(1, 4, 1))


@pytest.mark.parametrize("options", ENTRIES, ids=str)
def test_one_frame_is_plain_attention(options: TemporalOptions) -> None:
    """To the bit; the formula of several frames with identity values says the same for one."""
    attention, x = attention_of(options), clip()
    assert torch.equal(attention(x, 1), Attention.forward(attention, x))
    if not isinstance(options, OrthoformerOptions):
        plain = attention_of(options, trained=False)
        torch.testing.assert_close(plain.mix_frames(x, 1), plain(x, 1))


@torch.no_grad()
def test_divided_attention_starts_as_attention_within_each_frame() -> None:
    divided = attention_of(DividedOptions(), trained=False)
    per_frame = attention_of(PerFrameOptions(), trained=False)
    per_frame.load_state_dict(divided.state_dict(), strict=False)
    assert torch.equal(divided(clip(), FRAMES), per_frame(clip(), FRAMES))


@pytest.mark.parametrize("options", ENTRIES, ids=str)
def test_every_weight_moves(options: TemporalOptions) -> None:
    attention = attention_of(options).train()
    attention(clip(), FRAMES).square().sum().backward()
    for name, parameter in attention.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-9, name


def test_the_first_prototype_is_random_in_training_only() -> None:
    attention = attention_of(OrthoformerOptions(prototypes=2))
    x = clip()
    assert torch.equal(attention(x, FRAMES), attention(x, FRAMES))
    attention.train()
    torch.manual_seed(0)
    results = [attention(x, FRAMES) for _ in range(8)]
    assert any(not torch.equal(results[0], other) for other in results[1:])
    torch.manual_seed(0)  # which a run saves and restores
    assert torch.equal(attention(x, FRAMES), results[0])


def test_there_are_no_more_prototypes_than_queries() -> None:
    few = attention_of(OrthoformerOptions(prototypes=FRAMES * TOKENS))
    many = attention_of(OrthoformerOptions())
    assert torch.equal(few(clip(), FRAMES), many(clip(), FRAMES))
    q = torch.zeros(1, 4, 2)  # all alike: none twice
    assert sorted(choose_prototypes(q, torch.tensor([2]), 4)[0].tolist()) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="prototypes 0 is not from 1"):
        dataclasses.replace(OrthoformerOptions(), prototypes=0)
