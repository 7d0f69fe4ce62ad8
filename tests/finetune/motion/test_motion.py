"""Motion pathways of the registry, the published sizes of X3D, and motion under masks."""

import itertools
import math

import pytest
import torch
from torch import nn

from cavmae.finetune.motion.base import MotionPathway
from cavmae.finetune.motion.conv import FRAMES_AT_ONCE
from cavmae.finetune.motion.settings import MOTION, X3DOptions
from cavmae.finetune.motion.x3d import FrameNorm, X3DBlock, X3DStem
from cavmae.finetune.speaker.motion_reader import MotionReader
from cavmae.pretrain.engine.task import forward_flops


def pathway(name: str, width: int = 8, depth: int = 2) -> MotionPathway:
    torch.manual_seed(0)
    built: MotionPathway = MOTION.build(MOTION.options(name)(width=width, depth=depth))  # type: ignore[call-arg]
    return built


@pytest.fixture(params=sorted(MOTION))
def motion_pathway(request: pytest.FixtureRequest) -> MotionPathway:
    return pathway(request.param)


@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize("size", [(16, 24), (20, 36)])
def test_maps_have_a_quarter_of_the_size(
    motion_pathway: MotionPathway, frames: int, size: tuple[int, int]
) -> None:
    video = torch.randint(0, 256, (2, frames, *size), dtype=torch.uint8)
    shape = (2, frames, motion_pathway.channels, size[0] // 4, size[1] // 4)
    assert motion_pathway(video).shape == shape
    with torch.autocast("cpu", torch.bfloat16):
        half = motion_pathway(video)
    assert half.shape == shape and torch.isfinite(half).all()


def test_every_weight_gets_a_gradient(motion_pathway: MotionPathway) -> None:
    video = torch.randint(0, 256, (2, 4, 16, 16), dtype=torch.uint8)
    motion_pathway(video).square().mean().backward()
    for key, parameter in motion_pathway.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), key
        assert torch.isfinite(parameter.grad).all(), key


def test_clips_of_a_batch_do_not_know_of_each_other(motion_pathway: MotionPathway) -> None:
    video = torch.randint(0, 256, (3, 4, 16, 16), dtype=torch.uint8)
    alone, together = motion_pathway(video[1:2]), motion_pathway(video)[1:2]
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(MOTION))
def test_motion_is_told_from_a_still_frame(name: str) -> None:
    """The middle of a moving video differs from that of the same frame without motion."""
    motion_pathway = pathway(name)
    video = torch.randint(0, 256, (1, 5, 16, 16), dtype=torch.uint8)
    still = video[:, 2:3].expand(-1, 5, -1, -1)
    assert (motion_pathway(video)[:, 2] - motion_pathway(still)[:, 2]).abs().max() > 0.1


def test_conv_gives_the_same_without_gradients() -> None:
    """Frames are then taken a few at a time, which changes no bit."""
    frames = torch.randint(256, (2, 2 * FRAMES_AT_ONCE + 3, 16, 24), dtype=torch.uint8)
    motion_pathway = pathway("conv")
    whole = motion_pathway(frames)
    with torch.no_grad():
        assert torch.equal(motion_pathway(frames), whole)


def test_features_of_conv_are_local_in_time() -> None:
    """A change in one frame changes features within the reach of two blocks, and not elsewhere."""
    frames = torch.full((1, 40, 16, 24), 100, dtype=torch.uint8)
    other = frames.clone()
    other[:, 20, 4:12] = 200
    motion_pathway = pathway("conv")
    change = (motion_pathway(other) - motion_pathway(frames)).abs().amax(dim=(0, 2, 3, 4))
    assert change[20] > 1e-3
    assert change[20 - 4 : 20 + 5].max() > 1e-3
    # The norms of a frame are its own.
    assert change[:15].max() < 1e-5
    assert change[26:].max() < 1e-5


@pytest.mark.parametrize("frames", [1, 4, 7])
def test_frames_left_out_repeat_those_before(frames: int) -> None:
    torch.manual_seed(0)
    video = torch.randint(0, 256, (1, frames, 16, 16), dtype=torch.uint8)
    strided = MOTION.build(X3DOptions(width=8, depth=1, frame_stride=3))
    every = MOTION.build(X3DOptions(width=8, depth=1))
    every.load_state_dict(strided.state_dict())
    with torch.no_grad():
        computed, expected = strided(video), every(video[:, ::3])
    for frame in range(frames):
        torch.testing.assert_close(computed[:, frame], expected[:, frame // 3])


@pytest.mark.parametrize("name", sorted(MOTION))
def test_options_out_of_bounds_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: width 5000 is not from 1 to 4096"):
        MOTION.options(name)(width=5000)  # type: ignore[call-arg]


def naive_block(block: X3DBlock, x: torch.Tensor) -> torch.Tensor:
    """An X3D block of stride 1 with explicit sums over taps: [N, T, h, w, C]."""
    t, h, w = x.shape[1:4]

    def normed(norm: FrameNorm, x: torch.Tensor) -> torch.Tensor:
        groups = x.unflatten(-1, (norm.num_groups, -1))
        mean = groups.mean((2, 3, 5), keepdim=True)
        std = (groups.var((2, 3, 5), correction=0, keepdim=True) + norm.eps).sqrt()
        return ((groups - mean) / std).flatten(-2) * norm.weight + norm.bias

    y = normed(block.expand_norm, x @ block.expand.weight.T).relu()
    padded = nn.functional.pad(y, (0, 0, 1, 1, 1, 1, 1, 1))
    total = torch.zeros_like(y)
    for i, j, k in itertools.product(range(3), repeat=3):
        weight = block.channelwise.weight[:, 0, i, j, k]
        total = total + weight * padded[:, i : i + t, j : j + h, k : k + w]
    y = normed(block.channelwise_norm, total)
    squeeze, excite = block.excitation.squeeze, block.excitation.excite
    y = y * excite(squeeze(y.mean((1, 2, 3))).relu()).sigmoid()[:, None, None, None]
    return (x + normed(block.project_norm, y * y.sigmoid() @ block.project.weight.T)).relu()


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_a_block_is_the_published_one(frames: int) -> None:
    torch.manual_seed(0)
    block = X3DBlock(16, 16, 36, 1, excitation=True)
    for norm in (block.expand_norm, block.channelwise_norm, block.project_norm):
        nn.init.normal_(norm.weight)
    x = torch.randn(2, frames, 5, 6, 16)
    actual, expected = block(x), naive_block(block, x)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)
    gradient = torch.randn_like(x)
    weights = list(block.parameters())
    for ours, naive in zip(
        torch.autograd.grad(actual, weights, gradient),
        torch.autograd.grad(expected, weights, gradient),
        strict=True,
    ):
        torch.testing.assert_close(ours, naive, atol=1e-4, rtol=1e-3)


# name: widths of stages, factor of depths, of bottlenecks, frames, side of a frame,
# parameters, multiply-adds in G. The paper rounds those of XL.
PUBLISHED = {
    "X2D": ((24, 48, 96, 192), 1.0, 1.0, 1, 112, 1_633_560, 0.02066),
    "XS": ((24, 48, 96, 192), 2.2, 2.25, 4, 160, 3_794_322, 0.605),
    "S": ((24, 48, 96, 192), 2.2, 2.25, 13, 160, 3_794_322, 1.963),
    "M": ((24, 48, 96, 192), 2.2, 2.25, 16, 224, 3_794_322, 4.732),
    "L": ((24, 48, 96, 192), 5.0, 2.25, 16, 312, 6_153_432, 18.37),
    "XL": ((32, 72, 136, 280), 5.0, 2.25, 16, 356, 11_000_000, 48.4),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_networks_are_made_of_these_blocks(name: str) -> None:
    """Parameters and multiply-adds of the whole networks with 400 classes."""
    widths, depth, bottleneck, frames, side, parameters, giga_multiply_adds = PUBLISHED[name]
    with torch.device("meta"):
        layers: list[nn.Module] = [X3DStem(3, widths[0])]
        channels = widths[0]
        for width, count in zip(widths, (1, 2, 5, 3), strict=True):
            for i in range(math.ceil(count * depth)):
                hidden = int(bottleneck * width)
                layers.append(X3DBlock(channels, width, hidden, 1 if i else 2, i % 2 == 0))
                channels = width
        last = int(bottleneck * channels)
        body = nn.Sequential(*layers, nn.Linear(channels, last, bias=False), FrameNorm(last))
        head = nn.Sequential(nn.Linear(last, 2048, bias=False), nn.ReLU(), nn.Linear(2048, 400))
        video = torch.zeros(1, frames, side, side, 3)
        multiply_adds = forward_flops(lambda: head(body(video).relu().mean((1, 2, 3)))) / 2
    weights = [*body.parameters(), *head.parameters()]
    actual = sum(parameter.numel() for parameter in weights)
    assert actual == pytest.approx(parameters, rel=0.01 if name == "XL" else 0)
    assert multiply_adds / 1e9 == pytest.approx(giga_multiply_adds, rel=5e-4)


def test_motion_is_read_under_the_mask() -> None:
    """Motion elsewhere changes nothing; motion under the mask does."""
    torch.manual_seed(0)
    reader = MotionReader(8, 16, heads=2)
    torch.nn.init.normal_(reader.score.weight, std=0.3)
    motion = torch.randn(1, 8, 8, 4, 6)
    masks = torch.zeros(1, 2, 2, 8, 12)
    masks[:, 0, :, :, :6] = 1
    masks[:, 1, :, :, 6:] = 1
    initial = reader(motion, masks)
    motion[..., 3:] += torch.randn(1, 8, 8, 4, 3)
    after = reader(motion, masks)
    torch.testing.assert_close(initial[:, 0], after[:, 0], atol=1e-3, rtol=1e-3)
    assert (initial[:, 1] - after[:, 1]).abs().max() > 0.1


def test_of_motion_only_what_varies_counts_and_nothing_where_there_is_no_mask() -> None:
    torch.manual_seed(0)
    reader = MotionReader(8, 16, heads=2)
    motion = torch.randn(1, 8, 8, 4, 6)
    masks = torch.ones(1, 1, 2, 8, 12)
    appearance = torch.randn(1, 1, 8, 1, 1)  # of another person with the same motion
    torch.testing.assert_close(reader(motion, masks), reader(motion + appearance, masks))
    still = motion[:, :1].expand_as(motion)
    assert reader(still, masks).std(dim=2).max() < 1e-5
    assert reader(motion, masks).std(dim=2).max() > 0.1
    assert not reader(motion, 0 * masks).any()


def test_masks_between_key_frames_move_evenly() -> None:
    """A mask that jumps from one half to the other adds no sudden motion to a still video."""
    reader = MotionReader(4, 8, heads=1)
    motion = torch.randn(1, 1, 4, 4, 6).expand(1, 32, 4, 4, 6)
    masks = torch.zeros(1, 1, 2, 4, 6)
    masks[:, :, 0, :, :3] = 1
    masks[:, :, 1, :, 3:] = 1
    with torch.no_grad():
        embed = reader(motion, masks)[0, 0]
    steps = (embed[1:] - embed[:-1]).norm(dim=1)
    assert steps.max() < 0.2 * (embed[-1] - embed[0]).norm()
