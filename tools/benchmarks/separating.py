"""`cavmae bench separate`: real-time factor of separation."""

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from cavmae.common.errors import UsageError
from cavmae.datasets.media import probe
from cavmae.datasets.media.geometry import cut_from
from cavmae.datasets.media.playback import Playback
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.finetune.inference.separator import Separator
from cavmae.finetune.inference.settings import SeparateSettings, Thresholds
from cavmae.finetune.inference.sources import working_size
from cavmae.finetune.speaker.factory import load_speaker
from cavmae.tools.benchmarks.media import VideoSpec, make_video
from cavmae.tools.benchmarks.settings import SeparateBench
from cavmae.tools.benchmarks.table import Row, in_turns, save, table

BASELINE = "decoding alone"
SECONDS = 20.0  # of the synthetic recording


def decoding(video: str, model: str) -> float:
    """Seconds per second of decoding all frames, at a model's size, and the audio."""
    shape = load_speaker(model)[0].config
    started = time.perf_counter()
    info = probe(video)
    size = working_size(info.display, shape.encoder.image_size, Thresholds().max_frame_side)
    with Playback(info, cut_from(info, size, size)) as playback:
        for start in range(0, playback.frames, VIDEO_RATE):
            playback.read_frames(start, min(VIDEO_RATE, playback.frames - start))
            playback.read_audio(start, min(VIDEO_RATE, playback.frames - start))
        return (time.perf_counter() - started) / playback.seconds


def separating(
    bench: SeparateBench, video: str, model: str, second_look: bool, videos: bool
) -> float:
    """Seconds per second of `cavmae separate` after the model is loaded.

    Args:
        bench: options.
        video: recording.
        model: checkpoint.
        second_look: include the second pass over small people.
        videos: write masks and overlay.
    """
    separator = Separator.from_pretrained(model, bench.device, bench.precision)
    # One pass, whatever the offset of the video.
    settings = SeparateSettings(second_look, overlay=videos, masks=videos, av_offset=0.0)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        result = separator.separate(video, Path(folder) / "out", settings)
        return float((time.perf_counter() - started) / result.record["seconds"])


def run(bench: SeparateBench) -> None:
    """Measure and print the table.

    Raises:
        UsageError: no model is named.
    """
    if not bench.models:
        raise UsageError("Name a model, or several: --models '[FOLDER, ...]'.")
    with contextlib.ExitStack() as stack:
        video = bench.video
        if video is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            spec = VideoSpec(seconds=SECONDS, size=(1280, 720), clutter=True)
            video = str(make_video(Path(folder) / "made.mp4", spec))
        ways: dict[str, Any] = {BASELINE: (decoding, (video, bench.models[0]))}
        for model in bench.models:
            name = Path(model).parent.parent.name or model
            ways[f"{name}, voices only"] = separating, (bench, video, model, False, False)
            ways[f"{name}, second look"] = separating, (bench, video, model, True, False)
            ways[f"{name}, and videos"] = separating, (bench, video, model, True, True)
        results = in_turns(ways, bench.rounds, pinned=False)
    device = "CPU"
    if torch.cuda.is_available() and bench.device != "cpu":
        device = torch.cuda.get_device_name()
    rows = [
        Row(name, seconds, peak, f"real-time factor {seconds:.2f}")
        for name, (seconds, peak) in results.items()
    ]
    caption = f"cavmae bench separate, {device}, {bench.precision}"
    print(table(caption, "second", BASELINE, rows))
    save(rows, bench.out)
