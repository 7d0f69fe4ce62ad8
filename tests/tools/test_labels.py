"""`cavmae bench labels`: runs of both starts, a table that resumes, and refusal of mixed runs."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import pytest
import yaml

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.pretrain.config import CAVMAEConfig
from cavmae.pretrain.model import CAVMAE
from cavmae.tools import make_scenes
from cavmae.tools.bench import main
from cavmae.tools.benchmarks import labels
from tests.datasets.clips import clip, data_set_of
from tests.finetune.speaker.runs import SETTINGS, write
from tests.pretrain.engine.running import Process, zygote


def fork(
    command: Sequence[str], stdout: TextIO, env: dict[str, str], **options: Any
) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` of a Python command in a process that need not import anything."""
    assert command[0] == sys.executable and options.keys() == {"stderr", "check"}
    process = Process(command[1:], env, None)
    process.wait(300)
    stdout.write(process.communicate(1)[1])
    assert process.returncode is not None
    return subprocess.CompletedProcess(command, process.returncode)


@pytest.mark.long
def test_both_starts_in_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    zygote()  # before the threads that use it
    monkeypatch.setattr(labels.subprocess, "run", fork)
    sets = []
    for name, first in (("fit", 0), ("others", 20)):
        samples = [clip(n, speaker=f"s{n}", person=True) for n in range(first, first + 6)]
        sets.append(data_set_of(tmp_path / name, samples))
        write(sets[-1])
    encoder = tmp_path / "encoder"
    CAVMAE(
        CAVMAEConfig(size="tiny", image_height=32, image_width=48, audio_frames=64)
    ).save_pretrained(encoder)
    (encoder / "preprocessing.json").write_text('{"fbank_mean": -6.0, "fbank_std": 4.0}')
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(SETTINGS))
    scenes = tmp_path / "list.jsonl"
    options = [f"--compose.{k}={v}" for k, v in SETTINGS["compose"].items()]
    make_scenes.main([sets[1].folder, "--list", str(scenes), "--count", "3", *options])
    capsys.readouterr()

    def bench(**changes: Any) -> None:
        words = {
            "train": sets[0].folder, "shards": sets[1].folder, "encoder": str(encoder),
            "list": str(scenes), "recipe": str(config), "clips": "[5]", "seeds": "1",
            "steps": "1", "jobs": "2", "out": str(tmp_path / "out"),
        } | changes  # fmt: skip
        main(["labels", *(f"--{name}={value}" for name, value in words.items())])

    bench()
    printed = capsys.readouterr().out
    assert "| 5 clips, pretrained | 5 clips, from scratch |" in printed
    assert "| IoU |" in printed
    cases = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert [case["start"] for case in cases] == ["pretrained", "from scratch"]
    assert (tmp_path / "out" / "labels.png").read_bytes()[:4] == b"\x89PNG"
    # Only the pretrained start has an encoder.
    configs = [
        yaml.safe_load((tmp_path / "out" / f"{start}-5-0" / "run" / "config.yaml").read_text())
        for start in ("pretrained", "from-scratch")
    ]
    assert configs[0]["model"]["encoder_from"] == str(encoder)
    assert configs[1]["model"]["encoder_from"] is None
    # Finished runs are kept.
    log = tmp_path / "out" / "pretrained-5-0" / "train.log"
    log.unlink()
    bench()
    assert not log.exists()
    assert capsys.readouterr().out == printed
    with pytest.raises(UsageError, match="runs with another steps"):
        bench(steps="2")
    with pytest.raises(CavmaeError, match="6 clips to compose from, not 9"):
        bench(clips="[9]")
