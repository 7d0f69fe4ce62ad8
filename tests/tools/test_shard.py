"""`cavmae shard` with real workers, real kills, and everything people point it at."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
import torch
from PIL import Image

from cavmae.datasets import features, sample
from cavmae.datasets.errors import CavmaeError
from cavmae.datasets.manifest import Manifest
from cavmae.datasets.sample import SampleInfo
from cavmae.datasets.shards import Shard, samples_of
from cavmae.tools.benching.media import make_video, read_number
from cavmae.tools.shard import RunSettings
from cavmae.tools.sharding.plan import Layout, locked
from tests.conftest import SMALL, make_shards
from tests.tools import faulty

Maker = Callable[..., Path]
Samples = dict[str, dict[str, bytes]]

HOW = RunSettings(workers=2, timeout=60.0)
# Small clips, so that a few short videos fill several shards.
TINY = {
    "profile": "speakers", "clip_seconds": 1.0, "min_seconds": 0.5, "shorter_side": 64,
    "shard_samples": 3,
}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def load(folder: Path) -> Samples:
    manifest = Manifest.load(folder)
    manifest.verify("hash")
    found: Samples = {}
    for entry in manifest.shards:
        with Shard(folder / entry.file) as shard:
            assert len(shard.entries) == entry.samples
            found.update(samples_of(shard))
    assert len(found) == manifest.samples
    return found


def infos(folder: Path) -> list[SampleInfo]:
    return [SampleInfo.from_bytes(members["json"]) for members in load(folder).values()]


def skipped(folder: Path) -> dict[str, str]:
    lines = (folder / "skipped.jsonl").read_text().splitlines()
    return {Path(json.loads(x)["source"]).name: json.loads(x)["reason"] for x in lines}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine videos of 1 to 3 s, and a broken one."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(9):
        seconds = 1.0 + number % 3
        make_video(
            folder / f"v{number}.mp4", dataclasses.replace(SMALL, seconds=seconds, seed=number)
        )
    (folder / "broken.mp4").write_text("no video")
    return folder


@pytest.fixture(scope="module")
def reference(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of those, made by one worker without interruption."""
    out = tmp_path_factory.mktemp("reference") / "out"
    assert make_shards(str(videos), out, dataclasses.replace(HOW, workers=1), **TINY) == 0
    return out


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
    assert info.decoder == "decord"
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
    found = load(out)
    assert len(found) == 2  # the last second is too short
    for number, members in enumerate(found.values()):
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
    make_shards(str(videos), tmp_path / "out", dataclasses.replace(HOW, workers=workers), **TINY)
    assert contents(tmp_path / "out") == contents(reference)


def run_command(*words: str, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "cavmae.tools.shard", *words],
        stderr=subprocess.PIPE, start_new_session=True, **options,  # type: ignore[call-overload]
    )  # fmt: skip


WORDS = [w for k, v in TINY.items() for w in ("--" + k.replace("_", "-"), str(v))]


@pytest.mark.parametrize("killer", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_same_bytes_after_kills_in_mid_run(
    videos: Path, reference: Path, tmp_path: Path, killer: signal.Signals
) -> None:
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


def test_running_again_does_nothing_and_new_inputs_are_added(
    videos: Path, reference: Path, tmp_path: Path, video: Maker
) -> None:
    out = tmp_path / "out"
    shutil.copytree(reference, out)
    before = contents(out)
    assert make_shards(str(videos), out, **TINY) == 0
    assert contents(out) == before
    extra = video("extra.mp4", seconds=2.0)
    assert make_shards([str(videos), str(extra)], out, **TINY) == 0
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


def test_retrying_what_was_skipped(tmp_path: Path, video: Maker) -> None:
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
    again = dataclasses.replace(HOW, retry_skipped=True)
    for _ in range(2):
        assert make_shards(str(folder), out, again, **TINY) == 0
        assert skipped(out) == expected
        assert Manifest.load(out).samples == 4
    assert {Path(i.source).name for i in infos(out)} == {"good.mp4", "late.mp4"}


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

    again = dataclasses.replace(HOW, retry_skipped=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("cavmae.tools.shard.forget_retried", interrupt)
        make_shards(str(late.parent), out, again, **TINY)
    for how in (HOW, again):
        assert make_shards(str(late.parent), out, how, **TINY) == 0
        assert Manifest.load(out).samples == 2
    assert skipped(out) == {}


def test_parts_of_several_machines_merge(videos: Path, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for part in ("2/3", "1/3"):
        assert make_shards(str(videos), out, dataclasses.replace(HOW, part=part), **TINY) == 0
        assert not (out / "manifest.json").exists()
    assert make_shards(str(videos), out, dataclasses.replace(HOW, part="3/3"), **TINY) == 0
    assert load(out) == load(reference)
    assert skipped(out) == {"broken.mp4": "decode_error"}
    manifest = Manifest.load(out)
    assert manifest.inputs == 10
    assert len({shard.file for shard in manifest.shards}) == len(manifest.shards)


def test_two_runs_in_one_folder_at_once_are_refused(videos: Path, tmp_path: Path) -> None:
    with locked(Layout(tmp_path)), pytest.raises(CavmaeError, match="Another"):
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
    found = {i.start: (k, i) for k, i in zip(load(out), infos(out), strict=True) if i.speaker}
    key, info = found[0.5]
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


def test_a_worker_that_crashes_hangs_or_grows_costs_its_own_input(
    tmp_path: Path, video: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real signals to real workers, chosen by the name of the video they are reading."""
    for name in ("crash", "good1", "good2", "good3", "hang", "grow"):
        video(f"in/{name}.mp4", seconds=2.0)
    out = tmp_path / "out"
    monkeypatch.setattr("cavmae.tools.shard.work", faulty.work)
    how = RunSettings(workers=2, timeout=4.0, memory_gb=1.0)
    assert make_shards(str(tmp_path / "in"), out, how, **TINY) == 0
    expected = {"crash.mp4": "crash", "hang.mp4": "timeout", "grow.mp4": "out_of_memory"}
    assert skipped(out) == expected
    saved = Counter(Path(info.source).name for info in infos(out))
    # The crash comes after its first clip, which is kept.
    assert saved == {"good1.mp4": 2, "good2.mp4": 2, "good3.mp4": 2, "crash.mp4": 1}
    again = dataclasses.replace(how, retry_skipped=True)
    assert make_shards(str(tmp_path / "in"), out, again, **TINY) == 0
    assert skipped(out) == {}
    saved = Counter(Path(info.source).name for info in infos(out))
    assert set(saved.values()) == {2}
    assert len(saved) == 6


def test_a_pipe_that_nobody_writes_to_does_not_hang_the_run(tmp_path: Path, video: Maker) -> None:
    video("in/good.mp4")
    os.mkfifo(tmp_path / "in" / "pipe.mp4")
    how = dataclasses.replace(HOW, timeout=3.0)
    assert make_shards(str(tmp_path / "in"), tmp_path / "out", how, **TINY) == 0
    assert len(skipped(tmp_path / "out")) == 1


def test_remote_inputs(tmp_path: Path, video: Maker) -> None:
    path = video("in/a.mp4")
    out = tmp_path / "out"
    names = [f"file://{path}", f"file://{tmp_path}/missing.mp4"]
    assert make_shards(names, out, **TINY) == 0
    assert {i.source for i in infos(out)} == {f"file://{path}"}
    assert skipped(out) == {"missing.mp4": "missing"}


def test_bad_usage_exits_with_2_and_one_sentence(tmp_path: Path, video: Maker) -> None:
    path = str(video())
    cases = [
        ([str(tmp_path / "nothing.mp4"), "--out", str(tmp_path / "o")], "no file or folder"),
        ([path, "--out", str(tmp_path / "o"), "--part", "3/2"], "--part"),
        ([path, "--out", str(tmp_path / "o"), "--profile", "x"], "profile"),
        ([path, "--out", str(tmp_path / "o"), "--jpeg-quality", "500"], "--jpeg-quality"),
        ([path], "out"),
    ]
    for words, complaint in cases:
        process = run_command(*words)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 2, said
        assert complaint in said.decode()
        assert "Traceback" not in said.decode()


def test_a_folder_without_videos(tmp_path: Path) -> None:
    with pytest.raises(CavmaeError, match="No videos"):
        make_shards(str(tmp_path), tmp_path / "out", **TINY)
