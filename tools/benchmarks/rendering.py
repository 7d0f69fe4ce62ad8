"""`cavmae bench render`: speed of rendering talkers, on one core."""

import contextlib
import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from cavmae.datasets.media.writing import VideoWriter
from cavmae.datasets.synthetic import clip_writer, speaker_discovery
from cavmae.datasets.synthetic.settings import QUALITY, RenderSettings
from cavmae.tools.benchmarks.settings import RenderBench
from cavmae.tools.benchmarks.table import Row, in_turns, save, table

BASELINE = "encoding alone (H.264, AAC)"
CLIPS = 6  # of a round


def _render(settings: RenderSettings, clips: int) -> float:
    """Seconds per frame of rendering with all outputs, without start-up and casting."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        population = speaker_discovery.load_or_discover(Path(), settings, 1)
        clip = -1
        started = time.perf_counter()
        for clip in range(-1, clips):
            if clip == 0:  # clip -1 is the warm-up
                started = time.perf_counter()
            number = clip % len(population.speakers)
            shot = clip_writer.Shot(number, settings, population, Path(f"clip{clip}"), Path("work"))
            clip_writer.render(shot, lambda _: None)
        return (time.perf_counter() - started) / (clips * settings.frames)


def _encode(settings: RenderSettings, clips: int) -> float:
    """Seconds per frame of encoding rendered frames."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        from cavmae.datasets.synthetic.mixing import mix
        from cavmae.datasets.synthetic.script import write_script
        from cavmae.datasets.synthetic.stage import Stage

        population = speaker_discovery.load_or_discover(Path(), settings, 1)
        spent = 0.0
        for clip in range(clips):
            script = write_script(settings, population, clip % len(population.speakers))
            audio = mix(settings, population, script)
            stage = Stage(settings, population, script, audio.mouth_tracks)
            frames = [np.array(view.pixels) for view in stage.frames()]
            started = time.perf_counter()
            writer = VideoWriter(
                Path(f"{clip}.mp4"), settings.size, settings.frame_rate, QUALITY,
                audio.mixture,
            )  # fmt: skip
            for number, frame in enumerate(frames):
                writer.write(number, frame)
            writer.close()
            spent += time.perf_counter() - started
        return spent / (clips * settings.frames)


def run(bench: RenderBench) -> None:
    """Measure and print the table."""
    base = RenderSettings(speakers=8, valid_share=0, test_share=0)
    ways = {
        "one person, espeak-ng": base,
        "two people, espeak-ng": dataclasses.replace(base, people="2"),
    }
    if bench.speech:
        recorded = str(Path(bench.speech).resolve())
        ways["one person, recordings"] = dataclasses.replace(base, speech=recorded)
    measured = in_turns(
        {
            BASELINE: (_encode, (base, CLIPS)),
            **{name: (_render, (settings, CLIPS)) for name, settings in ways.items()},
        },
        bench.rounds,
    )
    rows = [
        Row(name, seconds, peak, f"{1 / seconds / base.frame_rate:.1f} times real time")
        for name, (seconds, peak) in measured.items()
    ]
    title = f"Rendering talkers, {base.height} pixels high, {base.frame_rate} frames/s, one core"
    print(table(title, "frame", BASELINE, rows))
    save(rows, bench.out)
