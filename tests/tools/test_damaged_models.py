"""Altered or damaged models in commands: a sentence and exit code 1, never silence and 0."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cavmae.common.cli import run
from cavmae.common.errors import CavmaeError, NonFiniteError
from cavmae.datasets.stream.transforms import Statistics
from cavmae.finetune.inference.predictor import WindowPredictor
from cavmae.pretrain.engine.model_files import COMPLETE, WEIGHTS, write_hashes
from cavmae.tools.separate import main
from tests.finetune.inference.predictors import view_of
from tests.finetune.speaker.scenes import SAMPLES, model

Maker = Callable[..., Path]
QUICK = ["--overlay", "false", "--masks", "false", "--device", "cpu"]


@pytest.fixture
def vouched(checkpoint: str, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "000000001"))
    write_hashes(folder)
    return folder


def separated(folder: Path, video: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The error message for a model that is refused."""
    assert run(main, [str(video), "--model", str(folder), "--out", str(out), *QUICK]) == 1
    message = capsys.readouterr().err
    assert "Traceback" not in message and not out.exists()
    return message.strip().splitlines()[-1]


def test_an_altered_model(
    vouched: Path, video: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = video(seconds=1.0), tmp_path / "out"
    weights, listing = vouched / WEIGHTS, vouched / COMPLETE
    whole = weights.read_bytes()
    words = [str(path), "--model", str(vouched), "--out", str(tmp_path / "sound"), *QUICK]
    assert run(main, words) == 0
    capsys.readouterr()
    for altered in (
        whole[:-2] + bytes([whole[-2] ^ 0x40]) + whole[-1:],
        whole[: len(whole) // 2],
        b"altered",
    ):
        weights.write_bytes(altered)
        assert f"{weights} was altered" in separated(vouched, path, out, capsys)
    listing.write_text("{}")
    assert f"{listing} cannot be used" in separated(vouched, path, out, capsys)
    listing.unlink()
    assert f"{weights} is damaged" in separated(vouched, path, out, capsys)


def test_voices_that_are_no_numbers() -> None:
    """NaN in the mixture, and finite weights that overflow."""
    speaker = model().eval()
    predictor = WindowPredictor(speaker, Statistics(-6.0, 4.0))
    frames = np.zeros((16, 32, 48, 3), np.uint8)
    sound = np.sin(np.arange(SAMPLES) / 20).astype(np.float32)
    predictor.predict(view_of(predictor, frames), predictor.prepare(sound))
    broken = np.where(np.arange(SAMPLES) == 99, math.nan, sound).astype(np.float32)
    with pytest.raises(CavmaeError, match="The audio has NaN or Inf"):
        predictor.prepare(broken)
    with torch.no_grad():
        for parameter in speaker.sound.separator.parameters():
            parameter.fill_(3e38)
    with pytest.raises(NonFiniteError, match="The model gives NaN or Inf"):
        predictor.predict(view_of(predictor, frames), predictor.prepare(sound))
