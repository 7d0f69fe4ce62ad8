"""`cavmae separate`: the recordings it is given."""

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.finetune.inference.predictor import WindowPredictor
from cavmae.finetune.inference.separator import Separator
from cavmae.finetune.inference.settings import SeparateSettings
from cavmae.finetune.inference.target import Target
from cavmae.finetune.speaker.factory import load_speaker
from cavmae.tools.separate import main
from tests.serving import refusing
from tests.tools.helpers import Maker


def test_addresses_that_cannot_be_fetched_do_not_stop_the_others(
    checkpoint: str, video: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cavmae")
    refused = f"{refusing()}/b.mp4"
    table = tmp_path / "t.csv"
    table.write_text(
        f"path,labels\nhtps://x/a.mp4,\n{refused},\n{video('c.mp4', seconds=0.5)},talking\n,\n"
    )
    options = ["--second-look", "false", "--overlay", "false", "--masks", "false"]
    words = [str(table), "--model", checkpoint, "--out", str(tmp_path / "out"), *options]
    assert main(words) == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["c"]
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == "Of a table only the column path is used."
    assert messages[1].startswith("Skipped: htps://x/a.mp4 has the unknown scheme 'htps'")
    assert any(m.startswith(f"cavmae: {refused}: unreachable") for m in messages)
    assert "cavmae: 2 of 3 videos failed:" in messages
    assert [m[:8] for m in messages[-2:]] == ["cavmae: "] * 2


def test_data_files_are_refused(tmp_path: Path) -> None:
    entry = {"video_id": "v", "wav": "v.wav", "video_path": "f"}
    (tmp_path / "d.json").write_text(json.dumps({"data": [entry]}))
    with pytest.raises(UsageError, match="Data files of CAV-MAE"):
        main([str(tmp_path / "d.json"), "--model", "x", "--out", str(tmp_path / "out")])


def test_masks_are_png_and_voices_of_known_kinds(tmp_path: Path) -> None:
    white = Image.fromarray(np.full((8, 8), 255, np.uint8))
    wave = np.sin(np.arange(16_000) * 0.2)
    white.save(tmp_path / "mask.png", "JPEG")
    soundfile.write(tmp_path / "voice.wav", wave, 16_000, format="AIFF")
    os.mkfifo(tmp_path / "pipe")
    mask, voice, pipe = (str(tmp_path / name) for name in ("mask.png", "voice.wav", "pipe"))
    for target, message in (
        (Target(mask=mask), "is not a PNG"), (Target(mask=pipe), "no regular file"),
        (Target(voice=voice), "is not a readable audio file"), (Target(voice=pipe), "no such file"),
    ):  # fmt: skip
        with pytest.raises(CavmaeError, match=message):
            target.check()
    white.save(mask)
    soundfile.write(voice, wave, 16_000)
    Target(mask=mask).check()
    Target(voice=voice).check()


def test_hints_name_classes_of_the_model(checkpoint: str, video: Maker, tmp_path: Path) -> None:
    model, statistics = load_speaker(checkpoint)
    model.add_classes(("child", "adult"))
    assert model.hint_embed.added is not None
    torch.nn.init.normal_(model.hint_embed.added[1])
    separator = Separator(WindowPredictor(model, statistics), "m", "fp32")
    frames = np.random.default_rng(0).integers(256, size=(16, 32, 48, 3), dtype=np.uint8)
    wave = np.random.default_rng(1).normal(size=10_240) * 0.1
    plain, child, adult = (
        separator.separate_arrays(
            frames, wave, 16_000, settings=SeparateSettings(second_look=False, hint=hint)
        ).residual
        for hint in (None, "child", "adult")
    )
    assert (plain == child).all()  # it has learned nothing
    assert not np.allclose(plain, adult, rtol=0, atol=1e-6)
    options = [str(video(seconds=0.5)), str(video("b.mp4", seconds=0.5)), "--hint", "elder"]
    for name, message in ((checkpoint, "it has none"), ("added", "it has child, adult")):
        if name == "added":
            name = str(shutil.copytree(checkpoint, tmp_path / name))
            model.save_pretrained(name)
        with pytest.raises(UsageError, match=f"--hint elder: .*{message}"):
            main([*options, "--model", name, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
