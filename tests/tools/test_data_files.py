"""Entries of the reference's data files with damaged WAVs or JPEGs."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from cavmae.datasets.format import sample
from tests.conftest import make_shards
from tests.tools.helpers import infos

TONE = (np.sin(np.arange(48_000) * 0.2) * 0.3).astype(np.float32)


class Entries:
    """Builder of a data file, with intact entries for a test to damage."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.names: list[str] = []
        for number in range(10):
            (folder / "frames" / f"frame_{number}").mkdir(parents=True)

    def add(self, name: str) -> Path:
        """Returns the WAV's path."""
        self.names.append(name)
        path = self.folder / f"{name}.wav"
        soundfile.write(path, TONE, 16_000)
        for number in range(10):
            grey = np.full((64, 64, 3), 20 * number, np.uint8)
            self.frame(name, number).write_bytes(sample.encode_frame(grey, 90))
        return path

    def frame(self, name: str, number: int) -> Path:
        return self.folder / "frames" / f"frame_{number}" / f"{name}.jpg"

    def write(self) -> str:
        entries = [
            {"video_id": name, "wav": f"{name}.wav", "video_path": "frames", "labels": ""}
            for name in self.names
        ]
        path = self.folder / "data.json"
        path.write_text(json.dumps({"data": entries}))
        return str(path)


@pytest.fixture
def entries(tmp_path: Path) -> Entries:
    return Entries(tmp_path)


def test_only_regular_files_of_their_kind_are_read(entries: Entries, tmp_path: Path) -> None:
    entries.add("good")
    entries.add("one")
    entries.frame("one", 3).unlink()
    os.mkfifo(entries.frame("one", 3))
    pipe = entries.add("pipe")
    pipe.unlink()
    os.mkfifo(pipe)
    soundfile.write(entries.add("aiff"), TONE, 16_000, format="AIFF")
    soundfile.write(entries.add("nan"), TONE * np.nan, 16_000, subtype="FLOAT")
    header = bytearray(entries.add("rate").read_bytes())
    header[24:28] = b"\xff\xff\xff\x7f"
    (tmp_path / "rate.wav").write_bytes(header)
    entries.add("png")
    entries.add("device")
    entries.add("huge")
    entries.add("wide")
    for number in range(10):
        Image.new("RGB", (64, 64)).save(entries.frame("png", number), "PNG")
        entries.frame("device", number).unlink()
        entries.frame("device", number).symlink_to("/dev/zero")
        os.truncate(entries.frame("huge", number), 40 << 20)
        Image.new("RGB", (1600, 16)).save(entries.frame("wide", number), "JPEG")
    out = tmp_path / "out"
    assert make_shards(entries.write(), out, shorter_side=64, crop="patches") == 0
    assert {Path(i.source).stem: i.missing_frames for i in infos(out)} == {"good": 0, "one": 1}
    lines = map(json.loads, (out / "skipped.jsonl").read_text().splitlines())
    records = {Path(line["source"]).stem: (line["reason"], line["detail"]) for line in lines}
    expected = {
        "pipe": ("not_a_file", "pipe"), "aiff": ("no_audio", "is not WAV or FLAC"),
        "nan": ("no_audio", "not numbers"), "rate": ("no_audio", "2147483647 Hz"),
        "png": ("decode_error", "is not a JPEG"), "device": ("decode_error", "no regular file"),
        "huge": ("decode_error", "more than 32 MB"),
        "wide": ("decode_error", "too large to store"),
    }  # fmt: skip
    assert set(records) == set(expected)
    for name, (reason, words) in expected.items():
        assert records[name][0] == reason
        assert words in records[name][1]
        assert " at 0x" not in records[name][1]  # the same in every run
