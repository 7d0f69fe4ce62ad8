"""`cavmae bench shard`: sharding against decoding alone and the scripts of the reference."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av

from cavmae.common.errors import CavmaeError
from cavmae.datasets.sharding.clip_extraction import shard_input
from cavmae.datasets.sharding.input_lists import collect
from cavmae.datasets.sharding.inputs import Input
from cavmae.datasets.sharding.job import shard
from cavmae.datasets.sharding.messages import Message, Skip
from cavmae.datasets.sharding.settings import ShardRunSettings, ShardSettings
from cavmae.tools.benchmarks.media import VideoSpec, make_folder
from cavmae.tools.benchmarks.settings import ShardBench
from cavmae.tools.benchmarks.table import Row, in_turns, on_one_core, resident_mb, save, table

LARGE = VideoSpec(seconds=10.0, fps=30.0, size=(1280, 720), rate=44100, channels=2, clutter=True)
SMALL = VideoSpec(seconds=2.5, fps=25.0, size=(256, 144), rate=44100, channels=2)
VIDEOS = 4  # synthetic ones
BASELINE = "PyAV, decoding the video stream only"


def decode_only(paths: Sequence[str]) -> float:
    """Seconds per video of decoding all frames with PyAV on one thread."""
    started = time.perf_counter()
    for path in paths:
        with av.open(path) as container:
            video = container.streams.video[0]
            video.codec_context.thread_count = 1
            for _ in container.decode(video):
                pass
    return (time.perf_counter() - started) / len(paths)


def shard_in_process(paths: Sequence[str], profile: str) -> float:
    """Seconds per video of sharding in one process.

    Raises:
        CavmaeError: a video cannot be sharded.
    """
    settings = ShardSettings(profile=profile).resolved()
    messages: list[Message] = []
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part"
        # The first call loads libraries, which a run over a data set does once.
        shard_input(Input(paths[0]), settings, part, lambda message: None)
        started = time.perf_counter()
        for path in paths:
            shard_input(Input(path), settings, part, messages.append)
        elapsed = time.perf_counter() - started
    if any(isinstance(message, Skip) for message in messages):
        raise CavmaeError(f"Some of the videos cannot be sharded: {messages}.")
    return elapsed / len(paths)


def reference_way(paths: Sequence[str]) -> float:
    """Seconds per video of the reference's scripts: ten seeks with OpenCV, then ffmpeg and sox."""
    import cv2

    cv2.setNumThreads(1)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            capture = cv2.VideoCapture(path)
            rate = capture.get(cv2.CAP_PROP_FPS)
            frames = min(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), int(rate * 10))
            for number in range(10):
                capture.set(cv2.CAP_PROP_POS_FRAMES, int(number * frames / 10))
                _, frame = capture.read()
                height, width = frame.shape[:2]
                scale = 224 / min(height, width)
                small = cv2.resize(frame, (round(width * scale), round(height * scale)))
                top, left = (small.shape[0] - 224) // 2, (small.shape[1] - 224) // 2
                crop = small[top : top + 224, left : left + 224]
                cv2.imwrite(f"{folder}/frame_{number}.jpg", crop)
            capture.release()
            quiet = ["-loglevel", "error", "-threads", "1", "-y"]
            stereo, mono = f"{folder}/stereo.wav", f"{folder}/mono.wav"
            subprocess.run(
                ["ffmpeg", *quiet, "-i", path, "-vn", "-ar", "16000", stereo], check=True
            )
            subprocess.run(["sox", stereo, mono, "remix", "1"], check=True)
    return (time.perf_counter() - started) / len(paths)


def whole_run(paths: Sequence[str], workers: int) -> float:
    """Seconds per video of a whole run of `cavmae shard`."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        shard(list(paths), Path(folder) / "out", ShardSettings(), ShardRunSettings(workers=workers))
        return (time.perf_counter() - started) / len(paths)


def memory_over(paths: Sequence[str], clips: int) -> float:
    """Growth of a process in 10^6 bytes, from the first tenth of the clips to the last."""
    settings = ShardSettings("events", min_seconds=1.0).resolved()
    early = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(clips):
            path = paths[number % len(paths)]
            shard_input(Input(path), settings, Path(folder) / "part", lambda message: None)
            if number == clips // 10:
                early = resident_mb()
    return resident_mb() - early


def run(bench: ShardBench) -> None:
    """Measure and print the tables."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        if bench.inputs:
            paths = [item.source for item in collect(bench.inputs)[0]]
        else:
            paths = [str(path) for path in make_folder(work / "720p", VIDEOS, [LARGE])]
        rows = _rows(paths, bench)
        title = f"cavmae bench shard: {len(paths)} videos, one core"
        print(table(title, "video", BASELINE, rows))
        if bench.workers:
            _scaling(paths, bench)
        if bench.memory_clips:
            small = [str(p) for p in make_folder(work / "small", 8, [SMALL])]
            growth, peak = on_one_core(memory_over, small, bench.memory_clips)
            print(
                f"\nMemory over {bench.memory_clips} clips in one process: {growth:+.1f} MB from "
                f"clip {bench.memory_clips // 10} to the last, peak {peak:.0f} MB"
            )
        save(rows, bench.out)


def _rows(paths: list[str], bench: ShardBench) -> list[Row]:
    ways: dict[str, tuple[Callable[..., float], tuple[Any, ...]]] = {
        BASELINE: (decode_only, (paths,)),
        "cavmae shard, events profile": (shard_in_process, (paths, "events")),
        "cavmae shard, speakers profile": (shard_in_process, (paths, "speakers")),
    }
    reference = "OpenCV seeks, ffmpeg and sox, as the reference does"
    missing = [name for name in ("ffmpeg", "sox") if shutil.which(name) is None]
    try:
        import cv2  # noqa: F401
    except ImportError:
        missing.append("opencv-python-headless")
    if not missing:
        ways[reference] = (reference_way, (paths,))
    results = in_turns(ways, bench.rounds)
    rows = [Row(name, seconds, peak) for name, (seconds, peak) in results.items()]
    if missing:
        rows.append(Row(reference, None, note=f"not installed: {', '.join(missing)}"))
    return rows


def _scaling(paths: list[str], bench: ShardBench) -> None:
    # With many inputs the start of the workers takes a small fraction of the time.
    with tempfile.TemporaryDirectory() as folder:
        copies = []
        for number in range(max(24, 4 * len(paths))):
            copy = Path(folder) / f"{number}.mp4"
            copy.write_bytes(Path(paths[number % len(paths)]).read_bytes())
            copies.append(str(copy))
        times: dict[int, list[float]] = {1: [], bench.workers: []}
        for _ in range(max(1, bench.rounds - 1)):
            for workers, seconds in times.items():
                seconds.append(whole_run(copies, workers))
        serial, parallel = min(times[1]), min(times[bench.workers])
        print(
            f"\nWhole runs over {len(copies)} videos: 1 worker {serial:.2f} s a video, "
            f"{bench.workers} workers {parallel:.2f} s: {serial / parallel:.2f} times as fast"
        )
