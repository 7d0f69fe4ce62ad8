"""Inpainting: patches go back where they came from; the command draws."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from cavmae.common.cli import run
from cavmae.common.errors import UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.pretrain.config import CAVMAEConfig
from cavmae.pretrain.inpainting import inpaint, unpatchify
from cavmae.pretrain.losses import normalize_patches
from cavmae.pretrain.masking import Masking
from cavmae.pretrain.model import CAVMAE, Latents, channels_last
from cavmae.tools.inpaint import main

SHAPE = CAVMAEConfig(
    image_height=32, image_width=48, audio_frames=96, width=16, heads=2, depth=1,
    decoder_width=8, decoder_heads=2, decoder_depth=1,
)  # fmt: skip


def test_unpatchify_undoes_patchify() -> None:
    model = CAVMAE(SHAPE)
    audio, image = torch.randn(2, 96, 128), torch.randn(2, 3, 32, 48)
    a, v = model.patchify(audio, image)
    assert torch.equal(unpatchify(a, SHAPE.audio_grid, 1)[:, 0].transpose(1, 2), audio)
    assert torch.equal(unpatchify(channels_last(v), SHAPE.image_grid, 3), image)


@pytest.mark.parametrize("norm", [True, False])
def test_a_perfect_model_gives_back_the_clip(norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions fill the masked patches, in the units of the clip."""
    model = CAVMAE(SHAPE)
    audio, image = torch.randn(2, 96, 128), torch.randn(2, 3, 32, 48)
    a, v = model.patchify(audio, image)
    answer = [normalize_patches(x) if norm else x for x in (a, channels_last(v))]
    masks: list[Masking] = []

    def reconstruct(latents: Latents) -> list[torch.Tensor]:
        masks.extend([latents.masking_a, latents.masking_v])
        return answer

    monkeypatch.setattr(model, "reconstruct", reconstruct)
    inpainting = inpaint(model, audio, image, 0.5, "time", norm)
    torch.testing.assert_close(inpainting.audio_rebuilt, audio, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(inpainting.image_rebuilt, image, rtol=1e-4, atol=1e-5)
    for seen, whole, masking in (
        (inpainting.audio_masked, audio, masks[0]), (inpainting.image_masked, image, masks[1])
    ):  # fmt: skip
        hidden = seen.isnan()
        assert torch.equal(seen[~hidden], whole[~hidden])
        assert hidden.float().mean().item() == pytest.approx(masking.mask.mean().item())


def test_the_command(tmp_path: Path, data_set: Manifest) -> None:
    CAVMAE(SHAPE).save_pretrained(tmp_path / "model")
    words = [str(tmp_path / "model"), data_set.folder, "--out", str(tmp_path / "a.png")]
    assert run(main, [*words, "--statistics", "audioset", "--clips", "2", "--mode", "tf"]) == 0
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 1000
    with pytest.raises(UsageError, match="--mask-ratio"):
        main([*words, "--mask-ratio", "1.5"])
