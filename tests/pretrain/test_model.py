"""Masks, positions and shapes of the pretraining model."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cavmae.pretrain.config import CAVMAEConfig
from cavmae.pretrain.losses import info_nce
from cavmae.pretrain.masking import mask_from_noise, num_visible, structured_noise
from cavmae.pretrain.model import CAVMAE
from cavmae.pretrain.positions import interpolate_positions, sin_cos_positions
from cavmae.pretrain.settings import MaskMode

TINY: dict[str, Any] = {
    "width": 16, "heads": 2, "depth": 1, "decoder_width": 8, "decoder_heads": 2,
    "decoder_depth": 1,
}  # fmt: skip


@given(
    st.integers(1, 12), st.integers(1, 20), st.floats(0, 0.95),
    st.sampled_from(["unstructured", "time", "freq", "tf"]), st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_masks_of_any_grid_ratio_and_mode(
    rows: int, columns: int, ratio: float, mode: MaskMode, seed: int
) -> None:
    """The right number is hidden; bands are whole; nothing is in two places."""
    torch.manual_seed(seed)
    size = rows * columns
    if int(size * (1 - ratio)) < 1:
        with pytest.raises(ValueError, match="none of"):
            num_visible(size, ratio)
        return
    noise = torch.rand(3, size)
    banded = structured_noise(noise, (rows, columns), ratio, mode)
    masking = mask_from_noise(banded, ratio)
    count = num_visible(size, ratio)
    assert masking.ids_keep.shape == (3, count)
    assert masking.mask.sum(1).tolist() == [size - count] * 3
    for row in range(3):
        both = torch.cat([masking.ids_keep[row], masking.ids_masked[row]])
        assert sorted(both.tolist()) == list(range(size))
        assert torch.equal(both[masking.ids_restore[row]], torch.arange(size))
    grid = (banded >= 1).unflatten(1, (rows, columns))
    share = ratio * (0.7 if mode == "tf" else 1)
    bands = {
        "time": [int(columns * share), 0], "freq": [0, int(rows * share)],
        "tf": [int(columns * share), int(rows * share)], "unstructured": [0, 0],
    }[mode]  # fmt: skip
    hidden = size - (columns - bands[0]) * (rows - bands[1])
    assert grid.sum((1, 2)).tolist() == [hidden] * 3
    if hidden <= size - count:  # every banded patch is masked
        assert torch.all(masking.mask[banded >= 1] == 1)


def test_time_and_frequency_masks_hide_whole_bands() -> None:
    torch.manual_seed(0)
    for mode, dimension in (("time", 1), ("freq", 2)):
        masking = mask_from_noise(structured_noise(torch.rand(4, 128), (8, 16), 0.75, mode), 0.75)  # type: ignore[arg-type]
        whole = masking.mask.unflatten(1, (8, 16)).mean(dim=dimension)
        assert set(whole.flatten().tolist()) == {0.0, 1.0}
        assert whole.mean().item() == 0.75


def test_positions_against_a_naive_loop() -> None:
    rows, columns, width = 3, 5, 24
    result = sin_cos_positions(width, (rows, columns))[0]
    for row in range(rows):
        for column in range(columns):
            for half, place in ((0, column), (1, row)):
                for k in range(width // 4):
                    angle = place / 10_000 ** (k / (width / 4))
                    start = half * width // 2
                    value = result[row * columns + column]
                    assert value[start + k].item() == pytest.approx(math.sin(angle), abs=1e-6)
                    assert value[start + width // 4 + k].item() == pytest.approx(
                        math.cos(angle), abs=1e-6
                    )


def test_learned_positions_move_to_another_grid() -> None:
    rows = torch.linspace(0, 1, 6)[:, None, None].expand(6, 8, 4)
    positions = rows.reshape(1, 48, 4).clone()
    moved = interpolate_positions(positions, (6, 8), (12, 4)).reshape(12, 4, 4)
    assert torch.all(moved[1:, 0, 0] > moved[:-1, 0, 0])
    assert torch.allclose(moved[:, :1], moved, atol=1e-5)
    assert interpolate_positions(positions, (6, 8), (6, 8)) is positions
    with pytest.raises(ValueError, match="not a grid of 5x5"):
        interpolate_positions(positions, (5, 5), (6, 8))


@pytest.mark.parametrize(
    ("image", "audio", "patch", "joint"),
    [((32, 32), (128, 64), 16, 1), ((48, 80), (64, 96), 16, 2), ((24, 40), (128, 256), 8, 3)],
)
def test_any_size_length_and_grid(
    image: tuple[int, int], audio: tuple[int, int], patch: int, joint: int
) -> None:
    torch.manual_seed(0)
    model = CAVMAE(
        CAVMAEConfig(
            image_height=image[0],
            image_width=image[1],
            mel_bins=audio[0],
            audio_frames=audio[1],
            patch=patch,
            joint_depth=joint,
            **TINY,
        )
    )
    fbank, frames = torch.randn(3, audio[1], audio[0]), torch.randn(3, 3, *image)
    output = model(fbank, frames, *model.mask(3, 0.75, 0.5, "time"))
    contrast = info_nce(output.audio, output.video, 0.05, False)
    total = output.audio_loss + output.video_loss + 0.01 * contrast.loss
    total.backward()
    assert torch.isfinite(total)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name
    # Every joint block counts, on every path.
    for block in model.blocks_u:
        for norm in (block.norm1, block.norm1_a, block.norm1_v):
            assert norm.weight.grad.abs().sum() > 0  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="This model takes fbanks of"):
        model.patchify(fbank[:, :-1], frames)


def test_sizes_are_the_published_ones() -> None:
    with torch.device("meta"):
        base = CAVMAE(CAVMAEConfig(size="base"))
    assert sum(p.numel() for p in base.parameters()) == 191_036_160
    idle = sum(
        p.numel()
        for name, p in base.named_parameters()
        if ("norm1_" in name or "norm2_" in name) and "blocks_u" not in name
    )
    assert idle == 167_936
    with pytest.raises(ValueError, match="no size 'huge'"):
        CAVMAEConfig(size="huge")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not made of patches"):
        CAVMAEConfig(image_height=225, image_width=224)


def test_only_masked_patches_decide_the_reconstruction_loss() -> None:
    """Against the loss over all patches weighted by the mask."""
    torch.manual_seed(1)
    model = CAVMAE(
        CAVMAEConfig(image_height=32, image_width=48, mel_bins=64, audio_frames=64, **TINY)
    )
    fbank, frames = torch.randn(2, 64, 64), torch.randn(2, 3, 32, 48)
    a, v = model.patchify(fbank, frames)
    latents = model.forward_encoder(a, v, *model.mask(2, 0.5, 0.75))
    losses = model.forward_loss(a, v, latents, norm_pix_loss=False)
    output = model(fbank, frames, latents.masking_a, latents.masking_v, norm_pix_loss=False)
    assert losses == (output.audio_loss, output.video_loss)
    whole_a, whole_v = model.reconstruct(latents)
    picture = frames.reshape(2, 3, 2, 16, 3, 16).permute(0, 2, 4, 3, 5, 1).reshape(2, 6, -1)
    for result, predicted, target, masking in (
        (losses[0], whole_a, a, latents.masking_a),
        (losses[1], whole_v, picture, latents.masking_v),
    ):
        error = ((predicted - target) ** 2).mean(-1)
        wanted = (error * masking.mask).sum() / masking.mask.sum()
        torch.testing.assert_close(result, wanted)


def test_each_part_alone_is_what_it_is_beside_the_other() -> None:
    model = CAVMAE(
        CAVMAEConfig(image_height=32, image_width=32, mel_bins=64, audio_frames=64, **TINY)
    )
    clips = torch.randn(4, 64, 64), torch.randn(4, 3, 32, 32), *model.mask(4, 0.5, 0.5)
    both = model(*clips)
    contrasted = model(*clips, reconstruct=False)
    assert contrasted.audio_loss is None and contrasted.video_loss is None
    torch.testing.assert_close((contrasted.audio, contrasted.video), (both.audio, both.video))
    rebuilt = model(*clips, contrast=False)
    assert rebuilt.audio is None and rebuilt.video is None
    assert (rebuilt.audio_loss, rebuilt.video_loss) == (both.audio_loss, both.video_loss)


def test_contrast_knows_partners() -> None:
    torch.manual_seed(0)
    audio = torch.randn(32, 16)
    right = info_nce(audio, audio + 0.01 * torch.randn(32, 16), 0.05, True)
    wrong = info_nce(audio, torch.randn(32, 16), 0.05, True)
    assert right.accuracy == 1
    assert right.loss < 0.2 < math.log(32) < wrong.loss
