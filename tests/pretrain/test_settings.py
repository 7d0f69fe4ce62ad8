"""Settings of a run: what makes no sense is refused, what we deliver fits together."""

import re
from pathlib import Path
from typing import Any

import pytest

from cavmae.common.cli import run as run_command
from cavmae.common.errors import UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.pretrain.data import views_for
from cavmae.pretrain.engine import run as run_module
from cavmae.pretrain.factory import model_config
from cavmae.pretrain.settings import ModelSettings, ObjectiveSettings, PretrainSettings
from cavmae.pretrain.train import main
from tests.pretrain.engine.running import words


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"objective": {"mae_weight": 0, "contrastive_weight": 0, "aligned_weight": 0}}, "above 0"),
        ({"objective": {"decode_fraction": 0.5}}, "needs model.decoder cross"),
        ({"objective": {"mask_ratio_audio": 1}}, "not in \\[0, 1\\)"),
        ({"data": {"roll": 9}}, "no data.roll"),
        ({"data": {"window": 1.0}}, "set model.audio_frames"),
        ({"model": {"image_height": 33}}, "not made of patches of 16"),
        ({"model": {"mel_bins": 64}}, "model.mel_bins 64: shards have 128 mel bins"),
        ({"model": {"size": "custom"}}, "model: width is 0: size custom needs width"),
        ({"model": {"temporal": "mean"}}, "there is no temporal attention 'mean'"),
        ({"model": {"weights": "a", "mae": "b"}}, "not from both"),
        ({"data": {"workers": 9}}, "8 shards for 9 workers"),
        ({"loop": {"keep": 1}}, "at least 2"),
        ({"loop": {"precision": "fp16"}}, "fp16"),
        ({"loop": {"compile": "nothing"}}, "no such backend"),
        ({"loop": {"device": "cuda"}}, "no GPU"),
        ({"loop": {"tracker": "wandb"}}, "not installed"),
        ({"data": {"workers": -1}}, "at least 0"),
        ({"model": {"image_height": 32}, "objective": {"mask_ratio_image": 0.9}}, "leaves none"),
        ({"objective": {"mask_ratio_image": 0}}, "nothing to reconstruct"),
        ({"objective": {"frame_window": 0.0}}, "frame_window 0.0 is not in"),
        ({"data": {"crop": 1.5}}, "crop 1.5"),
        ({"optimizer": {"lr": 0}}, "must be above 0"),
    ],
)
def test_settings_that_make_no_sense(
    tmp_path: Path,
    data_set: Manifest,
    changes: dict[str, Any],
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises((UsageError, SystemExit)) as error:
        main(words(tmp_path, tmp_path / "run", data_set.folder, **changes))
    text = str(error.value) + capsys.readouterr().err
    assert re.search(told, text), text
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_data_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = words(tmp_path, tmp_path / "run", tmp_path / "nothing")
    assert run_command(main, command) == 1
    assert "is no data set" in capsys.readouterr().err


def test_shapes_come_from_settings() -> None:
    shape = model_config(ModelSettings(size="small", decoder="cross"), ObjectiveSettings())
    assert (shape.width, shape.decoder, shape.contrast_width) == (384, "cross", 0)


CONFIGS = sorted((Path(__file__).parents[2] / "pretrain" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_of_ours(
    path: Path, tmp_path: Path, data_set: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is found by its name and fits together as far as its data and model."""
    seen: list[PretrainSettings] = []
    monkeypatch.setattr(run_module, "run_training", lambda settings, *_: seen.append(settings))
    assert main(["--config", path.stem, "--out", str(tmp_path), "--data.train", "x"]) == 0
    (settings,) = seen
    shape = model_config(settings.model, settings.objective)
    training, held_out = views_for(settings.data, settings.objective, shape)
    assert training.length == held_out.length == shape.audio_size[1]


def test_a_folder_of_the_same_name_is_no_configuration(
    tmp_path: Path, data_set: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    seen: list[PretrainSettings] = []
    monkeypatch.setattr(run_module, "run_training", lambda settings, *_: seen.append(settings))
    assert main(["--config", "tiny", "--out", "run", "--data.train", "x"]) == 0
    assert seen[0].model.size == "tiny"


def test_a_configuration_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="built-in configurations are aligned, base"):
        main(["--config", "bass", "--out", "x"])


SETS: list[Any] = [{"path": "a", "weight": 2.0}, "b"]


def test_several_data_sets_in_a_file_and_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run stores as config.yaml is what it was given, in the form of one path too."""
    seen: list[tuple[Any, str]] = []
    monkeypatch.setattr(
        run_module, "run_training", lambda settings, *more: seen.append((settings, more[-1]))
    )
    command = ["--config", "tiny", "--out", str(tmp_path)]
    for given, value in (("[{path: a, weight: 2}, b]", SETS), ("x", "x"), ("[a, b]", ["a", "b"])):
        assert main([*command, "--data.train", given]) == 0
        settings, text = seen.pop()
        assert settings.data.train == value
        stored = tmp_path / "stored.yaml"
        stored.write_text(text)
        assert main(["--config", str(stored), "--out", str(tmp_path)]) == 0
        assert seen.pop() == (settings, text)
    with pytest.raises(UsageError, match=r"the weight 0\.0 of a is not a number above 0"):
        main([*command, "--data.train", "[{path: a, weight: 0}, b]"])
