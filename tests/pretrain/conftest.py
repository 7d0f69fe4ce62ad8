"""Runs in this process leave nothing behind for the next."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from cavmae.datasets.format.manifest import Manifest


@pytest.fixture(autouse=True)
def no_accelerator() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def copied(data_set: Manifest, tmp_path: Path) -> Path:
    """A copy of the data set that a test may spoil."""
    out = tmp_path / "copied"
    shutil.copytree(data_set.folder, out)
    return out
