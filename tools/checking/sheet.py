"""Contact sheet of random samples: frames, masks, log-mel filter bank, labels."""

import random
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")  # a file is drawn, no window

from matplotlib import pyplot

from cavmae.common.errors import SampleError
from cavmae.common.files import write_atomically
from cavmae.common.quoting import caption
from cavmae.datasets.format import sample
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.format.sample import SampleInfo
from cavmae.datasets.stream.features import FBANK_RATE
from cavmae.datasets.stream.shard_reader import Access, ShardOpener

FRAMES = 4  # of a sample
# Colours of mask values 1, 2, ...: distinct to colour-blind eyes (Okabe and Ito).
MASK_COLOURS = np.array(
    [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0]]
)


def draw_sheet(manifest: Manifest, access: Access, count: int, seed: int, path: Path) -> int:
    """Draw random samples: frames (with masks), spectrogram, labels.

    Returns:
        Number of samples drawn; broken ones are left out.
    """
    places = [(s, i) for s, e in enumerate(manifest.shards) for i in range(e.samples)]
    chosen = sorted(random.Random(seed).sample(places, min(count, len(places))))
    opener = ShardOpener(manifest, access)
    drawn = []
    for number, place in chosen:
        shard = opener.get(number)
        if place >= len(shard.entries):
            continue
        entry = shard.entries[place]
        try:
            members = {name: shard.read(entry, name) for name in entry.members}
            drawn.append((entry.key, *_decode(members)))
        except (SampleError, KeyError):
            continue
    opener.close()
    figure, axes = pyplot.subplots(
        max(1, len(drawn)),
        FRAMES + 1,
        figsize=(17, 2.5 * max(1, len(drawn)) + 0.6),
        squeeze=False,
        gridspec_kw={"width_ratios": [1] * FRAMES + [2.2]},
    )
    figure.suptitle(
        f"{caption(manifest.folder)}: {len(drawn)} of {manifest.samples} samples. Frames with "
        "their time; masks in colour; log-mel filter bank, 128 mel bins over seconds",
        fontsize=10,
        y=1 - 0.1 / figure.get_figheight(),
        parse_math=False,
    )
    for row, (key, info, frames, fbank) in zip(axes, drawn, strict=False):
        _draw_sample(row, key, info, frames, fbank)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight()))
    with write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=80)
    pyplot.close(figure)
    return len(drawn)


def _decode(
    members: dict[str, bytes],
) -> tuple[SampleInfo, list[tuple[float, np.ndarray]], np.ndarray]:
    info = SampleInfo.from_bytes(members["json"])
    fbank = sample.decode_fbank(members["fbank.npy"], info.fbank_frames)
    numbers = np.linspace(0, len(info.frame_times) - 1, FRAMES).round().astype(int)
    frames = []
    for number in dict.fromkeys(numbers.tolist()):
        frame = sample.decode_frame(members[sample.frame_member(number)], info.frame_size)
        data = members.get(sample.mask_member(number))
        if data is not None:
            frame = _overlay(frame, sample.decode_mask(data, info.frame_size))
        frames.append((info.frame_times[number], frame))
    return info, frames, fbank


def _overlay(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    colours = MASK_COLOURS[(mask.astype(int) - 1) % len(MASK_COLOURS)]
    mixed = frame * 0.5 + colours * 0.5
    return np.where(mask[..., None] > 0, mixed, frame).astype(np.uint8)


def _draw_sample(
    row: Any,
    key: str,
    info: SampleInfo,
    frames: list[tuple[float, np.ndarray]],
    fbank: np.ndarray,
) -> None:
    for axis in row[:FRAMES]:
        axis.axis("off")
    for axis, (time, frame) in zip(row, frames, strict=False):
        axis.imshow(frame)
        axis.set_title(f"{time:.2f} s", fontsize=8, pad=2)
    axis = row[FRAMES]
    seconds = len(fbank) / FBANK_RATE
    axis.imshow(
        fbank.T.astype(np.float32),
        origin="lower",
        aspect="auto",
        extent=(0, seconds, 0, fbank.shape[1]),
        vmin=-16,
        vmax=4,
        cmap="magma",
    )
    axis.set_xlim(0, info.duration)
    axis.tick_params(labelsize=7)
    words = [*info.labels[:4], *([f"speaker {info.speaker}"] if info.speaker else [])]
    named = ", ".join(caption(word, 40) for word in words) or "no labels"
    text = f"{key}  from {info.start:.2f} s  ({caption(info.decoder, 20)})\n{named}"
    axis.set_title(text, fontsize=7, loc="left", pad=3, parse_math=False)
