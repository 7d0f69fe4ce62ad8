"""Laterals: laws of every entry of the registry; audio pathway, DropPathway, Fast to Slow."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cavmae.finetune.laterals.audio_pathway import AudioLateral, AudioPathway, drop_pathway
from cavmae.finetune.laterals.av_nonlocal import AudioVisualNonLocal
from cavmae.finetune.laterals.base import FusedPathways, Lateral, PathwayShape
from cavmae.finetune.laterals.fast_to_slow import FastToSlow
from cavmae.finetune.laterals.settings import LATERALS, AudioVisualNonLocalOptions

SHAPE = PathwayShape(motion=8, token=12, frames=32, key_frames=4, audio=4)
WITH_AUDIO = [name for name in LATERALS if name != "none"]
# Audio steps before or after an audio step that may see it: stem, blocks, lateral, stride.
REACH = 4 + 3 + 2 + 2


def lateral(name: str, seed: int = 0, **options: Any) -> Lateral:
    torch.manual_seed(seed)
    built: Lateral = LATERALS.build(LATERALS.options(name)(**options), SHAPE)
    return built


def pathways(count: int = 2, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Motion [N, 32, 8, 3, 5], tokens [N, 4, 6, 12], fbank [N, 128, 16]."""
    rng = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, 32, 8, 3, 5, generator=rng),
        torch.randn(count, 4, 6, 12, generator=rng),
        torch.randn(count, 128, 16, generator=rng),
    )


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", list(LATERALS))
def test_shapes(name: str, half: bool) -> None:
    module = lateral(name)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        fused = module(*pathways())
    assert fused.tokens.shape == (2, 4, 6, 12)
    assert fused.key_motion.shape == (2, 4, module.key_channels, 3, 5)
    assert fused.cue_motion.shape == (2, 32, 8, 3, 5)
    exact = module(*pathways())
    torch.testing.assert_close(fused.key_motion.float(), exact.key_motion, atol=0.1, rtol=0.1)


def test_without_a_lateral_there_is_nothing_but_the_mean() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    module = LATERALS.build(LATERALS.options("none")(), SHAPE)
    assert torch.equal(torch.get_rng_state(), state)  # other weights of a seed are as before
    assert not module.state_dict()
    motion, tokens, fbank = pathways()
    fused = module(motion, tokens, fbank)
    assert fused.tokens is tokens and fused.cue_motion is motion
    assert torch.equal(fused.key_motion, motion.unflatten(1, (4, -1)).mean(2))


def total(fused: FusedPathways) -> Tensor:
    return sum((x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum() for x in fused)  # type: ignore[return-value]


@pytest.mark.parametrize("name", WITH_AUDIO)
def test_every_weight_gets_a_gradient_also_from_a_dropped_pathway(name: str) -> None:
    module = lateral(name)
    total(module(*pathways())).backward()
    for key, weight in module.named_parameters():
        assert weight.grad is not None and weight.grad.any(), key
        weight.grad = None
    total(module(*pathways(), torch.zeros(2))).backward()
    for key, weight in module.named_parameters():
        assert weight.grad is not None, key  # DDP waits for those that get none
        assert bool(weight.grad.any()) == key.startswith("fast_to_slow."), key


@pytest.mark.parametrize("name", list(LATERALS))
def test_clips_of_a_batch_do_not_know_of_each_other(name: str) -> None:
    module = lateral(name)
    whole = module(*pathways(3))
    alone = module(*(x[1:2] for x in pathways(3)))
    for together, single in zip(whole, alone, strict=True):
        torch.testing.assert_close(together[1:2], single)


@pytest.mark.parametrize("name", WITH_AUDIO)
@pytest.mark.parametrize("step", [0, 62, 100, 127])
def test_audio_moves_the_map_of_its_own_time_only(name: str, step: int) -> None:
    module = lateral(name)
    motion, tokens, fbank = pathways(1)
    louder = fbank.clone()
    louder[:, step] += 3
    before, after = module(motion, tokens, fbank), module(motion, tokens, louder)
    change = (after.key_motion - before.key_motion).abs().amax(dim=(0, 2, 3, 4))
    if name == "a-f-s":  # by way of Fast: 5 frames of a kernel with a stride of 4
        reach = REACH + 4 * 4
    else:
        reach = REACH
    for key_frame in range(4):
        first, last = 32 * key_frame - reach, 32 * (key_frame + 1) - 1 + reach
        if not first <= step <= last:
            assert change[key_frame] == 0, key_frame
    assert change[step // 32] > 1e-4


def test_audio_joins_fast_in_its_own_frames() -> None:
    module = lateral("a-f-s", audio_in_cue=True)
    motion, tokens, fbank = pathways(1)
    louder = fbank.clone()
    louder[:, 64] += 3  # at the start of frame 16
    change = module(motion, tokens, louder).cue_motion - module(motion, tokens, fbank).cue_motion
    change = change.abs().amax(dim=(0, 2, 3, 4))
    assert change.argmax() in (15, 16)
    reached = change.nonzero().flatten()
    assert reached[0] >= (64 - REACH) // 4 and reached[-1] <= (64 + REACH) // 4 + 1


@pytest.mark.parametrize("name", WITH_AUDIO)
def test_the_gate_of_a_clip_hides_its_audio(name: str) -> None:
    options = {"audio_in_cue": True} if name == "a-f-s" else {}
    module = lateral(name, **options)
    motion, tokens, fbank = pathways()
    gate = torch.tensor([0.0, 1.0])
    first, second = module(motion, tokens, fbank, gate), module(motion, tokens, -fbank, gate)
    for x, y in zip(first, second, strict=True):
        assert torch.equal(x[0], y[0])
    assert not torch.allclose(first.key_motion[1], second.key_motion[1])
    assert torch.equal(first.key_motion[1], module(motion, tokens, fbank).key_motion[1])


@pytest.mark.parametrize("name", WITH_AUDIO)
def test_cues_are_read_from_motion_alone_unless_an_option_says_otherwise(name: str) -> None:
    motion, tokens, fbank = pathways()
    assert lateral(name)(motion, tokens, fbank).cue_motion is motion
    if name == "a-f-s":
        fused = lateral(name, audio_in_cue=True)(motion, tokens, fbank)
        assert not torch.equal(fused.cue_motion, motion)


def test_attention_of_a_location_to_the_audio_of_its_key_frame() -> None:
    """The non-local update, by a loop over locations."""
    module = lateral("av-nonlocal")
    assert isinstance(module, AudioVisualNonLocal)
    motion, tokens, fbank = pathways()
    audio = module.audio(fbank)
    joined = module.join(motion, tokens, audio, None).key_motion
    expected = joined.clone()
    for n in range(2):
        for f in range(4):
            steps = torch.stack([
                audio[n, :, 4 * t : 4 * t + 4].mean(1) for t in range(8 * f, 8 * f + 8)
            ])  # fmt: skip
            for row in range(3):
                for column in range(5):
                    query = module.q(joined[n, f, :, row, column])
                    scores = module.k(steps) @ query / len(query) ** 0.5
                    update = module.proj(scores.softmax(0) @ module.v(steps))
                    expected[n, f, :, row, column] += update
    torch.testing.assert_close(module(motion, tokens, fbank).key_motion, expected)


@pytest.mark.parametrize("kernel", [5, 7])
@pytest.mark.parametrize("ratio", [1, 2, 3, 5, 8, 16])
def test_fast_to_slow_sees_every_frame(kernel: int, ratio: int) -> None:
    """By a loop over frames; and each frame of a key frame counts."""
    torch.manual_seed(0)
    module = FastToSlow(4, kernel, ratio)
    motion = torch.randn(1, 2 * ratio, 4, 2, 3, requires_grad=True)
    slow = module(motion)
    assert slow.shape == (1, 2, 8, 2, 3)
    stride = module.conv.stride[0]
    padded = functional.pad(motion, (0, 0, 0, 0, 0, 0, *module.padding))[0]
    for key_frame in range(2):
        outputs = []
        for step in range(ratio // stride):
            first = key_frame * ratio + step * stride
            taps = padded[first : first + kernel]
            y = torch.einsum("tchw,oct->ohw", taps, module.conv.weight[..., 0])
            y = y + module.conv.bias[:, None, None]  # type: ignore[index]
            outputs.append(module.norm(y[None]).relu()[0])
        torch.testing.assert_close(slow[0, key_frame], torch.stack(outputs).mean(0))
    (gradient,) = torch.autograd.grad(slow[:, 0].square().sum(), motion)
    assert gradient[0, :ratio].flatten(1).abs().amax(1).min() > 0


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5, 8])
def test_a_lateral_has_a_step_for_each_frame_of_the_target(stride: int) -> None:
    module = AudioLateral(6, 10, stride)
    assert module(torch.randn(2, 6, 7 * stride)).shape == (2, 7, 10)


@pytest.mark.parametrize("mel", [1, 5, 16, 128])
def test_the_audio_pathway_keeps_its_steps(mel: int) -> None:
    pathway = AudioPathway(4)
    assert pathway(torch.randn(2, 24, mel)).shape == (2, pathway.channels, 24)


# --- DropPathway ---


def test_a_step_drops_audio_for_all_clips_with_the_probability() -> None:
    none_kept = torch.zeros(3, dtype=torch.bool)
    gates = torch.stack([drop_pathway(0.8, 0, step / 1000, none_kept) for step in range(1000)])
    assert set(gates.flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(gates, gates[:, :1].expand(-1, 3))
    assert 0.76 < float((gates[:, 0] == 0).float().mean()) < 0.84
    for prob, share in ((0.0, 0), (1.0, 1)):
        drawn = [float(drop_pathway(prob, 0, step / 50, none_kept)[0]) for step in range(50)]
        assert drawn.count(0.0) == 50 * share


def test_draws_depend_on_seed_and_step_only() -> None:
    none_kept = torch.zeros(1, dtype=torch.bool)

    def draws(seed: int) -> list[float]:
        return [float(drop_pathway(0.5, seed, step / 64, none_kept)) for step in range(64)]

    torch.manual_seed(1)
    first = draws(0)
    state = torch.get_rng_state()
    assert draws(0) == first  # in another process, too: no state is read or changed
    assert torch.equal(torch.get_rng_state(), state)
    assert draws(1) != first


def test_clips_that_need_their_audio_keep_it() -> None:
    keep = torch.tensor([True, False])
    assert drop_pathway(1.0, 0, 0.5, keep).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_prob": 1.5}, "a-fs: drop_prob 1.5 is not from 0 to 1"),
        ({"kernel": 4}, "a-fs: kernel 4 is neither 5 nor 7"),
        ({"audio_width": -1}, "a-fs: audio_width -1"),
    ],
)
def test_options_that_make_no_lateral(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LATERALS.options("a-fs")(**options)


def test_options_are_of_the_network() -> None:
    options = AudioVisualNonLocalOptions(audio_width=6, kernel=7)
    module = LATERALS.build(options, SHAPE)
    assert module.audio.channels == 24
    assert module.fast_to_slow.conv.kernel_size == (7, 1)
