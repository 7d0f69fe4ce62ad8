import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cavmae.common.cli import run
from cavmae.common.files import sha256_of
from cavmae.datasets.format import sample
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.format.shards import END, Shard, encode_sample
from cavmae.datasets.stream.transforms import Statistics
from cavmae.tools.check import CheckSettings
from cavmae.tools.checking.verify import check
from cavmae.tools.cli import dispatch
from tests.datasets.clips import clip, data_set_of
from tests.tools.helpers import samples_of

SETTINGS = CheckSettings(workers=2, sheet=0)


@pytest.fixture
def copied(data_set: Manifest, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(data_set.folder, folder)
    return folder


def damages(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "damage.jsonl").read_text().splitlines()]


def test_an_intact_data_set(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["check", str(copied), "--workers", "2", "--sheet", "5"]) == 0
    said = capsys.readouterr().out
    for words in ("24 of 24 intact, in 8 shards", "48.0 s", "48x32 (24)", "speech (24), music (8)"):
        assert words in said
    assert damages(copied) == []
    record = json.loads((copied / "stats.json").read_text())
    assert record["samples"] == 24
    assert record["labels"] == {"music": 8, "speech": 24}
    assert record["speakers"] == {f"s{i}": 6 for i in range(4)}
    assert record["frame_rates"] == {"25": 24}
    assert record["silent_clips"] == 0
    with Image.open(copied / "contact_sheet.png") as image:
        assert image.width > 1000
        assert len(np.unique(np.asarray(image.convert("L")))) > 100


def checked(folder: Path, labels: tuple[str, ...], speaker: str) -> tuple[int, int]:
    """Check a synthetic data set of one clip; returns the size of its sheet."""
    key, members = clip(0, labels=labels, speaker=speaker)
    members = {name: data for name, data in members.items() if not name.endswith(".png")}
    members["fbank.npy"] = sample.encode_fbank(np.full((10, 128), -7, dtype=np.float32))
    manifest = data_set_of(folder, [(key, members)])
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    assert run(dispatch, ["check", str(folder), "--workers", "1", "--sheet", "1"]) == 0
    with Image.open(folder / "contact_sheet.png") as image:
        return image.size


def test_names_and_labels_of_any_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = checked(tmp_path / "plain", ("music",), "s")
    lines = len(capsys.readouterr().out.splitlines())
    labels = ("$\\frac$", "_x", "\x1b[2J\n" * 20, "n" * 400)
    odd = checked(tmp_path / os.fsdecode(b"caf\xe9 $\\frac$\x1b[2J\n"), labels, "\nDAMAGED $_{")
    said = capsys.readouterr().out
    assert odd == plain
    assert "\x1b" not in said
    assert r"caf\xe9 $\frac$\x1b[2J\n" in said
    assert len(said.splitlines()) == lines


def test_statistics_are_those_of_all_unpadded_frames(copied: Path) -> None:
    assert check(str(copied), SETTINGS) == 0
    manifest = Manifest.load(copied)
    fbanks = []
    for entry in manifest.shards:
        with Shard(copied / entry.file) as shard:
            for _, members in samples_of(shard):
                info = sample.SampleInfo.from_bytes(members["json"])
                fbanks.append(sample.decode_fbank(members["fbank.npy"], info.fbank_frames))
    values = np.concatenate(fbanks).astype(np.float64)
    statistics = Statistics.load(str(copied))
    assert statistics.mean == pytest.approx(values.mean(), abs=1e-9)
    assert statistics.std == pytest.approx(values.std(), abs=1e-9)


def test_a_flipped_byte_is_named_with_shard_and_key(copied: Path) -> None:
    manifest = Manifest.load(copied)
    path = copied / manifest.shards[2].file
    with Shard(path) as shard:
        entry = shard.entries[1]
        offset, _ = entry.members["fbank.npy"]
    content = bytearray(path.read_bytes())
    content[offset + 8] ^= 0xFF  # the array's header
    path.write_bytes(content)
    assert check(str(copied), SETTINGS) == 1
    records = damages(copied)
    assert {r["shard"] for r in records} == {path.name}
    assert {r["reason"] for r in records} == {"bad_shard", "bad_fbank"}
    assert [r["key"] for r in records if r["reason"] == "bad_fbank"] == [entry.key]


def test_shards_missing_cut_and_swapped(copied: Path) -> None:
    names = [shard.file for shard in Manifest.load(copied).shards]
    (copied / names[0]).unlink()
    content = (copied / names[1]).read_bytes()
    (copied / names[1]).write_bytes(content[: len(content) // 2])
    (copied / names[2]).rename(copied / "x")
    (copied / names[3]).rename(copied / names[2])
    (copied / "x").rename(copied / names[3])
    assert check(str(copied), SETTINGS) == 1
    assert {record["shard"] for record in damages(copied)} == set(names[:4])
    assert not (copied / "stats.json").exists()  # of a part of the data it would mislead


def forge(folder: Path, change: Any) -> None:
    """Changes the first sample, and the manifest with it, so that only its content is wrong."""
    manifest = Manifest.load(folder)
    path = folder / manifest.shards[0].file
    with Shard(path) as shard:
        samples = list(samples_of(shard))
    change(samples[0][1])
    path.write_bytes(b"".join([*(encode_sample(k, m) for k, m in samples), END]))
    entry = dataclasses.replace(
        manifest.shards[0], bytes=path.stat().st_size, sha256=sha256_of(path)
    )
    shards = (entry, *manifest.shards[1:])
    (folder / "manifest.json").write_bytes(dataclasses.replace(manifest, shards=shards).to_bytes())


def set_info(members: dict[str, bytes], **changes: Any) -> None:
    info = sample.SampleInfo.from_bytes(members["json"])
    members["json"] = dataclasses.replace(info, **changes).to_bytes()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.pop("007.jpg"), "missing_member"),
        (lambda m: m.pop("json"), "missing_member"),
        (lambda m: m.pop("fbank.npy"), "missing_member"),
        (lambda m: m.update({"003.jpg": m["003.jpg"][:100]}), "bad_frame"),
        (lambda m: m.update({"flac": m["flac"][:5000]}), "bad_waveform"),
        (lambda m: m.update({"flac": b"RIFF"}), "bad_waveform"),
        (lambda m: m.update({"001.png": b"x"}), "missing_member"),
        (lambda m: set_info(m, fbank_frames=5), "bad_fbank"),
        (lambda m: set_info(m, frame_size=(99, 99)), "bad_frame"),
        (
            lambda m: m.update({"fbank.npy": sample.encode_fbank(np.full((198, 128), np.nan))}),
            "fbank_not_finite",
        ),
    ],
)
def test_damage_inside_samples(copied: Path, change: Any, reason: str) -> None:
    forge(copied, change)
    assert check(str(copied), SETTINGS) == 1
    (record,) = damages(copied)
    assert record["reason"] == reason
    with Shard(copied / record["shard"]) as shard:
        assert record["key"] == shard.entries[0].key


def test_names_that_no_terminal_can_show(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Escapes would be obeyed, and half a surrogate cannot be printed."""
    forge(copied, lambda m: set_info(m, labels=("\x1b[2J", "\ud800"), speaker="\ud800\n"))
    assert check(str(copied), dataclasses.replace(SETTINGS, sheet=100)) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and said.isascii()
    assert r"\x1b[2J (1)" in said and r"\ud800 (1)" in said


def test_the_same_key_twice(copied: Path) -> None:
    manifest = Manifest.load(copied)
    first, second = manifest.shards[:2]
    shutil.copy(copied / first.file, copied / second.file)
    shards = (first, dataclasses.replace(first, file=second.file), *manifest.shards[2:])
    (copied / "manifest.json").write_bytes(dataclasses.replace(manifest, shards=shards).to_bytes())
    assert check(str(copied), SETTINGS) == 1
    assert {record["reason"] for record in damages(copied)} == {"repeated_key"}


def test_output_elsewhere(copied: Path, tmp_path: Path) -> None:
    before = sorted(copied.iterdir())
    out = tmp_path / "report"
    assert check(str(copied), dataclasses.replace(SETTINGS, out=str(out), sheet=2)) == 0
    assert sorted(copied.iterdir()) == before
    assert (out / "contact_sheet.png").exists()
