"""Example plots of predicted masks and spectrograms, with their targets."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cavmae.common.files import write_atomically
from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.finetune.speaker.losses import targets_of
from cavmae.finetune.speaker.metrics import assign_slots, binary_masks
from cavmae.finetune.speaker.task import SpeakerTask, scale_of

COLORS = ("#e69f00", "#56b4e9", "#cc79a7")  # of people; safe for colour-blind readers
RANGE_DB = 60.0


@torch.no_grad()
def draw_examples(task: SpeakerTask, batch: Batch, path: Path) -> None:
    """Plot example scenes, a row each.

    Columns: the middle key frame with outlined masks (predicted: solid, true: dotted), the
    mixture's spectrogram, then for each person the spectrograms of true and predicted voice.
    """
    inputs, target = task.inputs_of(batch, 0.0)
    slot_predictions, voice_predictions = task.predict(inputs)
    targets = targets_of(batch, target, scale_of(batch))
    waves, slots = assign_slots(slot_predictions, voice_predictions, targets, task.loss)
    size = targets.masks.shape[-2], targets.masks.shape[-1]
    predicted_masks = torch.stack(
        [binary_masks(masks, size) for masks in slot_predictions.masks[-1]]
    )
    count = len(batch["key"])
    max_people = int(targets.people.present.sum(1).max())
    width, height = 3 + 2.2 * (1 + 2 * max_people), 2.1 * count + 0.3  # inches
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(count, 2 + 2 * max_people, squeeze=False)
    figure.subplots_adjust(
        left=0.1 / width, right=1 - 0.1 / width, bottom=0.5 / height, top=1 - 0.25 / height,
        wspace=0.15, hspace=0.25,
    )  # fmt: skip
    key = targets.masks.shape[2] // 2
    for row in range(count):
        mixture = targets.mixture[row]
        top = _levels(mixture).max()
        axes[row, 0].imshow(batch["frames"][row, key].cpu().numpy())
        _spectrogram(axes[row, 1], mixture, top, "mixture")
        for person in range(max_people):
            true_axis, predicted_axis = axes[row, 2 + 2 * person], axes[row, 3 + 2 * person]
            if not targets.people.present[row, person]:
                true_axis.axis("off")
                predicted_axis.axis("off")
                continue
            slot, color = int(slots[row, person]), COLORS[person % len(COLORS)]
            for mask, style in (
                (predicted_masks[row, slot, key], "solid"),
                (targets.masks[row, person, key], "dotted"),
            ):  # fmt: skip
                values = mask.float().cpu().numpy()
                if values.any() and not values.all():
                    axes[row, 0].contour(values, [0.5], colors=color, linestyles=style,
                                         linewidths=1.2)  # fmt: skip
            _spectrogram(true_axis, targets.people.voices[row, person], top, "true", color)
            _spectrogram(predicted_axis, waves[row, slot], top, "predicted", color)
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


def _spectrogram(axis: Axes, wave: Tensor, top: float, title: str, color: str = "black") -> None:
    axis.imshow(
        _levels(wave), origin="lower", aspect="auto", cmap="magma", vmin=top - RANGE_DB, vmax=top,
        extent=(0, len(wave) / SAMPLE_RATE, 0, SAMPLE_RATE / 2000),
    )  # fmt: skip
    axis.set_title(title, fontsize=7, color=color)
    axis.tick_params(labelsize=5)
