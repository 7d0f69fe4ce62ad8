"""Worked examples of docs/extending.md, run as they stand there."""

import importlib
import importlib.util
import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

from cavmae.common.cli import parse_settings, parser
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.sharding.settings import PROFILES, ShardSettings
from cavmae.finetune.laterals.settings import LATERALS
from cavmae.finetune.motion.settings import MOTION
from cavmae.finetune.separators.base import VoiceSeparator
from cavmae.finetune.separators.settings import SEPARATORS
from cavmae.finetune.speaker.factory import load_speaker
from cavmae.finetune.speaker.pixel_decoders.settings import PIXEL_DECODERS
from cavmae.finetune.train import TASKS, main
from cavmae.pretrain.config import CAVMAEConfig
from cavmae.pretrain.model import CAVMAE
from cavmae.pretrain.temporal.settings import TEMPORAL
from tests.datasets.clips import clip, data_set_of
from tests.finetune.laterals import test_laterals as lateral_tests
from tests.finetune.separators import test_separators as registry_tests
from tests.pretrain.engine.running import trace

TEXT = (Path(__file__).parent.parent / "docs/extending.md").read_text()
EXAMPLE = re.compile(r"^```python ([\w/]+)\.py\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = {path.replace("/", "."): text for path, text in EXAMPLE.findall(TEXT)}


def install(*names: str) -> None:
    """Blocks of files: at the end of a module that there is, else as a new module."""
    for name in names:
        code = compile(BLOCKS[name], f"docs/extending.md, {name}", "exec")
        path = f"cavmae.{name}"
        if importlib.util.find_spec(path) is None:
            sys.modules[path] = types.ModuleType(path)
            sys.modules[path].__file__ = str(Path(__file__).parent / "example.py")
        exec(code, importlib.import_module(path).__dict__)


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    """Takes the entries of an example away again."""
    modules = set(sys.modules)
    registries = SEPARATORS, TEMPORAL, LATERALS, MOTION, PIXEL_DECODERS
    tables: list[dict[str, Any]] = [TASKS, PROFILES, *(table._entries for table in registries)]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        for name in set(table) - set(entries):
            del table[name]
    for name in BLOCKS:
        if f"cavmae.{name}" not in modules:
            sys.modules.pop(f"cavmae.{name}", None)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    clips = [clip(n, speaker=f"s{n}", person=True) for n in range(6)]
    manifest = data_set_of(tmp_path / "shards", clips)
    folder = tmp_path / "shards"
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    (folder / "stats.json").write_text(json.dumps({"fbank_mean": -5.0, "fbank_std": 3.0}))
    return folder


def finetune(task: str, run: Path, settings: dict[str, object], *words: str) -> None:
    path = run.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(settings))
    assert main([task, "--config", str(path), "--out", str(run), *words]) == 0
    AcceleratorState._reset_state(reset_partial_state=True)


LOOP = {"steps": 2, "log_every": 1, "threads": 1, "tracker": "none", "device": "cpu"}


def speakers(shards: Path, run: Path, *words: str) -> None:
    """Two steps of fine-tuning of a very small model."""
    compose = {"height": 32, "width": 48, "seconds": 0.64, "people": [0.2, 0.6, 0.2]}
    model = {
        "train_encoder": "all", "slots": 4, "width": 16, "heads": 2, "query_layers": 1,
        "slot_layers": 1, "mask_width": 8, "key_frames": 2,
        "motion_height": 16, "motion_width": 24, "motion": {"name": "conv", "width": 8, "depth": 1},
        "encoder": {"size": "tiny", "depth": 1},
    }  # fmt: skip
    data = {"train": str(shards), "batch_size": 2, "workers": 0}
    settings = {"data": data, "compose": compose, "model": model, "loop": LOOP}
    finetune("speakers", run, settings, "--loss.points", "32", *words)


def test_the_separator_is_trained_and_loaded(shards: Path, tmp_path: Path) -> None:
    install("finetune.separators.settings", "finetune.separators.filter_bank")
    run = tmp_path / "run"
    speakers(
        shards, run, "--model.sound.separator", "filter-bank", "--model.sound.separator.width", "8"
    )
    separator = load_speaker(str(run / "checkpoints/000000002"))[0].sound.separator
    assert type(separator).__name__ == "FilterBank"
    assert separator.encoder.out_channels == 8
    config = json.loads((run / "checkpoints/000000002/config.json").read_bytes())
    assert config["sound"]["separator"] == {"name": "filter-bank", "width": 8}


def test_the_temporal_attention_is_trained_and_loaded(shards: Path, tmp_path: Path) -> None:
    install("pretrain.temporal.settings", "pretrain.temporal.mean")
    run = tmp_path / "run"
    speakers(shards, run, "--model.encoder.temporal", "mean")
    encoder = load_speaker(str(run / "checkpoints/000000002"))[0].encoder
    gains = torch.cat([block.attn.gain for block in (*encoder.blocks_v, *encoder.blocks_u)])
    assert not torch.equal(gains, torch.full_like(gains, 0.1))  # it had gradients


def test_the_lateral_is_trained_and_passes_the_tests_of_the_registry(
    shards: Path, tmp_path: Path
) -> None:
    install("finetune.laterals.settings", "finetune.laterals.gain")
    run = tmp_path / "run"
    speakers(shards, run, "--model.lateral", "gain", "--loss.sync_weight", "1")
    lateral = load_speaker(str(run / "checkpoints/000000002"))[0].lateral
    assert type(lateral).__name__ == "AudioGain"
    lateral_tests.test_every_weight_gets_a_gradient_also_from_a_dropped_pathway("gain")
    lateral_tests.test_audio_moves_the_map_of_its_own_time_only("gain", 62)
    lateral_tests.test_the_gate_of_a_clip_hides_its_audio("gain")


def test_the_pathway_and_the_decoder_are_trained_and_loaded(shards: Path, tmp_path: Path) -> None:
    install("finetune.motion.settings", "finetune.motion.tubelets")
    install("finetune.speaker.pixel_decoders.settings", "finetune.speaker.pixel_decoders.linear")
    run = tmp_path / "run"
    speakers(
        shards, run, "--model.motion", "tubelets", "--model.motion.width", "8",
        "--model.pixel-decoder", "linear",
    )  # fmt: skip
    model = load_speaker(str(run / "checkpoints/000000002"))[0]
    assert model.motion.embed.weight.shape == (8, 3, 3, 4, 4)
    assert type(model.pixel_decoder).__name__ == "LinearDecoder"


def test_the_task_learns_and_goes_on(data_set: Manifest, tmp_path: Path) -> None:
    install("finetune.correspondence", "finetune.train")
    torch.manual_seed(0)
    encoder = tmp_path / "encoder"
    CAVMAE(
        CAVMAEConfig(
            image_height=32, image_width=48, audio_frames=96, width=24, heads=2, depth=1,
            decoder_width=16, decoder_heads=2, decoder_depth=1,
        )
    ).save_pretrained(encoder)  # fmt: skip
    shards = data_set.folder
    data = {
        "train": shards, "held_out": shards, "batch_size": 2, "workers": 0, "shuffle_buffer": 4,
        "statistics": "audioset",
    }  # fmt: skip
    settings = {"encoder": str(encoder), "data": data, "loop": {**LOOP, "evaluate_every": 2}}
    run = tmp_path / "run"
    finetune("correspondence", run, settings)
    finetune("correspondence", run, settings, "--resume", "auto", "--loop.steps", "3")
    lines = trace(run)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert all(0 <= line["accuracy"] <= 1 for line in lines if "accuracy" in line)
    assert any("accuracy" in line for line in lines)


def test_the_profile_is_an_option() -> None:
    install("datasets.sharding.settings")
    words = "--profile", "lectures", "--clip-seconds", "20"
    settings = parse_settings(parser("shard", "test"), ShardSettings, words)[0].resolved()
    assert (settings.clip_seconds, settings.frame_rate, settings.crop) == (20.0, 0.2, "patches")


def test_the_separator_passes_the_tests_of_the_registry() -> None:
    install("finetune.separators.settings", "finetune.separators.filter_bank")

    def build(width: int = 8) -> VoiceSeparator:
        options = SEPARATORS.options("filter-bank")(width=width)  # type: ignore[call-arg]
        built: VoiceSeparator = SEPARATORS.build(options, registry_tests.WIDTH)
        return built

    registry_tests.test_shapes_and_sum(build)
    registry_tests.test_a_voice_does_not_depend_on_the_others(build)
    registry_tests.test_every_weight_gets_a_gradient(build)


def test_every_block_is_installed_by_a_test() -> None:
    source = Path(__file__).read_text()
    assert len(BLOCKS) == 13
    assert all(f'"{name}"' in source for name in BLOCKS)
