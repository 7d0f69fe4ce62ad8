"""Search of folders with links: every file once."""

import logging
import os
from pathlib import Path

import pytest

from cavmae.common.errors import UsageError
from cavmae.common.folders import Search, search
from cavmae.datasets.sharding.input_lists import collect

ENDINGS = frozenset({".mp4"})


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def names(result: Search) -> list[str]:
    return [os.path.relpath(path, result.folder) for path in result.files]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """``videos`` with links to another folder, to its own parts, round in circles and nowhere."""
    videos, other = tmp_path / "videos", tmp_path / "other"
    touch(videos / "a.mp4")
    touch(videos / "sub" / "b.mp4")
    touch(other / "c.mp4")
    touch(other / "deep" / "d.mp4")
    touch(tmp_path / "stranger.mp4")
    (videos / "0-more").symlink_to(other)
    (videos / "more-again").symlink_to("../other")
    (videos / "deep").symlink_to(other / "deep")
    (videos / "same").symlink_to("sub")
    (videos / "up").symlink_to("..")
    (videos / "sub" / "round").symlink_to(videos)
    (other / "up").symlink_to("..")
    (videos / "itself").symlink_to("itself")
    (videos / "gone").symlink_to("nowhere")
    (videos / "gone.mp4").symlink_to("nowhere.mp4")
    (videos / "z-link.mp4").symlink_to("sub/b.mp4")
    os.link(videos / "a.mp4", videos / "hard.mp4")
    return videos


def test_every_file_is_listed_once(tree: Path) -> None:
    result = search(tree, ENDINGS)
    real = {os.path.realpath(path) for path in result.files}
    root = os.path.realpath(tree.parent)
    assert real == {
        f"{root}/videos/a.mp4", f"{root}/videos/sub/b.mp4", f"{root}/other/c.mp4",
        f"{root}/other/deep/d.mp4", f"{root}/videos/nowhere.mp4",
    }  # fmt: skip
    assert len(result.files) == len(real)
    # A file that is not behind a link keeps the name it had when links were not followed.
    assert names(result)[:3] == ["a.mp4", "gone.mp4", "z-link.mp4"]
    assert "0-more/c.mp4" in names(result)


def test_skipped_entries_are_named(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tree / "notes.txt")
    touch(tree / "sub" / "frame.jpg")
    touch(tree / "sub" / "frame2.JPG")
    caplog.set_level(logging.INFO, "cavmae")
    collect([str(tree)])
    text = caplog.text
    assert "3 files that are not videos are skipped (2 .jpg, 1 .txt)" in text
    for name in ("up", "sub/round", "itself", "gone", "same", "more-again", "hard.mp4"):
        assert f"'{name}'" in text, name


def test_a_link_is_searched_if_it_is_named(tree: Path) -> None:
    (tree.parent / "link").symlink_to("other")
    result = search(tree.parent / "link", ENDINGS)
    assert names(result) == ["c.mp4", "deep/d.mp4"]
    assert result.loops == [tree.parent / "link" / "up"]


def test_a_folder_that_cannot_be_listed_does_not_stop_the_others(
    tree: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    others = [name for name in names(search(tree, ENDINGS)) if not name.startswith("sub")]
    scandir = os.scandir

    def denied(folder: Path) -> object:
        if Path(folder).name == "sub":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", denied)
    result = search(tree, ENDINGS)
    assert names(result) == others
    result.log_unused("videos")
    assert "skipped, as folders that may not be listed: 'sub'" in caplog.text
    with pytest.raises(UsageError, match=r"sub.*Permission denied"):
        search(tree / "sub", ENDINGS)

    def failing(folder: Path) -> object:
        if Path(folder).name == "sub":
            raise OSError(5, "Input/output error", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", failing)  # files may be missed
    with pytest.raises(UsageError, match=r"sub.*Input/output error"):
        search(tree, ENDINGS)
