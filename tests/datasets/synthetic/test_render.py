"""`cavmae render-talkers`: real runs, kills, bad input."""

import csv
import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.locks import locked
from cavmae.common.settings import LimitedPoolSettings
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.format.sample import SampleInfo
from cavmae.datasets.mixtures.clip_pool import ClipPool
from cavmae.datasets.synthetic.corpus import render_talkers
from cavmae.datasets.synthetic.settings import RenderSettings
from cavmae.tools.render_talkers import main
from tests.conftest import make_shards
from tests.datasets.synthetic.conftest import SPLIT, render
from tests.tools.helpers import contents, load


def rows(folder: Path, split: str) -> list[dict[str, str]]:
    path = folder / f"{split}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.long
def test_the_same_in_any_number_of_processes_and_after_kills(tmp_path: Path) -> None:
    """A run killed at every stage, and one of a single worker, give the same bytes."""
    words = ["--clips", "5", "--people", "1-2", "--seconds", "1", "--height", "96"]
    words += ["--speakers", "8", "--valid-share", "0.25", "--test-share", "0.25", "--workers", "2"]
    out = tmp_path / "out"
    command = [sys.executable, "-m", "cavmae.tools.render_talkers", "--out", str(out), *words]
    for stage, killer in (
        ("speakers.json", signal.SIGKILL),
        (".work/*/masks/0003.png", signal.SIGKILL),
        ("clips/000003/truth.json", signal.SIGTERM),
    ):
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 100
        while not list(out.glob(stage)) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(killer)
        _, said = process.communicate(timeout=60)
        assert b"Traceback" not in said
        if killer == signal.SIGTERM and process.returncode:
            assert process.returncode == 1
            assert b"interrupted" in said
    done = {p.parent.name: p.stat().st_mtime_ns for p in out.glob("clips/*/truth.json")}
    assert main(["--out", str(out), *words]) == 0
    for name, written in done.items():  # what was done is not done again
        assert (out / "clips" / name / "truth.json").stat().st_mtime_ns == written
    assert not (out / ".work").exists()
    assert render(tmp_path / "one", 5, workers=1, people="1-2") == 0
    assert contents(out) == contents(tmp_path / "one")


@pytest.mark.long
def test_a_longer_corpus_begins_with_the_shorter_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cavmae")
    out = tmp_path / "out"
    assert render(out, 2) == 0
    assert "before" not in caplog.text
    before = contents(out / "clips")
    assert render(out, 4) == 0
    assert f"{out}: 2 of 4 clips were done before, 2 are left." in caplog.text
    after = contents(out / "clips")
    assert {name: after[name] for name in before} == before
    assert len({Path(name).parts[0] for name in after}) == 4
    assert render(out, 1) == 0  # nothing is taken away
    assert f"{out}: an earlier run asked for 4 clips, which stay." in caplog.text
    assert f"{out}: 4 of 4 clips were done before, nothing is left to do." in caplog.text
    assert sum(len(rows(out, split)) for split in ("train", "valid", "test")) == 4


def test_missing_and_altered_files_are_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cavmae")
    out = tmp_path / "out"
    assert render(out, 2) == 0
    before = contents(out)
    (out / "clips/000000/voice-1.flac").unlink()
    (out / "clips/000001/masks/0004.png").write_bytes(b"")
    assert render(out, 2) == 0
    assert "2 are left (2 of them altered or incomplete, and rendered again)" in caplog.text
    assert contents(out) == before


def test_other_seeds_give_other_clips(tmp_path: Path) -> None:
    for seed in (1, 2):
        assert render(tmp_path / str(seed), 1, seed=seed) == 0
    first, second = (contents(tmp_path / str(s) / "clips") for s in (1, 2))
    assert first["000000/000000.mp4"] != second["000000/000000.mp4"]
    assert first["000000/mixture.flac"] != second["000000/mixture.flac"]


def test_splits_share_no_speaker_and_shards_take_every_clip(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert render(out, 12, people="1-2", seconds=1.2) == 0
    seen: dict[str, set[str]] = {}
    total = 0
    for split in ("train", "valid", "test"):
        table = rows(out, split)
        total += len(table)
        seen[split] = {s for row in table for s in row["speaker"].split("+")}
        shards = tmp_path / split
        assert make_shards(
            str(out / f"{split}.csv"), shards,
            profile="speakers", clip_seconds=1.2, min_seconds=1.0, shorter_side=96,
        ) == 0  # fmt: skip
        manifest = Manifest.load(shards)
        assert (manifest.samples, manifest.skipped) == (len(table), 0)
        for members in load(shards).values():
            info = SampleInfo.from_bytes(members["json"])
            row = next(r for r in table if Path(r["path"]).name == Path(info.source).name)
            assert info.speaker == row["speaker"]
            assert list(info.labels) == row["labels"].split(";")
            assert len(info.frame_times) == 30
            for number in range(30):
                stored = out / row["masks"] / f"{number:04d}.png"
                assert _same_picture(members[f"{number:03d}.png"], stored)
    assert total == 12
    assert all(seen.values())
    assert not seen["train"] & seen["valid"]
    assert not (seen["train"] | seen["valid"]) & seen["test"]


def _same_picture(stored: bytes, path: Path) -> bool:
    import io

    from PIL import Image

    with Image.open(io.BytesIO(stored)) as first, Image.open(path) as second:
        return bool(np.array_equal(np.asarray(first), np.asarray(second)))


def test_recordings(tmp_path: Path, speech: Path) -> None:
    """Readers become speakers; broken, short and silent files are named; order does not matter."""
    for workers in (1, 2):
        out = tmp_path / str(workers)
        assert render(out, 4, workers=workers, speech=str(speech), pauses=0.0, silent=0.0) == 0
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    lines = (tmp_path / "1" / "skipped.jsonl").read_text().splitlines()
    reasons = {json.loads(x)["source"]: json.loads(x)["reason"] for x in lines}
    assert reasons == {
        "1-broken.flac": "decode_error", "9-broken.wav": "decode_error",
        "2-short.wav": "too_short", "3-silent.wav": "silent",
    }  # fmt: skip
    speakers = json.loads((tmp_path / "1" / "speakers.json").read_bytes())["speakers"]
    assert [s["id"] for s in speakers] == ["0", "1", "2", "3"]
    assert [s["pitch_hz"] for s in speakers] == pytest.approx([100, 140, 180, 220], rel=0.05)
    assert all(len(s["voice"]["recordings"]) == 2 for s in speakers)
    voice, rate = soundfile.read(str(tmp_path / "1/clips/000000/voice-1.flac"))
    assert (rate, len(voice)) == (16_000, 16_000)
    assert np.abs(voice).max() > 0.05


def test_recordings_may_move_but_not_change(tmp_path: Path, speech: Path) -> None:
    import shutil

    first = shutil.copytree(speech, tmp_path / "first")
    out = tmp_path / "out"
    assert render(out, 1, speech=str(first)) == 0
    second = first.rename(tmp_path / "second")
    assert render(out, 2, speech=str(second)) == 0
    soundfile.write(str(second / "set0" / "0-0.wav"), np.zeros(100), 16_000)
    with pytest.raises(CavmaeError, match=r"0-0\.wav is missing or not the file"):
        render(out, 3, speech=str(second))


@pytest.mark.parametrize(
    ("clips", "changes", "message"),
    [
        (0, {}, "--clips 0"),
        (1, {"people": "0"}, "--people '0'"),
        (1, {"people": "3-1"}, "--people 3-1"),
        (1, {"people": "many"}, "--people 'many'"),
        (1, {"height": 97}, "--height 97"),
        (1, {"noise": 1.5}, "--noise 1.5"),
        (1, {"seconds": 0.1}, "--seconds 0.1"),
        (1, {"valid_share": 0.7, "test_share": 0.7}, "more than 1"),
        (1, {"people": "3"}, "Split valid has 2 of 8 speakers"),
    ],
)
def test_bad_settings(tmp_path: Path, clips: int, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        render(tmp_path / "out", clips, **changes)
    assert not list((tmp_path / "out").glob("clips/*"))


def test_bad_speech_folders(tmp_path: Path) -> None:
    with pytest.raises(CavmaeError, match="not a folder"):
        render(tmp_path / "out", 1, speech=str(tmp_path / "nowhere"))
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "read.me").write_text("nothing")
    with pytest.raises(CavmaeError, match="has no recordings"):
        render(tmp_path / "out", 1, speech=str(empty))
    (empty / "1-1.wav").write_text("no sound")
    with pytest.raises(
        CavmaeError, match=r"None of the recordings.*skipped\.jsonl gives the reasons"
    ):
        render(tmp_path / "out", 1, speech=str(empty))
    assert "1-1.wav" in (tmp_path / "out" / "skipped.jsonl").read_text()
    # Once that is mended, the same folder serves.
    soundfile.write(str(empty / "1-1.wav"), np.random.default_rng(0).normal(0, 0.1, 32_000), 16_000)
    share = {"valid_share": 0.0, "test_share": 0.0}
    assert render(tmp_path / "out", 1, speech=str(empty), **share) == 0


def test_damaged_files_of_an_earlier_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert render(out, 1) == 0
    before = contents(out)
    (out / "clips/000000/truth.json").write_text("[]")
    assert render(out, 1) == 0  # made again
    assert contents(out) == before
    for name in ("speakers.json", "talkers.json"):
        whole = (out / name).read_bytes()
        (out / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CavmaeError, match=f"{name} is damaged"):
            render(out, 1)
        (out / name).write_bytes(whole)


def test_files_of_the_users_in_a_clip_are_not_lost(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert render(out, 1) == 0
    (out / "clips/000000/notes.txt").write_text("precious")
    (out / "clips/000000/masks/0003.png").unlink()
    with pytest.raises(CavmaeError, match=r"holds 'notes\.txt'"):
        render(out, 1)
    assert (out / "clips/000000/notes.txt").read_text() == "precious"


def test_clips_that_fail_are_named_and_tried_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    # So long that each clip meets a check of its memory, twice a second.
    settings = RenderSettings(seconds=8.0, height=96, speakers=8, **SPLIT)
    starving = LimitedPoolSettings(workers=1, memory_gb=0.01)
    assert render_talkers(out, 2, settings, starving) == 1
    lines = (out / "skipped-clips.jsonl").read_text().splitlines()
    assert [json.loads(x)["reason"] for x in lines] == ["out_of_memory"] * 2
    assert render_talkers(out, 2, settings, LimitedPoolSettings(workers=1)) == 0
    assert not (out / "skipped-clips.jsonl").exists()
    with pytest.raises(UsageError, match="--workers"):
        render_talkers(out, 3, settings, LimitedPoolSettings(workers=-1))


def test_nothing_made_yet_binds_to_nothing(tmp_path: Path, speech: Path) -> None:
    """A first try that came to nothing does not decide what the folder is for."""
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CavmaeError, match="has no recordings"):
        render(tmp_path / "out", 1, speech=str(empty), seed=3)
    (tmp_path / "out" / ".talkers.json.0123.tmp").write_text("left by a kill")
    assert render(tmp_path / "out", 1, seed=4) == 0
    with pytest.raises(CavmaeError, match="made without --speech, not with --speech"):
        render(tmp_path / "out", 1, speech=str(speech), seed=4)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "clips").mkdir(parents=True)
    (out / "clips" / "mine.txt").write_text("precious")
    with pytest.raises(CavmaeError, match="already holds 'clips'"):
        render(out, 1)
    assert contents(out) == {"clips/mine.txt": b"precious"}


def test_other_settings_in_the_same_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert render(out, 1) == 0
    before = contents(out)
    with pytest.raises(CavmaeError, match="made with --seed 0, not 5"):
        render(out, 1, seed=5)
    (out / "speakers.json").rename(tmp_path / "speakers.json")
    with pytest.raises(CavmaeError, match="made with --seed 0, not 5"):
        render(out, 1, seed=5)
    (tmp_path / "speakers.json").rename(out / "speakers.json")
    with (
        locked(out / ".work", "busy"),
        pytest.raises(CavmaeError, match="Another `cavmae render-talkers`"),
    ):
        render(out, 1)
    assert contents(out) == before


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CavmaeError, match="Cannot write to"):
        render(tmp_path / "file" / "out", 1)


@pytest.mark.parametrize(
    ("package", "message"), [("skia", "skia-python"), ("espeakng_loader", "espeak-ng")]
)
def test_missing_packages_are_named(tmp_path: Path, package: str, message: str) -> None:
    """In a process of its own, as if the package were not installed."""
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from cavmae.tools.render_talkers import main\n"
        "from cavmae.common.cli import run\n"
        f"sys.exit(run(main, ['--out', {str(tmp_path / 'out')!r}, '--clips', '1']))"
    )
    if package == "espeakng_loader":  # workers are processes of their own: ask the function
        code = (
            f"import sys; sys.modules[{package!r}] = None\n"
            "from cavmae.datasets.synthetic.espeak import EspeakVoice, synthesize\n"
            "from cavmae.common.cli import run\n"
            "voice = EspeakVoice('de', 'f1', 50, 50, 150)\n"
            "sys.exit(run(lambda words: len(synthesize(voice, ['nein']))))"
        )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 1
    said = done.stderr.decode()
    assert message in said
    assert "pip install 'cavmae[talkers]'" in said
    assert "Traceback" not in said


def test_clips_without_people(tmp_path: Path) -> None:
    """They are rendered, listed without a speaker, and stored as backgrounds."""
    out = tmp_path / "out"
    share = {"valid_share": 0.0, "test_share": 0.0}
    assert render(out, 4, seconds=2.56, without_people=0.5, distractors=1.0, **share) == 0
    empty = [row for row in rows(out, "train") if "background" in row["labels"].split(";")]
    assert 0 < len(empty) < 4
    for row in empty:
        assert row["speaker"] == ""
        folder = (out / row["path"]).parent
        truth = json.loads((folder / "truth.json").read_text())
        assert truth["people"] == []
        assert not list(folder.glob("voice-*.flac"))
        assert not any(np.asarray(Image.open(path)).any() for path in folder.glob("masks/*.png"))
    assert (out / "contact_sheet.png").exists()
    shards = tmp_path / "shards"
    assert make_shards(str(out / "train.csv"), shards, profile="speakers", shorter_side=96) == 0
    pool = ClipPool(Manifest.load(shards))
    assert sum(clip.without_people for clip in pool.clips) == len(empty)
