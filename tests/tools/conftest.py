"""Videos and their shards that the tests of sharding compare with."""

import dataclasses
from pathlib import Path

import pytest
import torch

from cavmae.finetune.inference.separator import Separator
from cavmae.tools.benchmarks.media import make_video
from tests.conftest import SMALL, make_shards
from tests.finetune.speaker.scenes import model
from tests.tools.helpers import RUN_SETTINGS, TINY


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine videos of 1 to 3 s, and a broken one."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(9):
        seconds = 1.0 + number % 3
        make_video(
            folder / f"v{number}.mp4", dataclasses.replace(SMALL, seconds=seconds, seed=number)
        )
    (folder / "broken.mp4").write_text("no video")
    return folder


@pytest.fixture(scope="session")
def reference(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of those, made by one worker without interruption."""
    out = tmp_path_factory.mktemp("reference") / "out"
    assert make_shards(str(videos), out, dataclasses.replace(RUN_SETTINGS, workers=1), **TINY) == 0
    return out


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained model that has a person in every slot."""
    folder = tmp_path_factory.mktemp("model") / "000000001"
    speaker = model()
    with torch.no_grad():
        speaker.state_head[-1].bias.copy_(torch.tensor([3.0, 0.0, -3.0, -3.0]))
        speaker.center_voting.initial_centers.copy_(
            torch.tensor([0.2, 0.5, 0.8, 0.5, 0.2, 0.5, 0.8, 0.5])
        )
    speaker.save_pretrained(folder)
    (folder / "preprocessing.json").write_text('{"fbank_mean": -6.0, "fbank_std": 4.0}')
    return str(folder)


@pytest.fixture(scope="module")
def separator(checkpoint: str) -> Separator:
    return Separator.from_pretrained(checkpoint, "cpu")
