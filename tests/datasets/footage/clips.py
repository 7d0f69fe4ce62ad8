"""Clips of single talkers in clothes of their own, and settings of short, small recordings."""

from pathlib import Path

import numpy as np

from cavmae.datasets.footage.spec import FootageSettings
from cavmae.datasets.format import sample
from cavmae.datasets.format.manifest import Manifest
from tests.datasets.clips import clip, data_set_of

SHORT = FootageSettings(
    count=1, height=72, min_seconds=2.4, max_seconds=2.8, min_shot_seconds=0.6,
    max_shot_seconds=0.9, min_absence_seconds=0.9, max_absence_seconds=1.1, silent_prob=0.0,
)  # fmt: skip
COLORS = ((230, 30, 30), (30, 200, 40), (40, 60, 230), (230, 220, 40), (200, 40, 210))


def talkers_of(folder: Path, frames: int = 20) -> Manifest:
    """Writes a data set with a clip of each of five people, before backgrounds of grey noise."""
    samples = []
    for number, color in enumerate(COLORS):
        key, members = clip(number, speaker=f"s{number}", person=True, frames=frames)
        rng = np.random.default_rng(number)
        for frame in range(frames):
            grey = rng.integers(90, 160, size=(32, 48, 1), dtype=np.uint8)
            pixels = np.repeat(grey, 3, axis=2)
            person = sample.decode_mask(members[sample.mask_member(frame)], (32, 48)) > 0
            shade = rng.uniform(0.4, 1.1, size=(int(person.sum()), 1))
            pixels[person] = (shade * color).clip(0, 255).astype(np.uint8)
            members[sample.frame_member(frame)] = sample.encode_frame(pixels, 95)
        samples.append((key, members))
    manifest = data_set_of(folder, samples)
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    return manifest
