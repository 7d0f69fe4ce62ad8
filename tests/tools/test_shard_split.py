"""Long videos in stretches over several workers: the bytes of one worker with one task."""

import contextlib
import dataclasses
import itertools
import logging
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cavmae.common.remote import DEFAULT_LIMITS
from cavmae.common.worker_pool import Finished, TaskProgress
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.sharding.inputs import Input
from cavmae.datasets.sharding.job import shard_task
from cavmae.datasets.sharding.job_state import InputLayout
from cavmae.datasets.sharding.messages import Message, Reporter, Skip, Written
from cavmae.datasets.sharding.settings import ShardRunSettings, ShardSettings
from cavmae.datasets.sharding.shard_writer import Assembler
from cavmae.datasets.sharding.task_queue import TaskQueue, _join
from tests.conftest import make_shards
from tests.datasets.media.test_irregular import stamp_later
from tests.datasets.recordings import Track, audio_frames, sweep, video_frames, write
from tests.tools import faulty
from tests.tools.helpers import TINY, contents, run_command, skipped

SECONDS = 24
SIX_SECONDS = 0.1  # minutes
CLIPS = {**TINY, "clip_seconds": 2.0, "shard_samples": 20}
WORDS = [w for k, v in CLIPS.items() for w in ("--" + k.replace("_", "-"), str(v))]
ALONE = ShardRunSettings(workers=1, timeout=60.0)
SPLIT = ShardRunSettings(workers=2, timeout=60.0, stretch_minutes=SIX_SECONDS)
X264 = {"g": "20", "bf": "2"}


def noise(seconds: float) -> np.ndarray:
    """Stereo, which AAC codes with noise substitution: its decoder draws random numbers."""
    rng = np.random.default_rng(0)
    tone = sweep(0, seconds)
    return np.stack([tone, tone]) / 2 + 0.1 * rng.standard_normal((2, len(tone)))


def damage(path: Path, places: int) -> None:
    """Overwrites bytes of a file, but not its first or last eighth, where an index may lie."""
    data = bytearray(path.read_bytes())
    rng = random.Random(0)
    for _ in range(places):
        place = rng.randrange(len(data) // 8, len(data) * 7 // 8)
        data[place : place + 40] = bytes(40)
    path.write_bytes(data)


def lose_packets(path: Path) -> None:
    """Leaves out packets of a transport stream, and its end."""
    data = path.read_bytes()
    packets = [data[i : i + 188] for i in range(0, len(data) * 9 // 10, 188)]
    rng = random.Random(1)
    path.write_bytes(b"".join(p for n, p in enumerate(packets) if n < 9 or rng.random() > 0.004))


def repeat_stamp(number: int, packet: av.Packet) -> None:
    if number % 60 == 59:
        packet.pts = packet.dts = (packet.pts or 0) - round(0.04 / packet.time_base)


def claim_key(number: int, packet: av.Packet) -> None:
    packet.is_keyframe = True


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A long recording of each kind; the name says what is special about it."""
    folder = tmp_path_factory.mktemp("recordings")
    frames = video_frames(0, 25 * SECONDS)
    sound = audio_frames(noise(SECONDS), layout="stereo")
    aac, pcm = Track("aac", sound), Track("pcm_s16le", audio_frames(sweep(0, SECONDS)))
    video = Track("libx264", frames, X264)
    write(folder / "plain.mp4", video, aac)
    write(folder / "plain.ts", video, aac)
    shutil.copy(folder / "plain.mp4", folder / "damaged.mp4")
    damage(folder / "damaged.mp4", 12)
    shutil.copy(folder / "plain.ts", folder / "lost.ts")
    lose_packets(folder / "lost.ts")
    rng = random.Random(2)
    some = [frame for n, frame in enumerate(frames) if n == 0 or rng.random() < 0.6]
    write(folder / "variable-rate.mkv", Track("libx264", some, X264), Track("libopus", sound))
    pause = [*sound[:400], *sound[800:]]  # 8.5 to 17 s
    write(folder / "pause.mkv", video, Track("ac3", pause))
    for name, kind in (("late-sound", 8), ("late-frame", 9)):
        late = write(folder / f"{name}.flv", Track("libx264", frames, {"bf": "0"}), aac)
        stamp_later(late, kind, 300, 5000)
    for name, extra in (("open", "open-gop=1"), ("refresh", "intra-refresh=1")):
        options = {**X264, "x264-params": extra}
        write(folder / f"{name}.mp4", Track("libx264", frames, options), Track("alac", sound))
    write(folder / "counted.avi", Track("mpeg4", frames, {"g": "20"}), Track("mp3", sound))
    write(folder / "repeated.mkv", Track("libx264", frames, {"bf": "0"}, repeat_stamp), pcm)
    write(folder / "false-keys.mkv", Track("libx264", frames, {"g": "250"}, claim_key), pcm)
    write(folder / "one-key.mkv", Track("libx264", frames, {"g": "9999"}), pcm)
    return folder


@pytest.fixture
def split_into(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Number of stretches of each input that has been extracted, 0: it was one task."""
    stretches: dict[str, int] = {}
    finish: Callable[..., None] = Assembler.finish_item

    def note(self: Any, number: int, messages: Any, count: int = 0) -> None:
        stretches[Path(self._plan.items[number].source).name] = count
        finish(self, number, messages, count)

    monkeypatch.setattr(Assembler, "finish_item", note)
    return stretches


@pytest.fixture(scope="module")
def alone(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one worker makes of the plain MP4 in one task."""
    out = tmp_path_factory.mktemp("alone") / "out"
    assert make_shards(str(recordings / "plain.mp4"), out, ALONE, **CLIPS) == 0
    return contents(out)


def test_the_bytes_of_one_task(
    recordings: Path, tmp_path: Path, split_into: dict[str, int]
) -> None:
    assert make_shards(str(recordings), tmp_path / "alone", ALONE, **CLIPS) == 0
    assert set(split_into.values()) == {0}
    assert make_shards(str(recordings), tmp_path / "split", SPLIT, **CLIPS) == 0
    assert contents(tmp_path / "split") == contents(tmp_path / "alone")
    names = (
        "plain.mp4", "plain.ts", "variable-rate.mkv", "pause.mkv", "late-sound.flv", "open.mp4",
        "refresh.mp4", "counted.avi",
    )  # fmt: skip
    assert {name: split_into[name] for name in names} == dict.fromkeys(names, 4)
    # Their packets do not name their frames.
    assert (split_into["repeated.mkv"], split_into["late-frame.flv"]) == (0, 0)


def test_few_frames_of_a_clip(recordings: Path, tmp_path: Path, split_into: dict[str, int]) -> None:
    """Most frames are then not decoded, and whole groups between key frames are left out."""
    names = [str(recordings / f"{name}") for name in ("plain.mp4", "damaged.mp4", "lost.ts")]
    options = {**CLIPS, "profile": "events", "clip_seconds": 3.0, "frames": 2}
    assert make_shards(names, tmp_path / "alone", ALONE, **options) == 0
    assert make_shards(names, tmp_path / "split", SPLIT, **options) == 0
    assert contents(tmp_path / "split") == contents(tmp_path / "alone")
    assert split_into["plain.mp4"] == 4


def reaches(stretch: int, process: subprocess.Popen[bytes], out: Path) -> bool:
    """Waits until a file of a stretch is there, or the program has ended."""
    while process.poll() is None:
        if list(out.glob(f".work/*-0.{stretch}.part")):
            return True
        time.sleep(0.001)
    return False


def writer(program: int, stretch: int) -> psutil.Process | None:
    """Worker that writes a stretch, stopped; None: it has ended."""
    for child in psutil.Process(program).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.suspend()
            if any(file.path.endswith(f"-0.{stretch}.part") for file in child.open_files()):
                return child
            child.resume()
    return None


def test_a_worker_that_is_killed_costs_nothing(
    recordings: Path, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    victim = None
    for attempt in range(10):  # a stretch takes a few tenths of a second
        out = tmp_path / str(attempt) / "out"
        words = [str(recordings / "plain.mp4"), "--out", str(out), "--workers", "2", *WORDS]
        process = run_command(*words, "--stretch-minutes", str(SIX_SECONDS))
        if reaches(1, process, out) and (victim := writer(process.pid, 1)) is not None:
            break
        process.communicate(timeout=120)
    assert victim is not None
    victim.kill()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0
    assert b"plain.mp4 is read again (the worker process was killed" in said
    assert b"as one task" not in said  # the stretch alone
    assert contents(out) == alone


def test_a_program_that_is_killed_begins_the_input_again(
    recordings: Path, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    for attempt in range(10):
        out = tmp_path / str(attempt) / "out"
        words = [str(recordings / "plain.mp4"), "--out", str(out), "--workers", "2", *WORDS]
        process = run_command(*words, "--stretch-minutes", str(SIX_SECONDS))
        reaches(2, process, out)
        process.kill()
        process.communicate(timeout=60)
        if process.returncode != 0:
            break
    assert process.returncode == -signal.SIGKILL
    assert make_shards(str(recordings / "plain.mp4"), out, SPLIT, **CLIPS) == 0
    assert contents(out) == alone


def test_what_crashes_a_worker_costs_the_same_as_in_one_task(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split_into: dict[str, int],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A video crashes every worker after a clip, another one the worker that surveys it."""
    monkeypatch.setattr("cavmae.datasets.sharding.job.shard_task", faulty.work)
    for name in ("crash", "survey"):
        shutil.copy(recordings / "plain.mp4", tmp_path / f"{name}.mp4")
    names = [str(tmp_path / f"{name}.mp4") for name in ("crash", "survey")]
    assert make_shards(names, tmp_path / "alone", ALONE, **CLIPS) == 0
    caplog.set_level(logging.INFO, "cavmae")
    assert make_shards(names, tmp_path / "split", SPLIT, **CLIPS) == 0
    assert contents(tmp_path / "split") == contents(tmp_path / "alone")
    counts = [int(n) for n in re.findall(r"(\d+) clips, ", caplog.text)]
    assert counts[-1] == 1 + SECONDS // 2  # not those of stretches that were dropped
    assert split_into == {"crash.mp4": 0, "survey.mp4": 0}
    assert skipped(tmp_path / "split") == {"crash.mp4": "crash"}
    assert Manifest.load(tmp_path / "split").samples == 1 + SECONDS // 2


def test_what_was_skipped_is_tried_again_in_stretches(
    recordings: Path, tmp_path: Path, split_into: dict[str, int]
) -> None:
    """Eight seconds without sound, of a recording that is mended meanwhile."""
    path = tmp_path / "x.mkv"
    for run_settings in (ALONE, SPLIT):
        out = tmp_path / f"out-{run_settings.workers}"
        shutil.copy(recordings / "pause.mkv", path)
        assert make_shards(str(path), out, run_settings, **CLIPS) == 0
        assert skipped(out) == {"x.mkv": "no_audio"}
        shutil.copy(recordings / "variable-rate.mkv", path)
        again = dataclasses.replace(run_settings, retry_skipped=True, stretch_minutes=0.05)
        assert make_shards(str(path), out, again, **CLIPS) == 0
        assert skipped(out) == {}
    assert contents(tmp_path / "out-1") == contents(tmp_path / "out-2")
    assert split_into["x.mkv"] > 1


def test_a_file_that_changes_after_its_survey_is_read_as_a_whole(
    recordings: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.mp4"
    shutil.copy(recordings / "plain.mp4", path)
    layout = InputLayout(tmp_path / "out")
    layout.work_folder.mkdir(parents=True)
    item = Input(str(path))
    settings = ShardSettings(**CLIPS).resolved()  # type: ignore[arg-type]
    queue = TaskQueue(layout, [(0, item)], settings, DEFAULT_LIMITS, 6.0)
    done = []
    for entry in queue.tasks():
        assert entry is not None
        number, task = entry
        if task.assigned is not None and task.assigned[1].number == 2:
            shutil.copy(recordings / "pause.mkv", path)

        def report(message: Message, number: int = number) -> None:
            queue.handle(TaskProgress(number, message))

        shard_task(task, report)
        done.append(queue.handle(Finished(number, None)))
    last = done.pop()
    assert last is not None and last.stretches == 0
    # The survey and three stretches; the last one is not begun.
    assert done == [None] * 4
    skips = [m for m in last.messages if isinstance(m, Skip)]
    assert [skip.reason for skip in skips] == ["no_audio"]
    assert list(layout.work_folder.iterdir()) == [layout.part_file(item)]


@given(
    st.lists(st.sampled_from(["", "no_audio", "decode_error"]), max_size=12),
    st.sets(st.integers(0, 12)),
)
def test_reports_of_stretches_join_to_that_of_one_task(reasons: list[str], cuts: set[int]) -> None:
    def report(clips: range) -> list[Message]:
        messages: list[Message] = []
        reporter = Reporter(messages.append)
        for number in clips:
            start = 0.5 * number
            if reasons[number]:
                detail = f"clip {number}"
                reporter.skipped(Skip(number, start, reasons[number], detail, 1, start))
            else:
                reporter.written(Written(number, start, 0.5, 1, 0))
        reporter.flush()
        return [m for m in messages if isinstance(m, Written | Skip)]

    bounds = sorted({0, len(reasons), *(cut for cut in cuts if cut < len(reasons))})
    pieces = [report(range(a, b)) for a, b in itertools.pairwise(bounds)]
    assert _join(pieces) == report(range(len(reasons)))
