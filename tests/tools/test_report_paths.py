"""`cavmae report` on untrusted folders: no file from outside, no link, no large file."""

import base64
import copy
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from cavmae.common.errors import CavmaeError
from cavmae.tools.report import main
from cavmae.tools.reporting.audio_tracks import tracks_of
from cavmae.tools.reporting.blocks import Gallery
from cavmae.tools.reporting.examples import examples
from tests.tools.report_folders import MEASURES, RECORD, embedded, only, page_of, wave, write

SECRET = 12_345  # seed of the audio that must not get into a page


@pytest.fixture
def private(tmp_path: Path, film: Path) -> Path:
    """Files outside of all folders of a report."""
    folder = tmp_path / "private"
    folder.mkdir()
    soundfile.write(str(folder / "voice.wav"), wave(SECRET), 16_000, subtype="FLOAT")
    shutil.copy(film, folder / "film.mp4")
    with (folder / "film.mp4").open("ab") as file:
        file.write(b"\0\0\0\x10freeprivate!")
    Image.new("RGB", (8, 8), "red").save(folder / "curve.png")
    (folder / "notes.txt").write_text("a private note")
    (folder / "config.yaml").write_text("password: private note")
    (folder / "measures.json").write_text(json.dumps(MEASURES))
    return folder


Change = Callable[[Path, Path, dict[str, Any]], None]


def _overlay_path(folder: Path, private: Path, record: dict[str, Any]) -> None:
    record["overlay"] = str(private / "film.mp4")


def _overlay_up(folder: Path, private: Path, record: dict[str, Any]) -> None:
    record["overlay"] = "../private/film.mp4"


def _overlay_link(folder: Path, private: Path, record: dict[str, Any]) -> None:
    (folder / "overlay.mp4").unlink()
    (folder / "overlay.mp4").symlink_to(private / "film.mp4")


def _mask_in_linked_folder(folder: Path, private: Path, record: dict[str, Any]) -> None:
    (folder / "sub").symlink_to(private)
    record["people"][0]["mask"] = "sub/film.mp4"


def _voice_path(folder: Path, private: Path, record: dict[str, Any]) -> None:
    record["people"][0]["voice"] = str(private / "voice.wav")


def _voice_link(folder: Path, private: Path, record: dict[str, Any]) -> None:
    (folder / "person-1.wav").unlink()
    (folder / "person-1.wav").symlink_to(private / "voice.wav")


def _residual_up(folder: Path, private: Path, record: dict[str, Any]) -> None:
    record["residual"] = "../private/voice.wav"


def _own_truth_with_a_path(folder: Path, private: Path, record: dict[str, Any]) -> None:
    record["source"] = str(folder / "overlay.mp4")
    _of_the_source(folder)
    people = [{"speaker": "s", "role": "speaking", "voice": "../private/voice.wav"}]
    write(folder, "truth.json", {"people": people})


def _truth_of_another_clip(folder: Path, private: Path, record: dict[str, Any]) -> None:
    record["source"] = str(private / "film.mp4")
    people = [{"speaker": "s", "role": "speaking", "voice": "voice.wav"}]
    write(private, "truth.json", {"people": people})


def _of_the_source(folder: Path) -> None:
    """Make the recording one of its own overlay, so that its ground truth counts."""
    from cavmae.datasets.media import probe
    from cavmae.datasets.media.audio_reader import AudioReader

    audio = AudioReader(probe(str(folder / "overlay.mp4")))
    mixture, _ = audio.read(0.0, 1.0)
    audio.close()
    voice = wave(1)[: len(mixture)]
    soundfile.write(str(folder / "person-1.wav"), voice, 16_000, subtype="FLOAT")
    soundfile.write(str(folder / "residual.wav"), mixture - voice, 16_000, subtype="FLOAT")


@pytest.mark.parametrize(
    "change",
    [_overlay_path, _overlay_up, _overlay_link, _mask_in_linked_folder, _voice_path, _voice_link,
     _residual_up, _own_truth_with_a_path, _truth_of_another_clip],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_no_file_from_outside(change: Change, recording: Path, private: Path) -> None:
    record = copy.deepcopy(RECORD)
    change(recording, private, record)
    write(recording, "result.json", record)
    separation = only(recording)
    secret = wave(SECRET)
    for track in tracks_of(separation):
        size = min(len(track.wave), len(secret))
        assert abs(np.corrcoef(track.wave[:size], secret[:size])[0, 1]) < 0.2, track.name
    blocks = [
        block
        for block in examples([separation])
        if isinstance(block, Gallery) and block.items_kind == "videos"
    ]
    for video in (video for block in blocks for video in block.items):
        assert base64.b64decode(video.url.partition(",")[2]) != (private / "film.mp4").read_bytes()
    assert separation.record.faults.sentences


def test_a_truth_that_belongs_to_the_recording(recording: Path) -> None:
    """The ground truth that the two cases above refuse is used where it matches."""
    _of_the_source(recording)
    people = [{"speaker": "s", "role": "speaking", "voice": "person-1.wav"}]
    write(recording, "truth.json", {"people": people})
    record = RECORD | {"source": str(recording / "overlay.mp4")}
    write(recording, "result.json", record)
    names = [track.name for track in tracks_of(only(recording))]
    assert names == ["mixture", "person 1", "person 1, truth", "residual"]


def test_links_of_a_folders_own_files(tmp_path: Path, private: Path, recording: Path) -> None:
    shards = write(tmp_path / "shards", "manifest.json", {})
    (shards / "contact_sheet.png").symlink_to(private / "curve.png")
    trained = tmp_path / "run"
    trained.mkdir()
    (trained / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "loss": 1}\n')
    (trained / "config.yaml").symlink_to(private / "config.yaml")
    (trained / "curve.png").symlink_to(private / "curve.png")
    shutil.copy(private / "notes.txt", trained / "notes.png")
    os.mkfifo(trained / "pipe.png")
    evaluation = write(tmp_path / "evaluation", "measures.json", MEASURES)
    (evaluation / "measures.png").symlink_to(private / "curve.png")
    several = tmp_path / "several"
    several.mkdir()
    shutil.copytree(recording, several / "a")
    (several / "b").symlink_to(recording)
    text = page_of(tmp_path, shards, trained, evaluation, several)
    inside = embedded(text)
    for path in private.iterdir():
        assert path.read_bytes() not in inside, path
    assert "private note" not in text
    for name in ("contact_sheet.png", "config.yaml", "curve.png", "measures.png", "several/b"):
        assert f"{name} is a link" in text, name
    assert "pipe.png is no regular file" in text
    assert "notes.png is no PNG image" in text
    with pytest.raises(CavmaeError, match=r"measures\.json is a link"):
        linked = tmp_path / "linked"
        linked.mkdir()
        (linked / "measures.json").symlink_to(private / "measures.json")
        main([str(linked), "--out", str(tmp_path / "other.html")])


def test_a_folder_that_is_named_may_be_a_link(tmp_path: Path, recording: Path) -> None:
    (tmp_path / "link").symlink_to(recording)
    text = page_of(tmp_path, tmp_path / "link")
    assert "Left out" not in text
    assert (recording / "overlay.mp4").read_bytes() in embedded(text)


def test_large_files_are_not_read(recording: Path, tmp_path: Path) -> None:
    with (recording / "overlay.mp4").open("ab") as file:
        file.truncate(300 << 20)
    assert "overlay.mp4&#39; has more than 256 MB" in page_of(tmp_path, recording)
    with (recording / "result.json").open("ab") as file:
        file.truncate(100 << 20)
    with pytest.raises(CavmaeError, match=r"result\.json has more than 64 MB"):
        page_of(tmp_path, recording)


def test_large_images_are_embedded_smaller(tmp_path: Path) -> None:
    """As the same picture, if not to the bit; small ones stay as they are."""
    trained = write(tmp_path / "run", "metrics.jsonl", {"step": 1, "kind": "train", "loss": 1})
    sizes = {"large.png": (600, 500), "small.png": (60, 50)}
    for name, (width, height) in sizes.items():
        noise = np.random.default_rng(0).integers(0, 256, (height // 2, width // 2, 3), np.uint8)
        Image.fromarray(noise).resize((width, height)).save(trained / name)
    png_bytes = (trained / "large.png").stat().st_size
    assert png_bytes > 500_000
    text = page_of(tmp_path, trained)
    (found,) = re.findall('src="data:image/webp;base64,([^"]+)"', text)
    data = base64.b64decode(found)
    assert len(data) < png_bytes / 2
    with Image.open(io.BytesIO(data)) as shown, Image.open(trained / "large.png") as image:
        difference = np.asarray(shown.convert("RGB")).astype(int) - np.asarray(image)
    assert np.abs(difference).mean() < 20
    small = base64.b64encode((trained / "small.png").read_bytes()).decode()
    assert f'src="data:image/png;base64,{small}"' in text
