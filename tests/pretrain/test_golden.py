"""The pretraining model is numerically the reference: its own weights, inputs and outputs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from cavmae.pretrain.config import CAVMAEConfig
from cavmae.pretrain.losses import Contrast, info_nce
from cavmae.pretrain.masking import mask_from_noise
from cavmae.pretrain.model import CAVMAE, Latents

GOLDEN = Path(__file__).parents[1] / "golden" / "cav_mae_tiny.safetensors"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


@pytest.fixture(scope="module", params=DEVICES)
def golden(request: pytest.FixtureRequest) -> tuple[CAVMAE, dict[str, Tensor]]:
    """The model with the reference's weights, and its inputs and outputs."""
    weights, values = {}, {}
    with safe_open(str(GOLDEN), "pt") as file:
        config: dict[str, Any] = json.loads(file.metadata()["config"])
        for key in file.keys():  # noqa: SIM118 - not a dict
            kind, _, name = key.partition(".")
            if kind in ("model", "io"):
                (weights if kind == "model" else values)[name] = file.get_tensor(key)
    model = CAVMAE(
        CAVMAEConfig(
            image_height=config["img_size"],
            image_width=config["img_size"],
            audio_frames=config["audio_length"],
            width=config["embed_dim"],
            heads=config["num_heads"],
            depth=config["modality_specific_depth"],
            joint_depth=12 - config["modality_specific_depth"],
            decoder_width=config["decoder_embed_dim"],
            decoder_heads=config["decoder_num_heads"],
            decoder_depth=config["decoder_depth"],
        )
    )
    model.load_state_dict(weights, strict=True)
    values = {name: value.to(request.param) for name, value in values.items()}
    return model.to(request.param).eval(), values


def encode(
    model: CAVMAE, values: dict[str, Tensor], ratio_a: float = 0.75, ratio_v: float = 0.75
) -> tuple[Tensor, Tensor, Latents]:
    a, v = model.patchify(values["audio"], values["image"])
    noise = values["noise_a"], values["noise_v"]
    masking = model.mask(len(a), ratio_a, ratio_v, noise=noise)
    return a, v, model.forward_encoder(a, v, *masking)


def forward(
    model: CAVMAE,
    values: dict[str, Tensor],
    ratios: tuple[float, float] = (0.75, 0.75),
    norm_pix_loss: bool = True,
) -> tuple[Any, Contrast]:
    """The forward pass of training, with the contrast of its embeddings."""
    noise = values["noise_a"], values["noise_v"]
    masking = model.mask(len(values["audio"]), *ratios, noise=noise)
    output = model(values["audio"], values["image"], *masking, norm_pix_loss=norm_pix_loss)
    return output, info_nce(output.audio, output.video, 0.05, False)


def test_masks_and_latents(golden: tuple[CAVMAE, dict[str, Tensor]]) -> None:
    model, values = golden
    _, _, latents = encode(model, values)
    for m, masking in (("a", latents.masking_a), ("v", latents.masking_v)):
        assert torch.equal(masking.mask, values[f"mask_{m}"])
        assert torch.equal(masking.ids_restore, values[f"ids_restore_{m}"])
    torch.testing.assert_close(latents.joint, values["latent"], **CLOSE)
    torch.testing.assert_close(latents.audio, values["latent_a"], **CLOSE)
    torch.testing.assert_close(latents.video, values["latent_v"], **CLOSE)


def test_reconstructions(golden: tuple[CAVMAE, dict[str, Tensor]]) -> None:
    model, values = golden
    a, v = model.reconstruct(encode(model, values)[2])
    torch.testing.assert_close(a, values["pred_a"], **CLOSE)
    torch.testing.assert_close(v, values["pred_v"], **CLOSE)


@pytest.mark.parametrize(
    ("name", "ratios", "weight", "norm"),
    [
        ("losses_normpix0", (0.75, 0.75), 0.01, False),
        ("losses_normpix1", (0.75, 0.75), 0.01, True),
        ("losses_a50_v60_c0.1", (0.5, 0.6), 0.1, True),
    ],
)
def test_losses(
    golden: tuple[CAVMAE, dict[str, Tensor]],
    name: str,
    ratios: tuple[float, float],
    weight: float,
    norm: bool,
) -> None:
    model, values = golden
    output, contrast = forward(model, values, ratios, norm)
    reconstruction = output.audio_loss + output.video_loss
    total = reconstruction + weight * contrast.loss
    result = [
        total, reconstruction, output.audio_loss, output.video_loss,
        weight * contrast.loss, contrast.accuracy,
    ]  # fmt: skip
    torch.testing.assert_close(torch.stack(result), values[name], **CLOSE)


def test_contrast_in_one_and_both_directions(
    golden: tuple[CAVMAE, dict[str, Tensor]],
) -> None:
    _, values = golden
    audio, video = values["latent_a"].mean(1), values["latent_v"].mean(1)
    for name, both in (("nce_single", False), ("nce_bidirectional", True)):
        result = info_nce(audio, video, 0.05, both)
        torch.testing.assert_close(torch.stack(list(result)), values[name], **CLOSE)


def test_features(golden: tuple[CAVMAE, dict[str, Tensor]]) -> None:
    model, values = golden
    a, v = model.features(values["audio"], values["image"])
    torch.testing.assert_close(a, values["feat_a"], **CLOSE)
    torch.testing.assert_close(v, values["feat_v"], **CLOSE)


def test_gradients(golden: tuple[CAVMAE, dict[str, Tensor]]) -> None:
    model, values = golden
    model.zero_grad()
    output, contrast = forward(model, values)
    (output.audio_loss + output.video_loss + 0.01 * contrast.loss).backward()
    named = dict(model.named_parameters())
    wanted = {k.removeprefix("grad."): x for k, x in values.items() if k.startswith("grad.")}
    assert len(wanted) >= 6
    for name, gradient in wanted.items():
        torch.testing.assert_close(named[name].grad, gradient, **CLOSE)


def test_masking_keeps_the_least_noise() -> None:
    noise = torch.rand(5, 37)
    masking = mask_from_noise(noise, 0.6)
    for row in range(5):
        kept, hidden = masking.ids_keep[row], masking.ids_masked[row]
        assert noise[row, kept].max() < noise[row, hidden].min()
        assert sorted([*kept.tolist(), *hidden.tolist()]) == list(range(37))
        assert torch.equal(torch.cat([kept, hidden])[masking.ids_restore[row]], torch.arange(37))
