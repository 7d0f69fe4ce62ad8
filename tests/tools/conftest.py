"""Videos and their shards that the tests of sharding compare with."""

import dataclasses
from pathlib import Path

import pytest

from cavmae.tools.benching.media import make_video
from tests.conftest import SMALL, make_shards
from tests.tools.helpers import HOW, TINY


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
    assert make_shards(str(videos), out, dataclasses.replace(HOW, workers=1), **TINY) == 0
    return out
