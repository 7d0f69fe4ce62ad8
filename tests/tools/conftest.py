"""Videos, their shards, models and separated recordings that tests share."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import soundfile
import torch

from cavmae.finetune.inference.separator import Separator
from cavmae.tools.benchmarks.media import make_video
from tests.conftest import SMALL, make_shards
from tests.finetune.speaker.scenes import model
from tests.tools.helpers import RUN_SETTINGS, TINY
from tests.tools.report_folders import RECORD, wave

if TYPE_CHECKING:
    from tests.object_store import ObjectStore


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
def server() -> Iterator["ObjectStore"]:
    from tests.object_store import object_store  # which imports moto

    with object_store() as store:
        yield store


@pytest.fixture
def s3(server: "ObjectStore") -> Iterator["ObjectStore"]:
    """The store, empty."""
    server.fault = lambda request: None
    if server.system.exists("clips/set"):
        server.system.rm("clips/set", recursive=True)
    server.requests.clear()
    yield server


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


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return make_video(path, dataclasses.replace(SMALL, seconds=1.0))


@pytest.fixture
def recording(tmp_path: Path, film: Path) -> Path:
    """A separated recording, as `cavmae separate` writes it."""
    folder = tmp_path / "recording"
    folder.mkdir()
    soundfile.write(str(folder / "person-1.wav"), wave(1), 16_000, subtype="FLOAT")
    soundfile.write(str(folder / "residual.wav"), wave(2), 16_000, subtype="FLOAT")
    shutil.copy(film, folder / "overlay.mp4")
    (folder / "result.json").write_text(json.dumps(RECORD))
    return folder
