"""Query generator and mixer are numerically AVSegFormer's."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from cavmae.finetune.speaker.queries import CrossModalMixer, QueryGenerator

GOLDEN = Path(__file__).parents[2] / "golden" / "avsegformer_parts.safetensors"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def golden() -> tuple[dict[str, int], dict[str, Tensor]]:
    with safe_open(str(GOLDEN), "pt") as file:
        shape = {name: int(value) for name, value in file.metadata().items()}
        return shape, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def part(values: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"model.{name}."
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}


def test_queries_are_the_references(golden: tuple[dict[str, int], dict[str, Tensor]]) -> None:
    shape, values = golden
    generator = QueryGenerator(
        shape["queries"], shape["dim"], shape["layers"], shape["heads"]
    ).eval()
    generator.load_state_dict(part(values, "generator"), strict=True)
    torch.testing.assert_close(generator(values["io.audio"]), values["io.queries"], **CLOSE)


def test_mixing_is_the_references(golden: tuple[dict[str, int], dict[str, Tensor]]) -> None:
    shape, values = golden
    mixer = CrossModalMixer(shape["dim"], shape["heads"]).eval()
    mixer.load_state_dict(part(values, "mixer"), strict=True)
    mixed = mixer(values["io.feature_map"], values["io.audio_query"])
    torch.testing.assert_close(mixed, values["io.mixed"], **CLOSE)


def test_queries_differ_only_with_more_than_one_audio_token() -> None:
    """Attention to a single token is the same for every query."""
    torch.manual_seed(0)
    layer = QueryGenerator(4, 16, layers=1, heads=2).layers[0].eval()
    queries = torch.randn(1, 4, 16)
    for tokens, same in ((1, True), (5, False)):
        audio = torch.randn(1, tokens, 16)
        attended, _ = layer.cross_attn(queries, audio, audio)
        assert torch.allclose(attended, attended[:, :1].expand_as(attended), atol=1e-6) is same
