"""Damaged and odd inputs of `cavmae shard`: a valid sample or a line in skipped.jsonl."""

import dataclasses
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from cavmae.common.errors import CavmaeError
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.sharding.settings import ShardRunSettings
from cavmae.tools.benchmarks.media import make_video
from cavmae.tools.check import CheckSettings
from cavmae.tools.checking.verify import check
from tests.conftest import SMALL, make_shards
from tests.tools.helpers import TINY, infos, skipped

Maker = Callable[..., Path]

VARIANTS = 40  # of each of the videos below


def intact_inputs(out: Path) -> set[str]:
    """Names of the inputs with at least one sample; the data set itself must be flawless."""
    if Manifest.load(out).samples == 0:
        return set()
    assert check(str(out), CheckSettings(sheet=0, workers=2)) == 0
    return {Path(info.source).name for info in infos(out)}


def damage(content: bytes, rng: random.Random) -> bytes:
    """One of the ways files break."""
    data = bytearray(content)
    size = len(data)
    kind = rng.choice(["cut", "flip", "header", "zeros", "shift", "middle", "repeat", "tail"])
    if kind == "cut":
        del data[rng.randrange(size) :]
    elif kind == "flip":
        for _ in range(rng.choice([1, 10, 300])):
            data[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif kind == "header":
        for _ in range(5):
            data[rng.randrange(min(600, size))] = rng.randrange(256)
    elif kind == "zeros":
        first = rng.randrange(size)
        stretch = data[first : first + size // 5]
        data[first : first + size // 5] = bytes(len(stretch))
    elif kind == "shift":
        first = rng.randrange(size)
        data[first:first] = rng.randbytes(rng.choice([1, 188, 4096]))
    elif kind == "middle":
        first = rng.randrange(size)
        del data[first : first + size // 4]
    elif kind == "repeat":
        data += data[size // 2 :]
    else:
        first = size - rng.randrange(1, 400)
        data[first:] = rng.randbytes(size - first)
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("a.mp4", {"codec_options": (("bf", "2"),)}),
        ("a.mov", {"audio": "pcm_s16le"}),
        ("a.mkv", {"audio": "flac"}),
        ("a.avi", {"codec": "mpeg4", "audio": "libmp3lame"}),
        ("a.webm", {"codec": "libvpx-vp9", "audio": "libopus", "rate": 48000}),
        ("a.mpg", {"codec": "mpeg2video", "audio": "mp2", "rate": 44100}),
        ("hevc.mp4", {"codec": "libx265", "codec_options": (("x265-params", "log-level=none"),)}),
    ],
)
def test_hundreds_of_damaged_videos(tmp_path: Path, name: str, changes: dict[str, object]) -> None:
    whole = make_video(tmp_path / name, dataclasses.replace(SMALL, **changes))  # type: ignore[arg-type]
    content = whole.read_bytes()
    folder = tmp_path / "in"
    folder.mkdir()
    rng = random.Random(name)
    for number in range(VARIANTS):
        (folder / f"{number:03d}-{name}").write_bytes(damage(content, rng))
    shutil.copy(whole, folder / f"whole-{name}")
    out = tmp_path / "out"
    run_settings = ShardRunSettings(workers=2, timeout=30.0)
    assert make_shards(str(folder), out, run_settings, **TINY) == 0
    good, bad = intact_inputs(out), set(skipped(out))
    assert good | bad == {path.name for path in folder.iterdir()}
    assert f"whole-{name}" in good - bad
    assert "timeout" not in skipped(out).values()
    for info in infos(out):
        assert info.duration <= 1.01
        assert info.frame_times[-1] < info.duration + 0.05


def test_odd_files(tmp_path: Path, video: Maker) -> None:
    folder = tmp_path / "in"
    (folder / "x").mkdir(parents=True)
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("hello " * 1000)
    (folder / "noise.mkv").write_bytes(random.Random(0).randbytes(100_000))
    (folder / "dangling.mp4").symlink_to(folder / "nowhere.mp4")
    video("in/silent.mp4", audio=None)
    video("in/no_sound.mkv", audio="flac", audio_seconds=0.0)
    make_sound(folder / "no_picture.mp4")
    good = {
        video("in/same.mp4").name,
        video("in/x/same.mp4", seed=1).name,
        video("in/sp ace 'q\" ü 日本\n.mp4").name,
        video("in/-dash.mp4").name,
        video("in/short_sound.mp4", audio_seconds=0.7).name,
        video("in/long_sound.mp4", audio_seconds=9.0).name,
        video("in/tall.mp4", size=(64, 200)).name,
        video("in/tiny.mp4", size=(32, 16)).name,
        video("in/one_frame.mp4", seconds=0.04, audio_seconds=2.0).name,  # it stays on screen
    }
    latin = os.fsencode(folder) + b"/latin-\xe9.mp4"
    shutil.copy(os.fsencode(video("in/same2.mp4")), latin)
    good |= {"same2.mp4", os.fsdecode(b"latin-\xe9.mp4")}
    out = tmp_path / "out"
    assert make_shards(str(folder), out, **TINY) == 0
    reasons = skipped(out)
    short = reasons.pop("short_sound.mp4")  # its second clip has no sound
    assert short == "no_audio"
    assert reasons == {
        "empty.mp4": "empty",
        "text.mp4": "decode_error",
        "noise.mkv": "decode_error",
        "dangling.mp4": "missing",
        "silent.mp4": "no_audio",
        "no_sound.mkv": "no_audio",
        "no_picture.mp4": "no_video",
    }
    assert intact_inputs(out) == good
    both = [i for i in infos(out) if Path(i.source).name == "same.mp4"]
    assert len({i.source for i in both}) == 2
    assert len(both) == 4


def make_sound(path: Path) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 32000), np.int16), "s16", "mono")
        frame.sample_rate, frame.pts = 16000, 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def test_a_header_that_promises_more_than_there_is(tmp_path: Path, video: Maker) -> None:
    whole = video("whole.mkv", seconds=10.0, audio="flac")
    content = whole.read_bytes()
    (tmp_path / "in").mkdir()
    cut = tmp_path / "in" / "cut.mkv"
    cut.write_bytes(content[: len(content) // 4])
    out = tmp_path / "out"
    assert make_shards(str(cut), out, **TINY) == 0
    seconds = sum(info.duration for info in infos(out))
    assert 1.0 < seconds < 4.0
    for info in infos(out):
        assert len(info.frame_times) == pytest.approx(info.duration * 25, abs=1)


def test_unreadable_permissions(tmp_path: Path, video: Maker) -> None:
    path = video("in/locked.mp4")
    video("in/good.mp4")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert make_shards(str(tmp_path / "in"), tmp_path / "out", **TINY) == 0
    assert skipped(tmp_path / "out") == {"locked.mp4": "unreadable"}


def test_nothing_usable_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no")
    out = tmp_path / "out"
    assert make_shards(str(tmp_path / "a.mp4"), out, **TINY) == 1
    assert Manifest.load(out).samples == 0
    assert skipped(out) == {"a.mp4": "decode_error"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk to fill")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_an_error_and_loses_nothing(
    tmp_path: Path, video: Maker, small_disk: Path
) -> None:
    for number in range(8):
        video(f"in/{number}.mp4", seed=number)
    folder = str(tmp_path / "in")
    for _ in range(2):
        with pytest.raises(CavmaeError, match=r"Cannot write to .*disk"):
            make_shards(folder, small_disk / "out", **TINY)
        assert not (small_disk / "out" / "manifest.json").exists()
    # With room made it goes on, and the result is that of a run without trouble.
    subprocess.run(["mount", "-o", "remount,size=100M", str(small_disk)], check=True)
    assert make_shards(folder, small_disk / "out", **TINY) == 0
    assert make_shards(folder, tmp_path / "other", **TINY) == 0
    for path in (tmp_path / "other").iterdir():
        assert (small_disk / "out" / path.name).read_bytes() == path.read_bytes()


def test_an_output_that_cannot_be_written(tmp_path: Path, video: Maker) -> None:
    path = str(video())
    (tmp_path / "file").touch()
    with pytest.raises(CavmaeError, match="Cannot write to"):
        make_shards(path, tmp_path / "file" / "out", **TINY)
    with pytest.raises(CavmaeError, match="Cannot write to"):
        make_shards(path, Path("/proc/nowhere"), **TINY)


def test_read_only_output(tmp_path: Path, video: Maker, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(CavmaeError, match="Read-only"):
        make_shards(str(video()), small_disk / "out", **TINY)
