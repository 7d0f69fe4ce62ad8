"""Fine-tuning learns to separate the simplest people by the motion of their mouths."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cavmae.datasets.format import sample
from cavmae.datasets.format.sample import SampleInfo
from cavmae.finetune.train import main
from cavmae.tools import evaluate, make_scenes
from tests.datasets.clips import Sample, data_set_of
from tests.finetune.speaker.runs import write
from tests.pretrain.engine.running import trace

FRAMES, SIZE = 32, (48, 64)  # 1.28 s of video
STEP = 640  # samples of a frame
STEPS = 110


def talker(number: int) -> Sample:
    """A bright body whose dark mouth opens with its voice, tones of one pitch and varying level."""
    rng = np.random.default_rng(number)
    person = number // 2
    height, width = SIZE
    left, extent = int(rng.integers(8, 30)), 22
    loud = (rng.random(FRAMES // 4).repeat(4) > 0.5).astype(float)
    back = rng.integers(0, 90, size=(height // 8, width // 8, 3)).repeat(8, 0).repeat(8, 1)
    colour = rng.integers(150, 255, size=3)
    members: dict[str, bytes] = {}
    for frame in range(FRAMES):
        frame_pixels = back.astype(np.uint8)
        frame_pixels[12:, left : left + extent] = colour
        opening = 2 + int(6 * loud[frame])
        frame_pixels[24 : 24 + opening, left + 6 : left + 16] = 10
        mask = np.zeros(SIZE, dtype=np.uint8)
        mask[12:, left : left + extent] = 1
        members[sample.frame_member(frame)] = sample.encode_frame(frame_pixels, 95)
        members[sample.mask_member(frame)] = sample.encode_mask(mask)
    time = np.arange(FRAMES * STEP) / 16_000
    pitch = 120 * 1.3 ** (person % 8)
    tones = sum(np.sin(2 * np.pi * pitch * k * time + rng.random() * 6) for k in range(1, 6))
    wave = tones * np.interp(np.arange(len(time)) / STEP, np.arange(FRAMES) + 0.5, loud)
    members["flac"] = sample.encode_waveform((wave * 4000).astype(np.int16))
    info = SampleInfo(
        source=f"v{number}.mp4", start=0.0, duration=FRAMES / 25, labels=(), speaker=f"p{person}",
        frame_times=tuple(n / 25 for n in range(FRAMES)), frame_size=SIZE,
        fbank_frames=FRAMES * 4,
    )  # fmt: skip
    return f"k{number:02d}", {"json": info.to_bytes(), **members}


SETTINGS: dict[str, Any] = {
    "data": {"batch_size": 8, "workers": 0},
    "compose": {
        "height": 48, "width": 64, "seconds": 0.64, "people": [0, 1, 0], "silent_prob": 0,
        "off_screen_prob": 0, "noise_prob": 0, "all_off_screen_prob": 0, "letterbox_prob": 0,
        "min_scale": 0.8, "max_scale": 1.0,
    },
    "model": {
        "encoder_from": None, "encoder.size": "tiny", "train_encoder": "all", "slots": 4,
        "width": 32, "heads": 2, "query_layers": 1, "slot_layers": 2,
        "mask_width": 16, "key_frames": 2, "motion_height": 48, "motion_width": 64,
        "motion": {"name": "conv", "width": 16, "depth": 1}, "head_size": 24,
        "head_motion": {"name": "conv", "width": 16, "depth": 1},
        "sound.separator": {"name": "unet", "width": 6}, "sound.width": 48, "sound.cue_layers": 2,
    },
    "loss": {"points": 256, "cue_only_until": 0.0, "cue_prob": 0.2},
    "optimizer": {"lr": 2e-3, "warmup": 0.05, "beta2": 0.99},
    "loop": {
        "log_every": 10, "save_every": 1000, "threads": 1, "tracker": "none", "device": "cpu",
    },
}  # fmt: skip


@pytest.mark.long
def test_a_short_run_learns_masks_and_voices(tmp_path: Path) -> None:
    fit = data_set_of(tmp_path / "fit", [talker(n) for n in range(16)])
    others = data_set_of(tmp_path / "others", [talker(n) for n in range(100, 106)])
    write(fit)
    write(others)
    scenes = tmp_path / "list.jsonl"
    compose_options = [f"--compose.{k}={v}" for k, v in SETTINGS["compose"].items()]
    make_scenes.main([others.folder, "--list", str(scenes), "--count", "40", *compose_options])
    data_options = {"train": fit.folder, "held_out": str(scenes), "held_out_shards": others.folder}
    settings = {part: dict(values) for part, values in SETTINGS.items()}
    settings["data"] |= data_options
    settings["loop"] |= {"steps": STEPS, "evaluate_every": STEPS}
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(settings))
    main(["speakers", "--config", str(path), "--out", str(tmp_path / "run")])
    held_out = next(line for line in trace(tmp_path / "run") if "iou" in line)
    assert held_out["iou"] > 0.85
    model = str(tmp_path / "run" / "checkpoints" / f"{STEPS:09d}")
    evaluate.main([
        others.folder, "--list", str(scenes), "--model", model, "--out", str(tmp_path / "out"),
        "--workers", "0",
    ])  # fmt: skip
    summary = json.loads((tmp_path / "out" / "measures.json").read_text())["summary"]
    assert summary["model"]["iou"] == pytest.approx(held_out["iou"], abs=1e-3)
    assert summary["model"]["si_sdri"] > 3
    assert summary["model"]["confusion"] < 0.2  # of 78 voices; 0.5 by chance
    # Motion is what separates: blanked, frozen or swapped frames gain nothing.
    for way in ("frames_blanked", "frames_frozen", "frames_swapped"):
        assert summary[way]["si_sdri"] < summary["model"]["si_sdri"] - 2, way
