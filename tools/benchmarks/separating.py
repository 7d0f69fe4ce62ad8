"""`cavmae bench separate`: how much faster than real time recordings are taken apart."""

import contextlib
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import torch

from cavmae.common.errors import UsageError
from cavmae.datasets.media import probe
from cavmae.datasets.media.playback import RATE, Playback
from cavmae.finetune.inference.first_pass import working_geometry
from cavmae.finetune.inference.separator import Separator
from cavmae.finetune.inference.settings import SeparateSettings
from cavmae.finetune.speaker.factory import load_speaker
from cavmae.tools.benchmarks.media import VideoSpec, make_video
from cavmae.tools.benchmarks.table import Row, in_turns, save, table

BASELINE = "decoding alone"


@dataclasses.dataclass(frozen=True)
class SeparateBench:
    """What is measured. A unit is a second of the recording, so ms a unit / 1000 is the real-time
    factor.

    Args:
        models: checkpoints of `cavmae finetune speakers`, for instance of several sizes.
        video: recording; None: one is made, of ``seconds``.
        seconds: of the made recording.
        rounds: measured in turns; medians count.
        device: ``auto``: a GPU if there is one.
        precision: of the models' mathematics.
        out: JSON file for the rows.
    """

    models: tuple[str, ...] = ()
    video: str | None = None
    seconds: float = 20.0
    rounds: int = 3
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    out: str | None = None


def decoding(video: str, model: str) -> float:
    """Seconds for a second, of reading all frames, as a model needs them, and the sound."""
    shape = load_speaker(model)[0].config
    started = time.perf_counter()
    info = probe(video)
    with Playback(info, working_geometry(info, shape.encoder.image_size, True)) as playing:
        for start in range(0, playing.frames, RATE):
            playing.read_frames(start, min(RATE, playing.frames - start))
            playing.read_audio(start, min(RATE, playing.frames - start))
        return (time.perf_counter() - started) / playing.seconds


def separating(bench: SeparateBench, video: str, model: str, closely: bool, videos: bool) -> float:
    """Seconds for a second, of all that `cavmae separate` does once the model is loaded."""
    separator = Separator.from_pretrained(model, bench.device, bench.precision)
    settings = SeparateSettings(closely, overlay=videos, masks=videos)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        result = separator.separate(video, Path(folder) / "out", settings)
        return float((time.perf_counter() - started) / result.record["seconds"])


def run(bench: SeparateBench) -> None:
    """Measures and prints."""
    if not bench.models:
        raise UsageError("Name a model, or several: --models '[FOLDER, ...]'.")
    if bench.rounds < 1 or bench.seconds < 1:
        raise UsageError("--rounds and --seconds are at least 1.")
    with contextlib.ExitStack() as closing:
        video = bench.video
        if video is None:
            folder = closing.enter_context(tempfile.TemporaryDirectory())
            made = VideoSpec(seconds=bench.seconds, size=(1280, 720), clutter=True)
            video = str(make_video(Path(folder) / "made.mp4", made))
        ways: dict[str, Any] = {BASELINE: (decoding, (video, bench.models[0]))}
        for model in bench.models:
            name = Path(model).parent.parent.name or model
            ways[f"{name}, voices only"] = separating, (bench, video, model, False, False)
            ways[f"{name}, second look"] = separating, (bench, video, model, True, False)
            ways[f"{name}, and videos"] = separating, (bench, video, model, True, True)
        found = in_turns(ways, bench.rounds, pinned=False)
    where = "CPU"
    if torch.cuda.is_available() and bench.device != "cpu":
        where = torch.cuda.get_device_name()
    rows = [
        Row(name, seconds, peak, f"real-time factor {seconds:.2f}")
        for name, (seconds, peak) in found.items()
    ]
    caption = f"cavmae bench separate, {where}, {bench.precision}"
    print(table(caption, "second", BASELINE, rows))
    save(rows, bench.out)
