"""Weights in and out: round trips, other grids, an ImageNet MAE, and files that are none."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm import create_model
from torch import Tensor

from cavmae.common.cli import run
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.finetune.events.model import EventClassifier
from cavmae.pretrain.config import CAVMAEConfig
from cavmae.pretrain.factory import load_model
from cavmae.pretrain.model import CAVMAE
from cavmae.pretrain.positions import sin_cos_positions
from cavmae.pretrain.weights import (
    config_from,
    initialise_from_mae,
    load_weights,
    move_positions,
    read_weights,
)
from cavmae.tools.convert import main

GOLDEN = Path(__file__).parents[1] / "golden" / "cav_mae_tiny.safetensors"
HEADS = ["--heads", "3", "--decoder-heads", "2"]


def golden(kind: str) -> dict[str, Tensor]:
    with safe_open(str(GOLDEN), "pt") as file:
        names = [key for key in file.keys() if key.startswith(f"{kind}.")]  # noqa: SIM118
        return {name.removeprefix(f"{kind}."): file.get_tensor(name) for name in names}


@pytest.mark.parametrize("kind", ["model", "ft"])
@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_published_to_ours_and_back(tmp_path: Path, kind: str, prefix: str, ending: str) -> None:
    weights = golden(kind)
    source = tmp_path / f"published{ending}"
    named = {prefix + k: v for k, v in weights.items()}
    if ending == ".pth":
        torch.save(named, source)
    else:
        save_file(named, str(source))
    ours, back = tmp_path / "ours", tmp_path / "back.pth"
    assert run(main, [str(source), "--out", str(ours), *HEADS]) == 0
    cls = CAVMAE if kind == "model" else EventClassifier
    model = cls.from_pretrained(str(ours))
    assert model.encoder_config.heads == 3
    assert model.encoder_config.depth == 11
    state = model.state_dict()
    assert set(state) == set(weights)
    assert all(torch.equal(state[k], v) for k, v in weights.items())
    assert run(main, [str(ours), "--out", str(back)]) == 0
    published = torch.load(back, weights_only=True)
    assert set(published) == {f"module.{k}" for k in weights}
    assert all(torch.equal(published[f"module.{k}"], v) for k, v in weights.items())


def test_the_command_as_a_process(tmp_path: Path) -> None:
    torch.save(golden("model"), tmp_path / "a.pth")
    words = [sys.executable, "-m", "cavmae.tools.convert", str(tmp_path / "a.pth"), "--out"]
    done = subprocess.run([*words, str(tmp_path / "out"), *HEADS], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/config.json").read_bytes())["width"] == 24
    again = subprocess.run([*words, str(tmp_path / "out")], capture_output=True, check=False)
    assert again.returncode == 2
    assert b"is there already" in again.stderr


def test_missing_left_over_and_misshapen_weights(tmp_path: Path) -> None:
    weights = golden("model")
    weights["surplus"] = weights.pop("blocks_a.3.attn.proj.bias")
    weights["norm.weight"] = torch.zeros(25)
    source = tmp_path / "odd.pth"
    torch.save(weights, source)
    model = CAVMAE(config_from(weights, 3, 2))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CavmaeError) as caught:
        load_weights(model, weights)
    for part in ("blocks_a.3.attn.proj.bias is missing", "surplus is left over", "norm.weight is"):
        assert part in str(caught.value)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    left = load_weights(model, weights, partial=True)
    assert len(left) == 3
    assert torch.equal(model.state_dict()["norm_a.weight"], weights["norm_a.weight"])
    assert torch.equal(model.state_dict()["norm.weight"], before["norm.weight"])
    assert run(main, [str(source), "--out", str(tmp_path / "out"), *HEADS]) == 1
    assert not (tmp_path / "out").exists()
    assert run(main, [str(source), "--out", str(tmp_path / "out"), *HEADS, "--partial"]) == 0


def test_a_folder_that_lacks_a_weight_is_not_loaded(tmp_path: Path) -> None:
    model = CAVMAE(config_from(golden("model"), 3, 2))
    model.save_pretrained(tmp_path)
    weights = load_file(str(tmp_path / "model.safetensors"))
    save_file({k: v for k, v in weights.items() if k != "norm_a.bias"},
              str(tmp_path / "model.safetensors"))  # fmt: skip
    with pytest.raises(RuntimeError, match=r"norm_a\.bias"):
        CAVMAE.from_pretrained(str(tmp_path))
    with pytest.raises(CavmaeError, match=r"(?s)another version of cavmae.*norm_a\.bias"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("damage", ["cut", "text", "pickle", "list", "empty"])
def test_files_that_are_no_weights(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "file.pth"
    torch.save(golden("ft"), path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "text":
        path.write_text("not a checkpoint")
    elif damage == "pickle":
        torch.save({"model": CAVMAEConfig()}, path)  # an object: never unpickled
    elif damage == "list":
        torch.save([torch.zeros(3)], path)
    else:
        torch.save({}, path)
    with pytest.raises(CavmaeError, match=r"damaged|not a state dict|not the weights"):
        config_from(read_weights(path))
    with pytest.raises(CavmaeError, match="There is no file"):
        read_weights(tmp_path / "nowhere.pth")


def test_heads_that_do_not_fit_are_asked_for() -> None:
    with pytest.raises(CavmaeError, match="give heads"):
        config_from(golden("model"), 7, 2)


def test_another_grid(tmp_path: Path) -> None:
    """Sin-cos positions are remade; the model then takes other sizes, and no weight is lost."""
    weights = golden("model")
    source = config_from(weights, 3, 2)
    target = dataclasses.replace(source, image_height=96, image_width=160, audio_frames=256)
    weights["pos_embed_v"] = sin_cos_positions(24, source.image_grid)  # the golden ones are noisy
    moved = move_positions(weights, source, target)
    model = CAVMAE(target)
    assert load_weights(model, moved) == []
    assert torch.equal(moved["pos_embed_v"], sin_cos_positions(24, (6, 10)))
    a, v = model.patchify(torch.randn(2, 256, 128), torch.randn(2, 3, 96, 160))
    latents = model.forward_encoder(a, v, *model.mask(2, 0.75, 0.75))
    assert torch.isfinite(latents.joint).all()
    halved = {name: value.half() for name, value in weights.items()}  # as of `export --half`
    moved = move_positions(halved, source, target)
    assert torch.equal(moved["pos_embed_v"], sin_cos_positions(24, (6, 10)).half())
    same = move_positions(weights, source, source)
    assert all(torch.equal(same[k], v) for k, v in weights.items())


def test_initialisation_from_an_imagenet_mae() -> None:
    """By the recipe, with random weights of the shape that timm gives the MAE."""
    torch.manual_seed(0)
    mae = create_model("vit_base_patch16_224.mae", pretrained=False).state_dict()
    model = CAVMAE(
        CAVMAEConfig(size="base", decoder_depth=1, image_height=32, image_width=32, audio_frames=32)
    )
    initialise_from_mae(model, mae)
    state = model.state_dict()
    for branch in ("a", "v"):
        for number in (0, 10):
            for name in ("attn.qkv.weight", "mlp.fc2.bias", "norm1.weight"):
                mine = state[f"blocks_{branch}.{number}.{name}"]
                assert torch.equal(mine, mae[f"blocks.{number}.{name}"])
    for norm in ("norm2", "norm2_a", "norm2_v"):
        assert torch.equal(state[f"blocks_u.0.{norm}.weight"], mae["blocks.11.norm2.weight"])
    assert torch.equal(state["patch_embed_v.proj.weight"], mae["patch_embed.proj.weight"])
    grey = torch.randn(1, 256)
    as_sound = model.patch_embed_a(grey[None])
    as_picture = model.patch_embed_v(grey.repeat(1, 3)[None])
    torch.testing.assert_close(as_sound, as_picture, rtol=1e-4, atol=1e-4)
    with pytest.raises(CavmaeError, match="do not fit"):
        initialise_from_mae(CAVMAE(CAVMAEConfig(size="tiny")), mae)
    del mae["blocks.11.mlp.fc1.bias"]
    with pytest.raises(CavmaeError, match=r"lack blocks\.11\.mlp\.fc1\.bias"):
        initialise_from_mae(model, mae)


def test_odd_options(tmp_path: Path) -> None:
    torch.save(golden("model"), tmp_path / "a.pth")
    with pytest.raises(UsageError, match="--image-height and --image-width"):
        main([str(tmp_path / "a.pth"), "--out", str(tmp_path / "b"), "--image-height", "64"])
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=r"ends with \.pth"):
        main([str(tmp_path / "folder"), "--out", str(tmp_path / "c.bin")])
    with pytest.raises(CavmaeError, match="not a folder of weights"):
        main([str(tmp_path / "folder"), "--out", str(tmp_path / "c.pth")])
