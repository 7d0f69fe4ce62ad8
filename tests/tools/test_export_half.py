"""`cavmae export --half`: types and size of the weights, and what the card says of the model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.pretrain.engine.tensor_files import halved
from cavmae.tools.export import ExportSettings
from tests.finetune.models.boxes import EXPECT, TRAINED_ON, export_model
from tests.finetune.speaker.scenes import model


def test_half_of_the_size_with_exact_vectors(tmp_path: Path) -> None:
    whole = export_model(model(), tmp_path / "whole", tmp_path / "a", half=False)
    half = export_model(model(), tmp_path / "half", tmp_path / "b")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (whole, half)]
    assert 0.5 < sizes[1] / sizes[0] < 0.6
    before, after = (load_file(folder / "model.safetensors") for folder in (whole, half))
    assert before.keys() == after.keys()
    for name, value in after.items():
        if value.ndim > 1:
            assert value.dtype == torch.float16
        else:
            assert torch.equal(value, before[name])
    card = (half / "README.md").read_text()
    assert f"Trained on {TRAINED_ON}." in card
    assert f"Expect {EXPECT}." in card
    assert "float16" in card
    assert "float16" not in (whole / "README.md").read_text()


def test_weights_beyond_half_precision(tmp_path: Path) -> None:
    with pytest.raises(CavmaeError, match=r"head\.weight exceeds 65504.*without --half"):
        halved({"head.weight": torch.full((2, 2), 7e4)})
    large = model()
    with torch.no_grad():
        large.state_head[-1].weight.fill_(1e5)
    with pytest.raises(CavmaeError, match="exceeds"):
        export_model(large, tmp_path / "out", tmp_path / "run")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


@pytest.mark.parametrize("text", ["", "  ", "a\nb", "\x1b[2J", "x" * 301])
def test_phrases_are_short_and_on_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="--trained-on"):
        ExportSettings(trained_on=text)
    with pytest.raises(UsageError, match="--expect"):
        ExportSettings(expect=text)
