"""What a model makes of some scenes, to be looked at: masks, and spectrograms beside the truth."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cavmae.common.files import write_atomically
from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.finetune.speaker.losses import loss_weights, targets_of
from cavmae.finetune.speaker.metrics import assign_slots, binary_masks
from cavmae.finetune.speaker.task import SpeakerTask, scale_of

COLOURS = ("#e69f00", "#56b4e9", "#cc79a7")  # of people, told apart by colour-blind eyes
RANGE_DB = 60.0


@torch.no_grad()
def draw_examples(task: SpeakerTask, batch: Batch, path: Path) -> None:
    """A row a scene: its middle key frame with everybody outlined (found: solid, true: dotted), the
    mixture's spectrogram, then of each person the true voice's and what was made of it.
    """
    inputs, target = task.inputs_of(batch, 0.0)
    looked, voices = task.predict(inputs)
    truth = targets_of(batch, target, scale_of(batch))
    waves, slots = assign_slots(looked, voices, truth, loss_weights(task.loss))
    size = truth.masks.shape[-2], truth.masks.shape[-1]
    found = torch.stack([binary_masks(masks, size) for masks in looked.masks[-1]])
    count = len(batch["key"])
    most = int(truth.people.present.sum(1).max())
    width, height = 3 + 2.2 * (1 + 2 * most), 2.1 * count + 0.3  # inches
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(count, 2 + 2 * most, squeeze=False)
    figure.subplots_adjust(
        left=0.1 / width, right=1 - 0.1 / width, bottom=0.5 / height, top=1 - 0.25 / height,
        wspace=0.15, hspace=0.25,
    )  # fmt: skip
    key = truth.masks.shape[2] // 2
    for row in range(count):
        mixture = truth.mixture[row]
        top = _levels(mixture).max()
        axes[row, 0].imshow(batch["frames"][row, key].cpu().numpy())
        _sound(axes[row, 1], mixture, top, "mixture")
        for person in range(most):
            true_axis, found_axis = axes[row, 2 + 2 * person], axes[row, 3 + 2 * person]
            if not truth.people.present[row, person]:
                true_axis.axis("off")
                found_axis.axis("off")
                continue
            slot, colour = int(slots[row, person]), COLOURS[person % len(COLOURS)]
            for mask, style in (
                (found[row, slot, key], "solid"), (truth.masks[row, person, key], "dotted"),
            ):  # fmt: skip
                values = mask.float().cpu().numpy()
                if values.any() and not values.all():
                    axes[row, 0].contour(values, [0.5], colors=colour, linestyles=style,
                                         linewidths=1.2)  # fmt: skip
            _sound(true_axis, truth.people.voices[row, person], top, "true", colour)
            _sound(found_axis, waves[row, slot], top, "found", colour)
        axes[row, 0].axis("off")
        axes[row, 0].set_title(f"scene {batch['key'][row]}", fontsize=7)
    legend = "seconds; kHz upwards; 60 dB from the mixture's loudest down"
    figure.supxlabel(legend, fontsize=8, y=0.1 / height)
    with write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=80)


def _levels(wave: Tensor) -> np.ndarray:
    window = torch.hann_window(512, device=wave.device)
    size = torch.stft(wave, 512, 160, window=window, return_complex=True).abs()
    levels: np.ndarray = (20 * torch.log10(size + 1e-6)).cpu().numpy()
    return levels


def _sound(axis: Axes, wave: Tensor, top: float, title: str, colour: str = "black") -> None:
    axis.imshow(
        _levels(wave), origin="lower", aspect="auto", cmap="magma", vmin=top - RANGE_DB, vmax=top,
        extent=(0, len(wave) / SAMPLE_RATE, 0, SAMPLE_RATE / 2000),
    )  # fmt: skip
    axis.set_title(title, fontsize=7, color=colour)
    axis.tick_params(labelsize=5)
