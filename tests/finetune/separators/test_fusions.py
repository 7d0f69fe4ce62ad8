"""Fusions: cross-attention against a naive loop, hidden frames, what the cue is worth."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cavmae.finetune.separators.fusions.cross_attention import CrossAttention, UpdatedMapHead
from cavmae.finetune.separators.settings import (
    FUSIONS,
    SEPARATORS,
    F2BOptions,
    F2FOptions,
    FiLMOptions,
    UNetOptions,
)
from cavmae.finetune.separators.stft import wave

CHANNELS, WIDTH, OUTPUTS, FRAMES = 6, 10, 2, 5
ATTENTIVE = ("f2f", "f2b")
close: Any = torch.testing.assert_close


def operator(bands: int = 3, positions: bool = True) -> CrossAttention:
    """Cross-attention with an open gate and random nulls; without positions if so asked."""
    torch.manual_seed(0)
    attention = CrossAttention(CHANNELS, WIDTH, heads=2, head_width=8, bands=bands)
    for parameter in (attention.gate, attention.null_key, attention.null_value):
        torch.nn.init.normal_(parameter)
    attention.rates *= positions
    return attention


def fusion_of(name: str, gate: float = 1.0, **options: Any) -> Any:
    torch.manual_seed(0)
    fusion = FUSIONS.build(FUSIONS.options(name)(**options), WIDTH, CHANNELS, OUTPUTS)
    if name in ATTENTIVE:
        torch.nn.init.constant_(fusion.attention.gate, gate)
    return fusion


def voices_of(count: int = 2, batch: int = 1) -> Tensor:
    return torch.randn(batch, count, FRAMES, WIDTH)


def naive(
    attention: CrossAttention, x_cgl: Tensor, times: Tensor, voice: Tensor, visible: Tensor
) -> Tensor:
    """Update [C, G, L] of a map by one voice [T, D]: loops over heads, queries and frames."""
    heads, bands = attention.heads, attention.bands
    pairs = attention.rates.shape[1]  # type: ignore[union-attr]
    a = 4 * pairs

    def turned(x_a: Tensor, band: int, time: float) -> Tensor:
        angles = torch.polar(torch.ones(pairs), attention.rates[band] * time)  # type: ignore[index]
        rotated = torch.complex(x_a[:pairs], x_a[pairs : 2 * pairs]) * angles
        return torch.cat([rotated.real, rotated.imag, x_a[2 * pairs :]])

    update = torch.zeros_like(x_cgl)
    weight = attention.query.weight[:, :, 0, 0]
    for query in range(x_cgl.shape[-1]):
        parts = [[torch.empty(0)] * heads for _ in range(bands)]
        for head in range(heads):
            scores, values = [], []
            rows = slice(head * a, (head + 1) * a)
            for frame in [*visible.nonzero()[:, 0].tolist(), None]:
                score, value = 0.0, []
                for band in range(bands):
                    q = weight[rows] @ x_cgl[:, band, query] + attention.query.bias[rows]
                    place = slice((head * bands + band) * a, (head * bands + band + 1) * a)
                    if frame is None:
                        k = torch.cat([torch.zeros(a // 2), attention.null_key[head, band]])
                        value.append(attention.null_value[head, band])
                    else:
                        k = turned(attention.key(voice[frame])[place], band, frame + 0.5)
                        value.append(attention.value(voice[frame])[place])
                    score = score + turned(q, band, float(times[query])) @ k
                scores.append(score / math.sqrt(bands * a))
                values.append(torch.stack(value))
            weights = torch.stack(scores).softmax(0)
            mean = sum(w * v for w, v in zip(weights, values, strict=True))
            for band in range(bands):
                parts[band][head] = mean[band]  # type: ignore[index]
        for band in range(bands):
            z = attention.out(torch.cat(parts[band]))
            normed = functional.layer_norm(z, (CHANNELS,), attention.norm.weight)
            update[:, band, query] = attention.gate * (normed + attention.norm.bias)
    return update


@torch.no_grad()
@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("bands", [3, 1])
def test_attention_equals_a_naive_loop(bands: int, positions: bool) -> None:
    attention = operator(bands, positions)
    x, voices = torch.randn(2, CHANNELS, bands, 4), voices_of(2, batch=2)
    times = torch.tensor([0.2, 3.1, 1.0, 4.7])
    visible = torch.rand(2, 2, FRAMES) < 0.6
    update = attention(x, times, voices, visible)
    for n in range(2):
        for k in range(2):
            expected = naive(attention, x[n], times, voices[n, k], visible[n, k])
            close(update[n, k], expected, atol=1e-5, rtol=1e-4)
    everything = torch.ones(2, 2, FRAMES, dtype=torch.bool)
    close(attention(x, times, voices), attention(x, times, voices, everything))


@torch.no_grad()
def test_a_frame_of_a_single_bin_is_a_bin() -> None:
    frame = fusion_of("f2f", bands=1, heads=2, head_width=8)
    every = fusion_of("f2b", stride=1, heads=2, head_width=8)
    every.load_state_dict(frame.state_dict())
    x, voices = torch.randn(1, CHANNELS, 1, 4 * FRAMES), voices_of()
    visible = torch.rand(1, 2, FRAMES) < 0.6
    close(frame(x, voices, visible), every(x, voices, visible))


@torch.no_grad()
def test_the_order_of_a_sequence_counts_by_its_positions_only() -> None:
    order = torch.tensor([3, 0, 4, 2, 1])
    x, voices, times = torch.randn(1, CHANNELS, 3, 7), voices_of(), torch.rand(7) * FRAMES
    visible = torch.tensor([True, True, False, True, True]).expand(1, 2, -1)
    for positions in (False, True):
        attention = operator(3, positions)
        whole = attention(x, times, voices, visible)
        permuted = attention(x, times, voices[:, :, order], visible[..., order])
        assert torch.allclose(permuted, whole, atol=1e-5) != positions
        queries = torch.randperm(7)
        close(attention(x[..., queries], times[queries], voices, visible), whole[..., queries])


@torch.no_grad()
def test_only_distances_in_time_count() -> None:
    attention = operator()
    x, voices, times = torch.randn(1, CHANNELS, 3, 7), voices_of(), torch.rand(7) * FRAMES
    visible = torch.ones(1, 2, FRAMES, dtype=torch.bool)
    visible[..., -1] = False
    later = attention(x, times + 1, voices.roll(1, 2), visible.roll(1, 2))
    close(later, attention(x, times, voices, visible), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_a_closed_gate_is_the_identity_and_learns(name: str) -> None:
    fusion = fusion_of(name, gate=0.0)
    x, voices = torch.randn(1, CHANNELS, 32, 8), voices_of()
    fused = fusion(x, voices)
    of_map = fusion.head.last(functional.gelu(fusion.head.first(x)))
    close(fused, of_map[:, None].expand_as(fused))
    (fused * torch.randn_like(fused)).sum().backward()
    assert fusion.attention.gate.grad.abs() > 0


@torch.no_grad()
@pytest.mark.parametrize("name", ATTENTIVE)
def test_what_is_hidden_does_not_count(name: str) -> None:
    fusion = fusion_of(name)
    x, voices = torch.randn(1, CHANNELS, 32, 4 * FRAMES), voices_of()
    visible = torch.tensor([True, False, True, True, False]).expand(1, 2, -1)
    fused = fusion(x, voices, visible)
    close(fusion(x, voices * torch.where(visible, 1.0, -9.0)[..., None], visible), fused)
    changed = fusion(x, voices, visible & (torch.arange(FRAMES) != 2)) - fused
    assert changed.abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("name", ATTENTIVE)
def test_a_sequence_that_is_hidden_gives_the_null_value(name: str) -> None:
    fusion = fusion_of(name)
    x, nothing = torch.randn(1, CHANNELS, 32, 8), torch.zeros(1, 2, FRAMES, dtype=torch.bool)
    fused = fusion(x, 1e3 * voices_of(), nothing)
    attention = fusion.attention
    null = attention.null_value.transpose(0, 1).flatten(1)  # [G, h a]
    update = attention.gate * attention.norm(attention.out(null))  # [G, C]
    update = update.T[None, None, :, :, None].expand(1, 2, -1, -1, 8)
    close(fused, fusion.head(x, update), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(set(FUSIONS) - set(ATTENTIVE)))
def test_fusions_without_attention_take_the_embedding_as_it_is(name: str) -> None:
    fusion = fusion_of(name)
    x, voices = torch.randn(1, CHANNELS, 32, 8), voices_of()
    nothing = torch.zeros(1, 2, FRAMES, dtype=torch.bool)
    assert torch.equal(fusion(x, voices), fusion(x, voices, nothing))


@torch.no_grad()
def test_film_scales_and_offsets_the_channels_of_each_frame() -> None:
    fusion = fusion_of("film")
    x, voices = torch.randn(1, CHANNELS, 4, FRAMES), voices_of()
    hidden = torch.empty(1, 2, CHANNELS, 4, FRAMES)
    for k in range(2):
        for frame in range(FRAMES):
            scale, offset = fusion.film(voices[0, k, frame]).chunk(2)
            of_map = fusion.map_proj(x)[0, :, :, frame]
            hidden[0, k, :, :, frame] = of_map * (1 + scale[:, None]) + offset[:, None]
    expected = torch.stack([fusion.last(functional.gelu(hidden[:, k])) for k in range(2)], 1)
    close(fusion(x, voices), expected)


@torch.no_grad()
def test_the_head_sees_the_sum_of_map_and_update() -> None:
    head = UpdatedMapHead(CHANNELS, OUTPUTS)
    x, update = torch.randn(1, CHANNELS, 10, 6), torch.randn(1, 2, CHANNELS, 3, 2)
    whole = functional.interpolate(update[0], (10, 6), mode="bilinear", align_corners=False)
    expected = head.last(functional.gelu(head.first(x + whole)))
    close(head(x, update)[0], expected, atol=1e-5, rtol=1e-4)


def test_blocks_of_bins_cover_maps_of_any_size() -> None:
    fusion = fusion_of("f2b", stride=4)
    x = torch.randn(1, CHANNELS, 10, 6)
    assert fusion(x, voices_of()).shape == (1, 2, OUTPUTS, 10, 6)
    assert fusion.attention(
        x.flatten(2)[:, :, None], torch.zeros(60), voices_of()
    ).shape == (1, 2, CHANNELS, 1, 60)  # fmt: skip


@pytest.mark.parametrize("options", [F2FOptions, F2BOptions])
def test_widths_of_heads_that_hold_no_positions_are_refused(options: Any) -> None:
    with pytest.raises(ValueError, match="head_width 6 is not a multiple of 4"):
        options(head_width=6)
    with pytest.raises(ValueError, match="film: width 5000 is not from 0 to 4096"):
        FiLMOptions(width=5000)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_attention_learns_when_each_voice_is_active(name: str) -> None:
    """Two noises in turns, each told by its own envelope, from a closed gate.

    Without the cue both estimates are the same, so that the loss is at least a quarter of the
    power of the difference of the voices.
    """
    torch.manual_seed(0)
    options = UNetOptions(width=4, fusion=FUSIONS.options(name)())
    separator = SEPARATORS.build(options, WIDTH)
    samples, frames = 10_240, 16
    active = (torch.arange(frames) // 2 % 2).float()
    active = torch.stack([active, 1 - active])
    waves = torch.randn(1, 2, samples) * active.repeat_interleave(samples // frames, 1)
    mixture = waves.sum(1)
    voices = torch.zeros(1, 2, frames, WIDTH)
    voices[..., 0] = active
    visible = torch.ones(1, 2, frames, dtype=torch.bool)
    gates = torch.ones(1, 3, frames)

    def separated(visible: Tensor) -> Tensor:
        features = separator.features(mixture)
        spectra = separator.separate(mixture, features, voices, gates, visible)
        return wave(spectra[:, :-1], samples)

    optimizer = torch.optim.Adam(separator.parameters(), 1e-2)
    without_cue = float((waves[:, 0] - waves[:, 1]).square().mean() / 4)
    loss = math.inf
    for _ in range(40):
        error = (separated(visible) - waves).square().mean()
        error.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss = float(error.detach())
        if loss < 0.3 * without_cue:
            break
    assert loss < 0.3 * without_cue
    blind = separated(~visible).detach()
    close(blind[:, 0], blind[:, 1], atol=1e-4, rtol=1e-3)
