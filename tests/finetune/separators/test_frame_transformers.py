"""Frame transformers equal the published ones on their golden files."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from cavmae.finetune.separators.frame_transformer_v1 import FrameTransformerV1
from cavmae.finetune.separators.frame_transformer_v3 import FrameTransformerV3
from cavmae.finetune.separators.settings import SEPARATORS

Names = tuple[tuple[str, Any], ...]
GOLDEN = Path(__file__).parents[2] / "golden"
# Names of the original's weights -> ours, applied one after the other.
V1_NAMES: Names = (
    (r"^enc0_transformer\.", "first."),
    (r"^enc(\d)_transformer\.", lambda m: f"encoder_blocks.{int(m[1]) - 1}."),
    (r"^enc(\d)\.body\.0\.", lambda m: f"encoders.{int(m[1]) - 1}."),
    (r"^dec(\d)_transformer\.", lambda m: f"decoder_blocks.{5 - int(m[1])}."),
    (r"^dec(\d)\.body\.0\.", lambda m: f"decoders.{5 - int(m[1])}."),
    (r"\.norm\.norm\.", ".norm."),
    (r"\.norm1\.norm\.", ".norm_attention."),
    (r"\.norm2\.norm\.", ".norm_mlp."),
    (r"\.attn1?\.", ".attention."),
    (r"\.attn2\.", ".cross_attention."),
    (r"\.(query|key|value|out)_proj\.", r".\1."),
    (r"\.q_proj\.", ".query."),
    (r"\.k_proj\.", ".key."),
    (r"\.v_proj\.", ".value."),
    (r"\.rotary_embedding\.freqs$", ".rotary.frequencies"),
    (r"\.embed\.", ".squeeze."),
    (r"\.conv1\.weight_pw$", ".fc1.weight"),
    (r"\.conv2\.weight_pw$", ".fc2.weight"),
    (r"\.weight_pw$", ".weight"),
    (r"^out$", "out.weight"),
)
V3_NAMES: Names = (
    (r"^transformer\.", "blocks."),
    (r"^embed\.", "embedding."),
    (r"\.attn\.", ".attention."),
    (r"\.q_proj\.", ".query."),
    (r"\.k_proj\.", ".key."),
    (r"\.v_proj\.", ".value."),
    (r"\.o_proj\.", ".out."),
    (r"\.rotary_embedding\.freqs$", ".rotary.frequencies"),
    (r"\.weight_pw$", ".weight"),
    (r"\.weight_dw$", ".mixing"),
)


def golden(version: str) -> tuple[dict[str, int], dict[str, Tensor]]:
    path = GOLDEN / f"frame_transformer_{version}.safetensors"
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["config"]), load_file(path)


def load(network: nn.Module, tensors: dict[str, Tensor], names: Names) -> None:
    """Copies every weight of the original; none of the network is left as it was."""
    ours = dict(network.named_parameters()) | dict(network.named_buffers())
    for key, value in tensors.items():
        if not key.startswith("model.") or ".norm3." in key:  # norm3 of version 1 is never used
            continue
        name = key.removeprefix("model.")
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        # Our maps are [..., frames, bins], those of the original [..., bins, frames].
        value = value.mT if value.dim() == 4 else value
        target = ours.pop(name)
        target.detach().copy_(value.reshape(target.shape))
    assert not ours


def assert_close(y: Tensor, expected: Tensor) -> None:
    assert (y - expected).norm() / expected.norm() < 1e-5
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@torch.no_grad()
def test_version_1_equals_the_original() -> None:
    config, tensors = golden("v1")
    x = tensors["io.x"]
    heads, expansion = config["num_heads"], config["expansion"]
    network = FrameTransformerV1(2, 2, 128, config["channels"], heads, expansion, shared_norms=True)
    load(network, tensors, V1_NAMES)
    assert_close(network(x), tensors["io.y"])


@torch.no_grad()
def test_version_3_equals_the_original() -> None:
    config, tensors = golden("v3")
    shape = config["channels"], config["num_layers"], config["num_heads"], config["expansion"]
    network = FrameTransformerV3(2, 2, 32, *shape)
    load(network, tensors, V3_NAMES)
    assert_close(network(tensors["io.x"]), tensors["io.y"])


def test_parameters_of_the_published_size() -> None:
    """52,226,534 in the original, which counts the frequencies of its rotary positions."""
    with torch.device("meta"):
        network = FrameTransformerV1(2, 2, 1024, channels=8, heads=8, expansion=4)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert parameters + sum(buffer.numel() for buffer in network.buffers()) == 52_226_534


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("frame-transformer-v1", {"heads": 8}, "heads 8 is not 1, 2 or 4"),
        ("frame-transformer-v3", {"heads": 6}, "heads 6 is no power of 2 up to 128"),
        ("frame-transformer-v3", {"blocks": 0}, "blocks 0 is not from 1"),
    ],
)
def test_options_that_make_no_network(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SEPARATORS.options(name)(**changes)
