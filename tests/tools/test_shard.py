"""`cavmae shard`: samples, shards and messages of whole runs."""

import dataclasses
import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from cavmae.common.cli import run
from cavmae.common.errors import CavmaeError
from cavmae.datasets.format import sample
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.format.sample import SampleInfo
from cavmae.datasets.stream import features
from cavmae.tools.benchmarks.media import read_number
from cavmae.tools.shard import main
from tests.conftest import make_shards
from tests.tools.helpers import (
    RUN_SETTINGS,
    TINY,
    Maker,
    contents,
    infos,
    load,
    run_command,
    skipped,
)


def test_what_a_run_leaves(reference: Path) -> None:
    names = sorted(path.name for path in reference.iterdir())
    assert names == [
        *(f"clips-{i:06d}.tar" for i in range(6)), "inputs.jsonl", "manifest.json", "skipped.jsonl"
    ]  # fmt: skip
    manifest = Manifest.load(reference)
    assert [shard.samples for shard in manifest.shards] == [3] * 6
    assert manifest.inputs == 10
    assert skipped(reference) == {"broken.mp4": "decode_error"}


def test_a_sample_holds_what_the_video_shows(tmp_path: Path, video: Maker) -> None:
    path = video(seconds=3.0, rate=44100, channels=2, events=(1.0,))
    out = tmp_path / "out"
    assert make_shards(str(path), out, profile="speakers", shorter_side=64) == 0
    ((key, members),) = load(out).items()
    info = SampleInfo.from_bytes(members["json"])
    assert key.startswith("video-")
    assert info.source == str(path)
    assert (info.start, info.duration) == (0.0, pytest.approx(3.0, abs=0.03))
    assert info.frame_size == (64, 96)
    np.testing.assert_allclose(info.frame_times, np.arange(75) / 25, atol=1e-3)
    assert info.decoder == "pyav"
    assert (info.video_stream, info.video_streams) == (0, 1)
    assert (info.audio_stream, info.audio_streams) == (1, 1)
    assert (info.mixdown, info.tone_mapping) == ("stereo: mean", "")
    assert info.audio_span == pytest.approx((0, 3), abs=0.05)
    for number in (0, 1, 40, 74):
        frame = sample.decode_frame(members[sample.frame_member(number)], info.frame_size)
        assert read_number(frame) == number
    waveform = sample.decode_waveform(members["flac"])
    fbank = sample.decode_fbank(members["fbank.npy"], info.fbank_frames)
    expected = features.fbank(torch.from_numpy(features.to_float(waveform))).numpy()
    np.testing.assert_array_equal(fbank, expected.astype(np.float16))
    assert abs(np.abs(waveform).argmax() / 16000 - 1.0) < 0.01


def test_the_events_profile(tmp_path: Path, video: Maker) -> None:
    path = video(seconds=21.0, size=(160, 96), fps=10.0)
    out = tmp_path / "out"
    assert make_shards(str(path), out, profile="events", shorter_side=64) == 0
    samples = load(out)
    assert len(samples) == 2  # the last second is too short
    for number, members in enumerate(samples.values()):
        info = SampleInfo.from_bytes(members["json"])
        assert info.fbank_frames == 998
        assert info.frame_size == (64, 64)
        np.testing.assert_allclose(info.frame_times, np.arange(10), atol=1e-3)
        for place in range(10):
            frame = sample.decode_frame(members[sample.frame_member(place)], info.frame_size)
            assert read_number(frame) == 100 * number + 10 * place


@pytest.mark.parametrize("workers", [2, 3])
def test_the_same_bytes_from_any_number_of_workers(
    videos: Path, reference: Path, tmp_path: Path, workers: int
) -> None:
    make_shards(
        str(videos), tmp_path / "out", dataclasses.replace(RUN_SETTINGS, workers=workers), **TINY
    )
    assert contents(tmp_path / "out") == contents(reference)


def test_running_again_does_nothing_and_new_inputs_are_added(
    videos: Path,
    reference: Path,
    tmp_path: Path,
    video: Maker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "cavmae")
    out = tmp_path / "out"
    shutil.copytree(reference, out)
    before = contents(out)
    assert make_shards(str(videos), out, **TINY) == 0
    said = "10 of 10 inputs were done before, 0 are new; it is complete, nothing is left to do."
    assert f"{out}: {said}" in caplog.text
    assert contents(out) == before
    extra = video("extra.mp4", seconds=2.0)
    assert make_shards([str(videos), str(extra)], out, **TINY) == 0
    assert f"{out}: 10 of 10 inputs were done before, 1 are new." in caplog.text
    after = contents(out)
    for name in before:
        if name.endswith(".tar"):
            assert after[name] == before[name]
    assert Manifest.load(out).samples == 20
    assert set(load(out)) > set(load(reference))


def test_other_settings_in_the_same_folder_are_refused(
    videos: Path, reference: Path, tmp_path: Path
) -> None:
    before = contents(reference)
    with pytest.raises(CavmaeError, match=r"clip_seconds 1\.0, not 2\.0"):
        make_shards(str(videos), reference, **{**TINY, "clip_seconds": 2.0})
    assert contents(reference) == before


def test_retrying_what_was_skipped(
    tmp_path: Path, video: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cavmae")
    folder = tmp_path / "in"
    video("in/good.mp4")
    video("whole.mp4")
    (folder / "late.mp4").write_text("not yet")
    (folder / "never.mp4").write_text("never")
    video("in/short.mp4", seconds=0.2)
    out = tmp_path / "out"
    assert make_shards(str(folder), out, **TINY) == 0
    expected = {"late.mp4": "decode_error", "never.mp4": "decode_error", "short.mp4": "too_short"}
    assert skipped(out) == expected
    shutil.copy(tmp_path / "whole.mp4", folder / "late.mp4")
    assert make_shards(str(folder), out, **TINY) == 0
    assert skipped(out) == expected  # nothing is tried again silently
    del expected["late.mp4"]
    again = dataclasses.replace(RUN_SETTINGS, retry_skipped=True)
    for _ in range(2):
        assert make_shards(str(folder), out, again, **TINY) == 0
        assert skipped(out) == expected
        assert Manifest.load(out).samples == 4
    assert "4 of 4 inputs were done before, 0 are new, 2 that were skipped are tried again." in (
        caplog.text
    )
    assert {Path(i.source).name for i in infos(out)} == {"good.mp4", "late.mp4"}


def test_parts_of_several_machines_merge(videos: Path, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for part in ("2/3", "1/3"):
        assert (
            make_shards(str(videos), out, dataclasses.replace(RUN_SETTINGS, part=part), **TINY) == 0
        )
        assert not (out / "manifest.json").exists()
    assert make_shards(str(videos), out, dataclasses.replace(RUN_SETTINGS, part="3/3"), **TINY) == 0
    assert load(out) == load(reference)
    assert skipped(out) == {"broken.mp4": "decode_error"}
    manifest = Manifest.load(out)
    assert manifest.inputs == 10
    assert len({shard.file for shard in manifest.shards}) == len(manifest.shards)


def test_a_part_that_gets_no_input_is_done(tmp_path: Path, video: Maker) -> None:
    out = tmp_path / "out"
    path = video("only.mp4")
    for number in range(1, 6):
        assert (
            make_shards(
                str(path), out, dataclasses.replace(RUN_SETTINGS, part=f"{number}/5"), **TINY
            )
            == 0
        )
    assert Manifest.load(out).samples == 2


def test_more_inputs_for_a_data_set_made_in_parts(
    videos: Path, tmp_path: Path, video: Maker
) -> None:
    out = tmp_path / "out"
    for part in ("1/2", "2/2"):
        assert (
            make_shards(str(videos), out, dataclasses.replace(RUN_SETTINGS, part=part), **TINY) == 0
        )
    extra = [str(video(f"extra{i}.mp4", seed=90 + i)) for i in range(4)]
    with pytest.raises(CavmaeError, match="made in 2 parts"):
        make_shards(extra, out, **TINY)
    for part in ("1/2", "2/2"):
        run_settings = dataclasses.replace(RUN_SETTINGS, part=part)
        assert make_shards([str(videos), *extra], out, run_settings, **TINY) == 0
    assert len(load(out)) == 18 + 8  # load checks that no key comes twice


def test_a_picture_that_stays_on_screen_is_in_every_clip(tmp_path: Path, video: Maker) -> None:
    times = (*np.arange(0, 1, 0.04), *np.arange(5.5, 7, 0.04))
    path = video("slides.mkv", frame_times=tuple(np.round(times, 3)), seconds=7.0)
    out = tmp_path / "out"
    assert make_shards(str(path), out, **TINY) == 0
    assert skipped(out) == {}
    assert sorted(info.start for info in infos(out)) == [0, 1, 2, 3, 4, 5, 6]


def test_pictures_too_wide_to_store(tmp_path: Path, video: Maker) -> None:
    path = video("wide.mp4", size=(1600, 16))
    assert make_shards(str(path), tmp_path / "out", **TINY) == 1
    assert skipped(tmp_path / "out") == {"wide.mp4": "bad_size"}


def test_a_table_with_everything(tmp_path: Path, video: Maker) -> None:
    video("a.mp4", seconds=3.0)
    masks = tmp_path / "masks" / "a"
    masks.mkdir(parents=True)
    for number in range(0, 75, 2):
        mask = np.zeros((64, 96), np.uint8)
        mask[8:56, 24:72] = 1
        mask[16:32, 32:64] = 2
        Image.fromarray(mask).save(masks / f"{number:04d}.png")
    table = tmp_path / "t.csv"
    table.write_text(
        "path,start,end,labels,speaker,masks\na.mp4,0.5,2.5,talking;indoors,anna,masks/a\n"
        "a.mp4,,,,,\n"
    )
    out = tmp_path / "out"
    assert make_shards(str(table), out, **{**TINY, "clip_seconds": 2.0}) == 0
    by_start = {i.start: (k, i) for k, i in zip(load(out), infos(out), strict=True) if i.speaker}
    key, info = by_start[0.5]
    members = load(out)[key]
    assert (info.speaker, info.labels) == ("anna", ("talking", "indoors"))
    assert info.duration == 2.0
    assert info.mask_values == {"1": "person 1 body", "2": "person 1 face"}
    first = read_number(sample.decode_frame(members["000.jpg"], info.frame_size))
    assert info.masked_frames == tuple(i for i in range(50) if (first + i) % 2 == 0)
    mask = sample.decode_mask(members[sample.mask_member(info.masked_frames[0])], info.frame_size)
    assert set(np.unique(mask)) == {0, 1, 2}
    assert (mask == 2).sum() == 16 * 32
    manifest = Manifest.load(out)
    assert manifest.labels == ("indoors", "talking")
    labels = [x for shard in manifest.shards for x in manifest.sample_labels(shard)]
    assert sorted(labels) == [(), (), ("indoors", "talking")]


@pytest.mark.parametrize(
    ("size", "numbers", "reason"),
    [((50, 50), range(75), "bad_mask"), ((64, 96), (), "no_masks"), ((64, 96), [900], "no_masks")],
)
def test_bad_masks_are_named(
    tmp_path: Path, video: Maker, size: tuple[int, int], numbers: range, reason: str
) -> None:
    video("a.mp4", seconds=1.0)
    masks = tmp_path / "masks"
    masks.mkdir()
    for number in numbers:
        Image.fromarray(np.zeros(size, np.uint8)).save(masks / f"{number:04d}.png")
    (tmp_path / "t.csv").write_text("path,masks\na.mp4,masks\n")
    assert make_shards(str(tmp_path / "t.csv"), tmp_path / "out", **TINY) == 1
    assert skipped(tmp_path / "out") == {"a.mp4": reason}


def test_data_files_of_the_reference(tmp_path: Path) -> None:
    rate = 22050
    time_axis = np.arange(4 * rate) / rate
    tone = (np.sin(2 * np.pi * 500 * time_axis) * 8000).astype(np.int16)
    soundfile.write(tmp_path / "v1.wav", np.stack([tone, np.zeros_like(tone)], 1), rate)
    for number in range(10):
        folder = tmp_path / "frames" / f"frame_{number}"
        folder.mkdir(parents=True)
        grey = np.full((64, 64, 3), 20 * number, np.uint8)
        (folder / "v1.jpg").write_bytes(sample.encode_frame(grey, 90))
    entries = [
        {"video_id": v, "wav": f"{v}.wav", "video_path": "frames", "labels": "/m/a,/m/b"}
        for v in ("v1", "missing")
    ]
    (tmp_path / "data.json").write_text(json.dumps({"data": entries}))
    out = tmp_path / "out"
    assert make_shards(str(tmp_path / "data.json"), out, shorter_side=64) == 0
    ((_, members),) = load(out).items()
    info = SampleInfo.from_bytes(members["json"])
    assert info.labels == ("/m/a", "/m/b")
    assert info.duration == pytest.approx(4.0)
    np.testing.assert_allclose(info.frame_times, np.arange(10) * 0.4, atol=1e-6)
    # JPEGs of the right size are kept as they are, not coded again.
    original = (tmp_path / "frames" / "frame_3" / "v1.jpg").read_bytes()
    assert members["003.jpg"] == original
    assert np.abs(sample.decode_waveform(members["flac"])).max() == pytest.approx(4000, rel=0.05)
    assert list(skipped(out).values()) == ["no_video"]


def test_remote_inputs(tmp_path: Path, video: Maker) -> None:
    path = video("in/a.mp4")
    out = tmp_path / "out"
    names = [f"file://{path}", f"file://{tmp_path}/missing.mp4"]
    assert make_shards(names, out, **TINY) == 0
    assert {i.source for i in infos(out)} == {f"file://{path}"}
    assert skipped(out) == {"missing.mp4": "missing"}


def test_bad_usage_exits_with_2_and_one_sentence(
    tmp_path: Path, video: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(video())
    cases = [
        ([str(tmp_path / "nothing.mp4"), "--out", str(tmp_path / "o")], "no file or folder"),
        ([path, "--out", str(tmp_path / "o"), "--part", "3/2"], "--part"),
        ([path, "--out", str(tmp_path / "o"), "--profile", "x"], "profile"),
        ([path, "--out", str(tmp_path / "o"), "--shorter-side", "5"], "--shorter-side"),
        ([path], "out"),
    ]
    for words, complaint in cases:
        with pytest.raises(SystemExit) as ended:
            sys.exit(run(main, words))
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert complaint in said
        assert "Traceback" not in said
    process = run_command(*cases[0][0])
    _, bytes_said = process.communicate(timeout=60)
    assert process.returncode == 2 and cases[0][1] in bytes_said.decode()


def test_the_same_file_by_another_name_is_not_taken_twice(
    tmp_path: Path, video: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    video("in/a.mp4")
    out = tmp_path / "out"
    assert make_shards(str(tmp_path / "in"), out, **TINY) == 0
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    assert make_shards(["in", "link"], out, **TINY) == 0
    assert len(load(out)) == 2


def test_a_lost_shard_is_noticed_when_running_again(
    videos: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(reference, out)
    (out / "clips-000002.tar").unlink()
    with pytest.raises(CavmaeError, match=r"clips-000002\.tar is missing"):
        make_shards(str(videos), out, **TINY)


def test_a_folder_without_videos(tmp_path: Path) -> None:
    with pytest.raises(CavmaeError, match="No videos"):
        make_shards(str(tmp_path), tmp_path / "out", **TINY)
