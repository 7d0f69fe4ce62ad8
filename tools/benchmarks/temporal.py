"""`cavmae bench temporal`: time and memory of the temporal attentions, by number of frames.

Forward and backward pass of the encoder over the unmasked frames of a clip.
"""

import time
from typing import Any

import torch

from cavmae.common.device import device_of
from cavmae.common.tables import markdown_table
from cavmae.pretrain.config import EncoderConfig
from cavmae.pretrain.encoder import Encoder
from cavmae.pretrain.temporal.settings import PER_FRAME, TEMPORAL
from cavmae.tools.benchmarks.settings import TemporalBench
from cavmae.tools.benchmarks.steps import precision_of, synchronize
from cavmae.tools.benchmarks.table import Row, in_turns, machine, row_of, save


def run(bench: TemporalBench) -> None:
    """Measures all attentions and prints the table."""
    ways = {_title(name, f): (name, f) for f in bench.frames for name in TEMPORAL}
    gpu = device_of(bench.device).type == "cuda"
    calls: Any = {title: (seconds_per_clip, (bench, *way)) for title, way in ways.items()}
    measured = in_turns(calls, bench.rounds, gpu=gpu)
    rows = {title: row_of(title, *numbers) for title, numbers in measured.items()}
    place = torch.cuda.get_device_name() if gpu else "one core"
    date = time.strftime("%Y-%m-%d")
    print(
        f"cavmae bench temporal: encoder {bench.size}, {bench.image}x{bench.image}, forward and "
        f"backward pass, batch {bench.batch_size}, {precision_of(bench)}, {place}: ms a clip "
        f"(times that of {PER_FRAME.name}), peak memory ({date}, {machine()})\n"
    )
    head = ["attention", *(f"{f} frame{'s' if f > 1 else ''}" for f in bench.frames)]
    cells = [
        [
            name,
            *(_cell(rows[_title(name, f)], rows[_title(PER_FRAME.name, f)]) for f in bench.frames),
        ]
        for name in TEMPORAL
    ]
    print(markdown_table(head, cells, text_columns=(0,)))
    save(list(rows.values()), bench.out)


def _title(name: str | None, frames: int) -> str:
    return f"{name}, frames {frames}"


def _cell(row: Row, baseline: Row) -> str:
    if row.seconds is None:
        return row.note
    ratio = "" if baseline.seconds is None else f" ({row.seconds / baseline.seconds:.2f})"
    return f"{row.seconds * 1e3:.0f} ms{ratio}, {row.peak_mb:.0f} MB"


def seconds_per_clip(bench: TemporalBench, name: str, frames: int) -> float:
    """Seconds of a forward and a backward pass for one clip, after a warm-up.

    Args:
        name: of the temporal attention.
        frames: of a clip.
    """
    device, precision = device_of(bench.device), precision_of(bench)
    torch.manual_seed(0)
    config = EncoderConfig(
        size=bench.size, image_height=bench.image, image_width=bench.image, audio_frames=16,
        temporal=TEMPORAL.options(name)(), frames=frames,
    )  # fmt: skip
    encoder = Encoder(config)
    encoder.initialise()
    encoder.to(device)
    clips = torch.randn(bench.batch_size, frames, 3, bench.image, bench.image, device=device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    started = 0.0
    for number in range(1 + bench.steps):
        if number == 1:
            synchronize(device)
            started = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            tokens = encoder.frame_features(clips)
        tokens.float().square().mean().backward()
        encoder.zero_grad(set_to_none=True)
    synchronize(device)
    return (time.perf_counter() - started) / bench.steps / bench.batch_size
