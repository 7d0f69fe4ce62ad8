"""`cavmae demo`: every step is run, goes on after a kill, and tells when nothing was learned."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cavmae.datasets.errors import UsageError
from cavmae.tools.cli import COMMANDS
from cavmae.tools.demo import DemoSettings, demo, main, steps

pytest.importorskip("skia", reason="rendering talkers needs skia-python")

SMALL = ["--clips", "24", "--pretrain-steps", "2", "--finetune-steps", "2", "--scenes", "4"]


@pytest.mark.skipif(
    "CAVMAE_WHOLE_DEMO" not in os.environ,
    reason="takes minutes: set CAVMAE_WHOLE_DEMO, as .ci/run does",
)
def test_the_whole_way_with_a_kill_in_the_middle(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    words = [sys.executable, "-m", "cavmae.tools.demo", "--out", str(folder), *SMALL]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 200
    while not (folder / "pretrained" / "retrieval.json").exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 1
    assert not (folder / "report.html").exists()
    kept = [
        *folder.glob("talkers/clips/*/*.mp4"), *folder.glob("shards/*/*.tar"),
        *folder.glob("pretrained/checkpoints/*/model.safetensors"),
    ]  # fmt: skip
    assert len(kept) >= 24 + 2 + 1
    before = {path: path.stat().st_mtime_ns for path in kept}

    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    # In two steps nothing is learned, and that is said.
    assert done.returncode == 1, done.stderr[-3000:]
    assert "That is less than +2.0 dB and IoU 0.6" in done.stderr
    assert (folder / "report.html").as_uri() in done.stderr
    assert done.stderr.count("done before") >= 3
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    page = (folder / "report.html").read_text()
    for text in ("person", "Learning rate", "pictures blanked", "reconstructions"):
        assert text in page
    assert len(list(folder.glob("separated/*/result.json"))) == 2


def test_a_folder_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    for words in ([], ["--clean"]):
        with pytest.raises(UsageError, match="holds something else"):
            main(["--out", str(tmp_path), *words])
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_every_step_is_a_command_and_a_video_is_taken_apart_too(tmp_path: Path) -> None:
    found = list(steps(tmp_path, DemoSettings(video="mine.mp4")))
    assert {step.words[0] for step in found} <= set(COMMANDS)
    separate = next(step for step in found if step.words[0] == "separate")
    assert "mine.mp4" in separate.words


def test_clean_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cavmae.tools.demo.steps", lambda *_: iter(()))
    monkeypatch.setattr("cavmae.tools.demo._verdict", lambda *_: True)
    assert demo(DemoSettings(out=str(tmp_path / "d"))) == 0
    (tmp_path / "d" / "talkers").mkdir()
    assert demo(DemoSettings(out=str(tmp_path / "d"))) == 0
    assert (tmp_path / "d" / "talkers").exists()
    assert demo(DemoSettings(out=str(tmp_path / "d"), clean=True)) == 0
    assert not (tmp_path / "d" / "talkers").exists()
