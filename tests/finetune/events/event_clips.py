"""Data sets of small clips whose classes can be seen (a colour) and heard (a pitch)."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cavmae.datasets.format import sample
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.format.sample import SampleInfo
from cavmae.datasets.stream import features
from tests.datasets.clips import Sample, data_set_of

CLASSES = ("bell", "dog", "rain")
SAMPLES = 10_480  # 64 fbank frames
ENCODER: dict[str, Any] = {
    "image_height": 32, "image_width": 32, "audio_frames": 64, "width": 32, "heads": 2, "depth": 1,
}  # fmt: skip


def event_clip(
    number: int, labels: Sequence[str], frames: int = 3, samples: int = SAMPLES
) -> Sample:
    """Clip of frames of 32x32 pixels and 16 kHz audio."""
    rng = np.random.default_rng(number)
    image = rng.integers(60, size=(frames, 32, 32, 3))
    times = np.arange(samples) / 16_000
    wave = rng.normal(0, 300, samples)
    for label in labels:
        place = CLASSES.index(label) if label in CLASSES else 0
        image[..., place] += 150
        wave += 6000 * np.sin(2 * np.pi * 400 * 3**place * times)
    waveform = wave.astype(np.int16)
    fbank = features.fbank(torch.from_numpy(waveform).float() / 32768).numpy()
    info = SampleInfo(
        source=f"v{number}.mp4", start=0.0, duration=samples / 16_000, labels=tuple(labels),
        speaker=None, frame_times=tuple(0.04 * n for n in range(frames)), frame_size=(32, 32),
        fbank_frames=len(fbank),
    )  # fmt: skip
    members = {"json": info.to_bytes(), "fbank.npy": sample.encode_fbank(fbank)}
    for frame in range(frames):
        members[sample.frame_member(frame)] = sample.encode_frame(image[frame].astype("u1"), 90)
    members["flac"] = sample.encode_waveform(waveform)
    return f"k{number}", members


def event_set(
    folder: Path, labels: Sequence[Sequence[str]], shards: int = 2, **changes: Any
) -> Manifest:
    """Writes a data set with one clip for each list of labels."""
    clips = [event_clip(number, own, **changes) for number, own in enumerate(labels)]
    bounds = [len(clips) * n // shards for n in range(shards + 1)]
    parts = list(itertools.pairwise(bounds))
    manifest = data_set_of(folder, *(clips[a:b] for a, b in parts))
    names = sorted({name for own in labels for name in own})
    entries = [
        dataclasses.replace(
            entry, labels=tuple(tuple(sorted(names.index(n) for n in own)) for own in labels[a:b])
        )
        for entry, (a, b) in zip(manifest.shards, parts, strict=True)
    ]
    manifest = dataclasses.replace(manifest, shards=tuple(entries), labels=tuple(names))
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    (folder / "stats.json").write_text(json.dumps({"fbank_mean": -8.0, "fbank_std": 4.0}))
    return manifest


def several(count: int) -> list[tuple[str, ...]]:
    """Labels of clips with one or two classes."""
    return [
        tuple(sorted({CLASSES[n % 3], CLASSES[(n // 3) % 3]})) if n % 2 else (CLASSES[n % 3],)
        for n in range(count)
    ]
