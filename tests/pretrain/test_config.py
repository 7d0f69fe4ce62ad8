"""Configurations: sizes, bounds, JSON and back, options of the command line."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cavmae.common.json_files import value_as
from cavmae.common.registry import to_json_value
from cavmae.finetune.events.config import EventConfig
from cavmae.pretrain.config import SIZES, CAVMAEConfig, EncoderConfig, Size, as_base_config
from cavmae.pretrain.engine import run as run_module
from cavmae.pretrain.factory import model_config
from cavmae.pretrain.settings import ObjectiveSettings, PretrainSettings
from cavmae.pretrain.train import main

CONFIGS = [
    EncoderConfig(),
    EncoderConfig(size="tiny", image_width=64),
    CAVMAEConfig(size="large", decoder="cross"),
    CAVMAEConfig(size="tiny", depth=3, contrast_width=8),
    EventConfig(EncoderConfig(size="small", heads=12), ("dog", "cat"), "attention"),
]


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_a_size_gives_the_numbers_that_are_left_out(size: Size) -> None:
    config = CAVMAEConfig(size=size)
    assert {name: getattr(config, name) for name in SIZES[size]} == SIZES[size]
    assert config == CAVMAEConfig(size="custom", **SIZES[size])  # type: ignore[arg-type]
    deeper = dataclasses.replace(config, depth=3)
    assert (deeper.size, deeper.depth, deeper.width) == ("custom", 3, config.width)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_configuration_is_its_json(config: Any) -> None:
    text = json.dumps(to_json_value(config))
    assert value_as(type(config), json.loads(text), "config") == config


def test_the_encoder_s_configuration_is_a_part_of_the_model_s() -> None:
    config = CAVMAEConfig(size="tiny", decoder_width=64, patch=8, joint_depth=2)
    encoder = as_base_config(config, EncoderConfig)
    assert type(encoder) is EncoderConfig
    assert encoder == EncoderConfig(size="tiny", patch=8, joint_depth=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": "huge"}, "no size 'huge'; there are tiny, small, base, large"),
        ({"size": "custom"}, "width is 0: size custom needs width, heads, depth, decoder_width"),
        ({"width": 9000}, "width 9000 is not from 4 to 8192"),
        ({"depth": -1}, "depth -1 is not from 1 to 256"),
        ({"heads": 5}, "width 768 is not a multiple of 4 and of 5 heads"),
        ({"decoder_heads": 5}, "decoder_width 512 is not a multiple of 4 and of 5 heads"),
        ({"mel_bins": 100}, "mel_bins 100 is not made of patches of 16"),
        ({"audio_frames": 8}, "audio_frames 8 is not made of patches of 16"),
        ({"image_height": 4096, "image_width": 4096, "patch": 1}, "image of 16777216 patches"),
        ({"decoder": "none"}, "decoder 'none' is neither"),
    ],
)
def test_numbers_that_make_no_model(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CAVMAEConfig(**changes)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], CAVMAEConfig()),
        (["--model.size", "tiny"], CAVMAEConfig(size="tiny")),
        (["--model.size", "tiny", "--model.depth", "3"], CAVMAEConfig(size="tiny", depth=3)),
        (["--model.temporal", "per-frame"], CAVMAEConfig()),
        (
            ["--config", "tiny", "--model.decoder-depth", "1"],
            CAVMAEConfig(
                size="tiny", image_height=112, image_width=112, audio_frames=256, decoder="cross",
                decoder_depth=1,
            ),
        ),
    ],
)  # fmt: skip
def test_options_become_the_configuration(
    words: list[str], wanted: CAVMAEConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also defaults that depend on the size, through the command line."""
    seen: list[PretrainSettings] = []
    monkeypatch.setattr(run_module, "run_training", lambda settings, *_: seen.append(settings))
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert model_config(seen[0].model, ObjectiveSettings()) == wanted


def test_help_describes_inherited_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for part in ("blocks of each modality's own branch", "blocks of the decoder; 0: the size's",
                 "only with ``objective.aligned_weight``"):  # fmt: skip
        assert part in text


def test_configurations_need_no_pytorch() -> None:
    modules = "cavmae.pretrain.settings, cavmae.finetune.events.config"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
