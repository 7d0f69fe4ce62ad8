"""Contact sheet of a corpus: frames with mask outlines, voices, mouth tracks and labels."""

import os
from pathlib import Path
from typing import Any

import av
import matplotlib
import numpy as np
import soundfile
from PIL import Image

matplotlib.use("Agg")  # a file is drawn, no window

from matplotlib import pyplot

from cavmae.common.files import write_atomically
from cavmae.common.json_files import read_json
from cavmae.common.quoting import caption
from cavmae.datasets.synthetic.recordings import levels

CLIPS, FRAMES = 8, 6
RANGE = 40.0  # dB of voices in the plot
# Of person 1, 2, ...: distinct to colour-blind eyes (Okabe and Ito).
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7")


def draw_sheet(folders: list[Path], path: Path) -> None:
    """Draw a contact sheet of evenly chosen clips.

    Args:
        folders: of complete clips.
        path: PNG file.
    """
    step = max(1, len(folders) // CLIPS)
    chosen = folders[::step][:CLIPS]
    figure, axes = pyplot.subplots(
        len(chosen),
        FRAMES + 1,
        figsize=(20, 1.9 * len(chosen) + 0.8),
        squeeze=False,
        gridspec_kw={"width_ratios": [1] * FRAMES + [2.6]},
    )
    figure.suptitle(
        f"{len(chosen)} of {len(folders)} clips. Outlines: masks, a colour for each person. Right: "
        f"level of each clean voice (filled, {RANGE:g} dB) and mouth opening (line) over seconds",
        fontsize=10,
        y=1 - 0.1 / figure.get_figheight(),
    )
    for row, folder in zip(axes, chosen, strict=True):
        _draw_row(row, folder)
    high = figure.get_figheight()
    figure.subplots_adjust(0.01, 0.3 / high, 0.99, 1 - 0.6 / high, wspace=0.08, hspace=0.35)
    with write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=80)
    pyplot.close(figure)


def _draw_row(row: Any, folder: Path) -> None:
    truth = read_json(folder / "truth.json")
    rate = truth["frame_rate"]
    wanted = np.linspace(0, truth["frames"] - 1, FRAMES).round().astype(int).tolist()
    with av.open(f"file:{folder / folder.name}.mp4") as container:
        frames = enumerate(container.decode(video=0))
        images = {n: f.to_ndarray(format="rgb24") for n, f in frames if n in wanted}
    for axis, number in zip(row, wanted, strict=False):
        mask = np.asarray(Image.open(folder / "masks" / f"{number:04d}.png"))
        axis.imshow(_outlined(images[number], mask))
        axis.set_title(f"{number / rate:.2f} s", fontsize=8, pad=2)
        axis.axis("off")
    axis = row[FRAMES]
    times = np.arange(truth["frames"]) / rate
    for number, person in enumerate(truth["people"]):
        path = os.fsencode(folder / person["voice"])
        waveform, sample_rate = soundfile.read(path, dtype="float32")
        hop = round(sample_rate / rate)
        level = levels(waveform, hop)
        loud = np.clip(1 + (level - max(level.max(), -60)) / RANGE, 0, 1)
        base, colour = -1.1 * number, COLOURS[number % len(COLOURS)]
        middles = (np.arange(len(loud)) + 0.5) * hop / sample_rate
        axis.fill_between(middles, base, base + loud, color=colour, alpha=0.5)
        axis.plot(times, base + np.array(person["mouth_opening"]), color="black", linewidth=0.8)
        name = f"{number + 1}: {caption(person['speaker'], 40)}, {person['activity']}"
        box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1}
        axis.text(0.02, base + 0.97, name, fontsize=7, va="top", parse_math=False, bbox=box)
    axis.set_xlim(0, truth["seconds"])
    axis.set_ylim(-1.1 * max(len(truth["people"]) - 1, 0) - 0.05, 1.05)
    axis.set_yticks([])
    axis.tick_params(labelsize=7)
    shift = f", audio {truth['shift_ms']:+d} ms" if truth["shift_ms"] else ""
    words = f"{folder.name} ({truth['split']}): {caption(', '.join(truth['labels']))}{shift}"
    axis.set_title(words, fontsize=7, loc="left", pad=3, parse_math=False)


def _outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    edge = np.zeros(mask.shape, bool)
    down, right = mask[:-1] != mask[1:], mask[:, :-1] != mask[:, 1:]
    edge[:-1] |= down
    edge[1:] |= down
    edge[:, :-1] |= right
    edge[:, 1:] |= right
    drawn = image.copy()
    for value in np.unique(mask[mask > 0]):
        colour = matplotlib.colors.to_rgb(COLOURS[(int(value) - 1) // 2 % len(COLOURS)])
        drawn[edge & (mask == value)] = [int(255 * c) for c in colour]
    return drawn
