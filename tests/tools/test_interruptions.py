"""`cavmae shard` with real workers that are really killed: nothing is lost, no byte differs."""

import contextlib
import dataclasses
import logging
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from cavmae.common.errors import CavmaeError
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.sharding.job_state import InputLayout, locked
from cavmae.datasets.sharding.settings import ShardRunSettings
from cavmae.datasets.sharding.shard_writer import Assembler
from tests.conftest import make_shards
from tests.tools import faulty
from tests.tools.helpers import (
    RUN_SETTINGS,
    TINY,
    WORDS,
    Maker,
    contents,
    infos,
    run_command,
    skipped,
)


@pytest.mark.parametrize(
    "killer",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.long),
        pytest.param(signal.SIGINT, marks=pytest.mark.long),
    ],
)
def test_the_same_bytes_after_kills_in_mid_run(
    videos: Path,
    reference: Path,
    tmp_path: Path,
    killer: signal.Signals,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "cavmae")
    out = tmp_path / "out"
    for stage in (".work/*.json", "clips-000000.tar", "clips-000003.tar"):
        process = run_command(str(videos), "--out", str(out), "--workers", "2", *WORDS)
        deadline = time.monotonic() + 60
        while not list(out.glob(stage)) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        # Only the program itself is hit: its workers must notice on their own.
        process.send_signal(killer)
        _, said = process.communicate(timeout=60)
        if killer != signal.SIGKILL and process.returncode != 0:
            assert process.returncode == 1
            assert b"interrupted" in said
            assert b"Traceback" not in said
    assert make_shards(str(videos), out, **TINY) == 0
    assert "of 10 inputs were done before, 0 are new" in caplog.text
    assert contents(out) == contents(reference)


def test_a_worker_that_is_killed_costs_nothing(
    videos: Path, reference: Path, tmp_path: Path
) -> None:
    """As by the out-of-memory killer of a container."""
    out = tmp_path / "out"
    process = run_command(str(videos), "--out", str(out), "--workers", "2", *WORDS)
    victim = None
    deadline = time.monotonic() + 100
    while victim is None:
        assert process.poll() is None and time.monotonic() < deadline
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any(file.path.endswith(".part") for file in child.open_files()):
                    victim = child
    victim.kill()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said.decode()
    assert b"is read again (the worker process was killed" in said
    assert contents(out) == contents(reference)


def test_workers_die_with_the_program(videos: Path, tmp_path: Path) -> None:
    process = run_command(str(videos), "--out", str(tmp_path / "out"), *WORDS)
    family: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while len(family) < 3 and time.monotonic() < deadline and process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert len(family) >= 3
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive


def test_a_retry_that_is_interrupted_is_not_forgotten(
    tmp_path: Path, video: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = video("good.mp4")
    late = tmp_path / "in" / "late.mp4"
    late.parent.mkdir()
    late.write_text("not yet")
    out = tmp_path / "out"
    assert make_shards(str(late.parent), out, **TINY) == 1
    shutil.copy(good, late)

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    again = dataclasses.replace(RUN_SETTINGS, retry_skipped=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("cavmae.datasets.sharding.job.drop_retried", interrupt)
        make_shards(str(late.parent), out, again, **TINY)
    for run_settings in (RUN_SETTINGS, again):
        assert make_shards(str(late.parent), out, run_settings, **TINY) == 0
        assert Manifest.load(out).samples == 2
    assert skipped(out) == {}


def test_a_kill_while_skipped_lines_are_taken_out(
    tmp_path: Path, video: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    video("in/good.mp4")
    for name in ("a", "b"):
        (folder / f"{name}.mp4").write_text("no video")
    out = tmp_path / "out"
    assert make_shards(str(folder), out, **TINY) == 0

    def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    again = dataclasses.replace(RUN_SETTINGS, retry_skipped=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("cavmae.datasets.sharding.job_state.State.save", die)
        make_shards(str(folder), out, again, **TINY)
    assert (out / "skipped.jsonl").read_bytes() == b""
    for _ in range(2):
        assert make_shards(str(folder), out, **TINY) == 0
        assert skipped(out) == {"a.mp4": "decode_error", "b.mp4": "decode_error"}
        assert Manifest.load(out).skipped == 2
        assert Manifest.load(out).samples == 2


def test_two_runs_in_one_folder_at_once_are_refused(videos: Path, tmp_path: Path) -> None:
    with locked(InputLayout(tmp_path)), pytest.raises(CavmaeError, match="Another"):
        make_shards(str(videos), tmp_path, **TINY)


def test_a_part_damaged_on_disk_is_made_again(
    videos: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = run_command(str(videos), "--out", str(out), "--workers", "1", *WORDS)
    deadline = time.monotonic() + 60
    while len(list(out.glob(".work/*.json"))) < 1 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.communicate()
    for part in out.glob(".work/*.part"):
        if part.stat().st_size:
            content = bytearray(part.read_bytes())
            content[len(content) // 2] ^= 1
            part.write_bytes(content)
    assert make_shards(str(videos), out, **TINY) == 0
    assert contents(out) == contents(reference)


def test_a_part_damaged_during_the_run_is_made_again(
    videos: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    finish_item = Assembler.finish_item
    damaged: list[Path] = []

    def damage(self: Assembler, number: int, *arguments: object) -> None:
        if not damaged:
            damaged.extend(path for path in out.glob(".work/*.part") if path.stat().st_size)
            for path in damaged:
                path.write_bytes(bytes(path.stat().st_size))
        finish_item(self, number, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Assembler, "finish_item", damage)
    run_settings = dataclasses.replace(RUN_SETTINGS, workers=1)
    assert make_shards(str(videos), out, run_settings, **TINY) == 0  # type: ignore[arg-type]
    assert damaged
    assert contents(out) == contents(reference)


def test_a_worker_that_crashes_hangs_or_grows_costs_its_own_input(
    tmp_path: Path,
    video: Maker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Real signals to real workers, chosen by the name of the video they are reading."""
    caplog.set_level(logging.INFO, "cavmae")
    for name in ("crash", "good1", "good2", "good3", "hang", "grow"):
        video(f"in/{name}.mp4", seconds=2.0)
    out = tmp_path / "out"
    monkeypatch.setattr("cavmae.datasets.sharding.job.shard_task", faulty.work)
    run_settings = ShardRunSettings(workers=2, timeout=4.0, memory_gb=1.0)
    assert make_shards(str(tmp_path / "in"), out, run_settings, **TINY) == 0
    assert caplog.text.count("is read again") == 1  # a hang or a growth is the input's own
    expected = {"crash.mp4": "crash", "hang.mp4": "timeout", "grow.mp4": "out_of_memory"}
    assert skipped(out) == expected
    saved = Counter(Path(info.source).name for info in infos(out))
    # The crash comes after its first clip, which is kept.
    assert saved == {"good1.mp4": 2, "good2.mp4": 2, "good3.mp4": 2, "crash.mp4": 1}
    again = dataclasses.replace(run_settings, retry_skipped=True)
    assert make_shards(str(tmp_path / "in"), out, again, **TINY) == 0
    assert skipped(out) == {}
    saved = Counter(Path(info.source).name for info in infos(out))
    assert set(saved.values()) == {2}
    assert len(saved) == 6


def test_a_pipe_without_a_writer_does_not_hang_the_run(tmp_path: Path, video: Maker) -> None:
    video("in/good.mp4")
    os.mkfifo(tmp_path / "in" / "pipe.mp4")
    run_settings = dataclasses.replace(RUN_SETTINGS, timeout=3.0)
    assert make_shards(str(tmp_path / "in"), tmp_path / "out", run_settings, **TINY) == 0
    assert len(skipped(tmp_path / "out")) == 1
