"""`cavmae export --precision`: types and size of the weights, and what the card says of them."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.finetune.speaker.factory import load_speaker
from cavmae.pretrain.engine.tensor_files import narrowed, read_tensors, write_tensors
from cavmae.tools.export import ExportSettings
from tests.finetune.models.boxes import EXPECT, TRAINED_ON, export_model
from tests.finetune.speaker.scenes import model


def test_half_of_the_size_with_exact_vectors(tmp_path: Path) -> None:
    whole = export_model(model(), tmp_path / "whole", tmp_path / "a", "fp32")
    half = export_model(model(), tmp_path / "half", tmp_path / "b", "fp16")
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


def test_a_quarter_of_the_size_that_loads_as_weights_of_nearly_the_same_values(
    tmp_path: Path,
) -> None:
    trained = model(width=128, mask_width=64)
    whole = export_model(trained, tmp_path / "whole", tmp_path / "a", "fp32")
    small = export_model(trained, tmp_path / "small", tmp_path / "b", "int8")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (whole, small)]
    assert 0.25 < sizes[1] / sizes[0] < 0.35
    before, after = (load_speaker(str(folder))[0].state_dict() for folder in (whole, small))
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        if value.ndim < 2:
            assert torch.equal(after[name], value), name
            continue
        rows = value.flatten(1)
        bound = rows.abs().amax(1, keepdim=True) / 127 / 2 * 1.001 + 1e-7
        assert bool(((after[name].flatten(1) - rows).abs() <= bound).all()), name
    assert "8 bits" in (small / "README.md").read_text()
    modes = {path.stat().st_mode & 0o777 for path in small.iterdir()}
    assert len(modes) == 1  # whoever may read the card may read the weights
    again = tmp_path / "again"
    write_tensors(again, narrowed(read_tensors(small / "model.safetensors", ""), 8))
    first, second = load_file(small / "model.safetensors"), load_file(again)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-6, atol=0)


@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=2, max_size=4),
    st.integers(0, 2**31 - 1),
)
def test_rows_of_any_size_keep_their_own_resolution(sizes: list[float], seed: int) -> None:
    rows = torch.randn(len(sizes), 2048, generator=torch.Generator().manual_seed(seed))
    rows = rows * torch.tensor(sizes)[:, None]
    narrow = narrowed({"w": rows}, 8)
    restored = narrow["w"].float() * narrow["w.int8_scale"][:, None]
    bound = rows.abs().amax(1, keepdim=True) * (0.5001 / 127) + 1e-37
    assert bool(((restored - rows).abs() <= bound).all())


@pytest.mark.parametrize("missing", ["w", "w.int8_scale", "shape"])
def test_8_bits_without_their_scales_are_refused(missing: str, tmp_path: Path) -> None:
    tensors = narrowed({"w": torch.randn(64, 64), "v": torch.randn(64)}, 8)
    if missing == "shape":
        tensors["w.int8_scale"] = tensors["w.int8_scale"][:3]
    else:
        del tensors[missing]
    path = tmp_path / "w.safetensors"
    save_file(tensors, str(path))
    with pytest.raises(CavmaeError, match=r"w\.safetensors is damaged.*(scale|8 bits)"):
        read_tensors(path, "fetch it again")


def test_weights_beyond_half_precision(tmp_path: Path) -> None:
    with pytest.raises(CavmaeError, match=r"head\.weight exceeds 65504.*--precision fp32"):
        narrowed({"head.weight": torch.full((2, 2), 7e4)}, 16)
    large = model()
    with torch.no_grad():
        large.state_head[-1].weight.fill_(1e5)
    with pytest.raises(CavmaeError, match="exceeds"):
        export_model(large, tmp_path / "out", tmp_path / "run")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_notes_end_the_card(tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("## Data\n\n| source | terms |\n|---|---|\n| GRID | CC BY 4.0 |\n")
    folder = export_model(model(), tmp_path / "out", tmp_path / "run", notes=str(notes))
    assert (folder / "README.md").read_text().endswith(f"\n\n{notes.read_text()}")
    with pytest.raises(UsageError, match=r"--notes .*none\.md cannot be read"):
        export_model(model(), tmp_path / "no", tmp_path / "r", notes=str(tmp_path / "none.md"))
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("text", ["", "  ", "a\nb", "\x1b[2J", "x" * 301])
def test_phrases_are_short_and_on_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="--trained-on"):
        ExportSettings(trained_on=text)
    with pytest.raises(UsageError, match="--expect"):
        ExportSettings(expect=text)
