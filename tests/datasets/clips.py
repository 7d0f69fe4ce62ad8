"""Small data sets of synthetic clips for tests of mixtures."""

import dataclasses
from pathlib import Path

import numpy as np

from cavmae.common.files import sha256_of
from cavmae.datasets.format import sample
from cavmae.datasets.format.manifest import Manifest, ShardEntry
from cavmae.datasets.format.sample import SampleInfo
from cavmae.datasets.format.shards import END, encode_sample

Sample = tuple[str, dict[str, bytes]]


def clip(
    number: int, person: bool = False, masks: bool = True, frames: int = 3, **changes: object
) -> Sample:
    """Sample of frames of 32x48 noise, 25 a second, with audio.

    Args:
        person: masks show a person at the lower edge, else noise.
        masks: of all frames; else of the first two.
        changes: of its ``json``.
    """
    rng = np.random.default_rng(number)
    info = SampleInfo(
        source=f"v{number}.mp4", start=0.0, duration=frames / 25, labels=(),
        speaker=f"s{number % 2}", frame_times=tuple(n / 25 for n in range(frames)),
        frame_size=(32, 48), fbank_frames=4 * frames - 2,
    )  # fmt: skip
    members = {"json": dataclasses.replace(info, **changes).to_bytes()}  # type: ignore[arg-type]
    left = int(rng.integers(4, 28))
    for frame in range(frames):
        pixels = rng.integers(256, size=(32, 48, 3), dtype=np.uint8)
        members[sample.frame_member(frame)] = sample.encode_frame(pixels, 90)
        mask = rng.integers(3, size=(32, 48), dtype=np.uint8)
        if person:
            mask[:] = 0
            mask[8:, left : left + 14] = 1
            mask[8:18, left + 3 : left + 11] = 2
        if masks or frame < 2:
            members[sample.mask_member(frame)] = sample.encode_mask(mask)
    wave = rng.integers(-9000, 9000, size=640 * frames, dtype=np.int16)
    members["flac"] = sample.encode_waveform(wave)
    return f"k{number}", members


def people_of(folder: Path, count: int = 6, frames: int = 3) -> Manifest:
    """Writes a data set with one clip of each person, and its manifest beside the shard."""
    samples = [clip(n, person=True, frames=frames, speaker=f"s{n}") for n in range(count)]
    manifest = data_set_of(folder, samples)
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    return manifest


def data_set_of(folder: Path, *shards: list[Sample]) -> Manifest:
    """Writes shards and returns their manifest."""
    folder.mkdir()
    entries = []
    for number, samples in enumerate(shards):
        path = folder / f"clips-{number:06d}.tar"
        path.write_bytes(b"".join([*(encode_sample(*entry) for entry in samples), END]))
        entries.append(ShardEntry(path.name, len(samples), path.stat().st_size, sha256_of(path)))
    return Manifest(str(folder), tuple(entries), {})
