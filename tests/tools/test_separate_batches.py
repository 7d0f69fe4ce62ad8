"""`cavmae separate` on many videos: one that fails, one already there, after a kill."""

import errno
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.locks import locked
from cavmae.finetune.inference.result_files import SeparatedFiles
from cavmae.finetune.inference.separator import Separator
from cavmae.finetune.inference.settings import SeparateSettings
from cavmae.tools.separate import bracketed, main

Maker = Callable[..., Path]
QUICK = SeparateSettings(second_look=False, height=64)


def words(checkpoint: str, out: Path) -> list[str]:
    """Options of the fastest run."""
    return ["--model", checkpoint, "--out", str(out), "--second-look", "false",
            "--overlay", "false", "--masks", "false"]  # fmt: skip


def test_a_broken_file_does_not_stop_the_others(
    checkpoint: str, video: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "videos"
    whole = [video(f"videos/{name}.mp4", seconds=1.0) for name in ("a", "c")]
    (folder / "b.mp4").write_bytes(b"no video at all" * 99)
    (folder / "d.mp4").write_bytes(b"")
    video("videos/silent.mp4", seconds=1.0, audio=None)
    out = tmp_path / "out"
    command = [str(folder), *words(checkpoint, out)]
    assert main(command) == 1
    assert {p.name for p in out.iterdir()} == {"a", "c"}
    for text in ("b.mp4: it does not decode", "d.mp4: the file is empty",
                 "silent.mp4: it has no audio", "3 of 5 videos failed"):  # fmt: skip
        assert text in caplog.text
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    (folder / "b.mp4").unlink()
    (folder / "d.mp4").unlink()
    (folder / "silent.mp4").unlink()
    assert main(command) == 0  # what is there is not made again
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    assert len(whole) == 2


def test_thresholds_are_options_and_part_of_a_result(
    checkpoint: str, video: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, out = str(video(seconds=0.5)), tmp_path / "out"
    assert main([path, *words(checkpoint, out), "--thresholds.min-area-fraction", "0.99"]) == 0
    record = SeparatedFiles.load(out / "video").record
    assert record["people"] == []
    assert record["thresholds"]["min_area_fraction"] == 0.99
    assert main([path, *words(checkpoint, out)]) == 1
    assert "made with --thresholds.min-area-fraction 0.99, not 0.002" in caplog.text
    with pytest.raises(UsageError, match=r"--thresholds.max-pause -1 is negative"):
        main([path, *words(checkpoint, out), "--thresholds.max-pause", "-1"])


def test_results_of_other_settings_are_refused(
    checkpoint: str, video: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, other = video("x/a.mp4", seconds=0.5), video("y/a.mp4", seconds=0.5)
    out = tmp_path / "out"
    options = words(checkpoint, out)
    assert main([str(first), *options]) == 0
    assert main([str(other), *options]) == 0  # of the same name: beside it
    assert main([str(first), str(other), *options]) == 0
    places = {SeparatedFiles.load(p).record["source"]: p for p in out.iterdir()}
    assert set(places) == {str(first), str(other)}
    assert places[str(first)].name == "a"
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    for changed, message in (
        (["--rate", "input"], "made with --rate 16000, not input"),
        (["--target.point=0.5,0.5"], r"made with --target.point none, not \[0.5, 0.5\]"),
    ):
        assert main([str(first), str(other), *options, *changed]) == 1
        assert re.search(message, caplog.text)
        caplog.clear()
        assert main([str(first), *options, *changed]) == 1  # the job, not its words
        assert re.search(message, caplog.text)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_a_target_that_one_video_does_not_have_does_not_stop_the_others(
    checkpoint: str, video: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short, long = video("short.mp4", seconds=0.5), video("long.mp4", seconds=2.0)
    out = tmp_path / "out"
    options = [*words(checkpoint, out), "--target.point=0.5,0.5", "--target.time", "1.5"]
    assert main([str(short), str(long), *options]) == 1
    assert "outside the recording of 0.5 s" in caplog.text
    assert [p.name for p in out.iterdir()] == ["long"]
    table = tmp_path / "table.csv"
    table.write_text(f"path,start,end\n{long},0.5,1\n")
    with pytest.raises(UsageError, match="leave start and end out"):
        main([str(table), *options])


@pytest.mark.parametrize("numbers", [".1,.2,.4,.9", "0.1,.2,.4,.9", "+.1,.2,.4,.9"])
def test_fractions_of_a_box_are_written_in_any_way(numbers: str) -> None:
    for words_of_box in ([f"--target.box={numbers}"], ["--target.box", numbers]):
        assert bracketed(words_of_box)[-1].endswith(f"[{numbers}]")
    assert bracketed(["--target.box", "--out", "x"]) == ["--target.box", "--out", "x"]


@pytest.mark.parametrize("numbers", ["-5,0,1,1", ".1,.2,.4,1.9e3"])
def test_a_box_outside_of_the_frame_is_named(
    numbers: str, checkpoint: str, video: Maker, tmp_path: Path
) -> None:
    options = [str(video("a.mp4", seconds=0.5)), *words(checkpoint, tmp_path / "out")]
    with pytest.raises(UsageError, match="does not lie in the frame of 96x64 pixels"):
        main([*options, "--target.box", numbers])


def test_scratch_files_of_a_killed_run_are_removed(
    separator: Separator, video: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / ".out.unfinished" / "work" / "wave-0.f32"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x" * 1000)
    settings = SeparateSettings(False, overlay=False, masks=False)
    path = str(video(seconds=0.5))
    with locked(left.parent.parent, "busy"), pytest.raises(CavmaeError, match="Another process"):
        separator.separate(path, tmp_path / "out", settings)
    separator.separate(path, tmp_path / "out", settings)
    assert not left.parent.parent.exists()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cavmae.finetune.inference.result_files.write_wav", full)
    with pytest.raises(CavmaeError, match=r"video.mp4: .*No space left on device"):
        separator.separate(path, tmp_path / "again", settings)
    assert {p.name for p in tmp_path.iterdir()} == {"out", "video.mp4"}


def test_an_output_that_is_there_is_not_touched(
    separator: Separator, video: Maker, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UsageError, match="is there already"):
        separator.separate(str(video()), out, QUICK)
