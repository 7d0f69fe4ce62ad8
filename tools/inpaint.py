"""`cavmae inpaint MODEL SHARDS --out FILE.png`: reconstructions of masked patches."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import torch

from cavmae.common.cli import fill, module_main, parse, parser
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import write_atomically
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.stream.stream import EvalStream
from cavmae.datasets.stream.transforms import IMAGENET_MEAN, IMAGENET_STD, DeviceTransform
from cavmae.pretrain.factory import load_model
from cavmae.pretrain.inpainting import Inpainting, inpaint
from cavmae.tools.retrieve import statistics_of, view_of

matplotlib.use("Agg")  # draws to files; needs no display

from matplotlib import pyplot

log = logging.getLogger("cavmae")
COLUMNS = ("original", "masked", "reconstructed")


@dataclasses.dataclass(frozen=True)
class InpaintSettings:
    """Options of masking and plots.

    Args:
        clips: number of clips, from the beginning of the data set.
        mask_ratio: fraction of the patches that are masked.
        mode: structure of the audio mask.
        norm_pix_loss: the model was trained on normalized patches, as the published ones were.
        statistics: fbank statistics: ``auto``, those of the model folder, else those of the data
            set; ``data``, those that `cavmae check` measured; ``audioset``, for published weights.
        seed: seed of the masks.
    """

    clips: int = 4
    mask_ratio: float = 0.75
    mode: Literal["unstructured", "time", "freq", "tf"] = "unstructured"
    norm_pix_loss: bool = True
    statistics: Literal["auto", "data", "audioset"] = "auto"
    seed: int = 0


def main(words: Sequence[str]) -> int:
    cli = parser("inpaint", "Reconstructions of masked patches of audio and video.")
    cli.add_argument("model", type=str, help="Folder of weights, or a name on the hub.")
    cli.add_argument("shards", type=str, help="Folder or URL of a data set.")
    cli.add_argument("--out", required=True, type=str, help="PNG file to write.")
    cli.add_class_arguments(InpaintSettings)
    options = parse(cli, words)
    settings = fill(InpaintSettings, options)
    if not 0 < settings.mask_ratio < 1 or settings.clips < 1:
        raise UsageError("--mask-ratio must lie between 0 and 1, --clips be at least 1.")
    model = load_model(options.model)
    statistics = statistics_of(options.model, options.shards, settings.statistics)
    view = view_of(model.config, "middle", options.model)
    stream = EvalStream(Manifest.load(options.shards), view, settings.clips)
    batch = next(iter(Loader(stream)), None)
    if batch is None:
        raise CavmaeError(f"{options.shards} has no readable clip.")
    batch = DeviceTransform(statistics).eval()(batch)
    torch.manual_seed(settings.seed)
    inpainting = inpaint(
        model,
        batch["fbank"],
        batch["frames"][:, 0],
        settings.mask_ratio,
        settings.mode,
        settings.norm_pix_loss,
    )
    draw(inpainting, batch["key"], Path(options.out))
    log.info("Wrote %s.", options.out)
    return 0


def draw(inpainting: Inpainting, keys: list[str], path: Path) -> None:
    """Plot a row for each clip: three images and three spectrograms; masked patches are grey."""
    figure, axes = pyplot.subplots(
        len(keys),
        6,
        figsize=(20, 2.3 * len(keys) + 0.6),
        squeeze=False,
        gridspec_kw={"width_ratios": [1, 1, 1, 2, 2, 2]},
    )
    mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    images = (inpainting.image, inpainting.image_masked, inpainting.image_rebuilt)
    spectrograms = (inpainting.audio, inpainting.audio_masked, inpainting.audio_rebuilt)
    colormap = matplotlib.colormaps["magma"].with_extremes(bad="0.6")
    for number, (row, key) in enumerate(zip(axes, keys, strict=True)):
        for axis, title, image in zip(row[:3], COLUMNS, images, strict=True):
            values = image[number].permute(1, 2, 0).numpy() * std + mean
            axis.imshow(np.where(np.isnan(values), 0.6, values).clip(0, 1))
            axis.axis("off")
            axis.set_title(title, fontsize=8)
        low, top = (float(x) for x in np.percentile(inpainting.audio[number], (1, 99.5)))
        for axis, title, spectrogram in zip(row[3:], COLUMNS, spectrograms, strict=True):
            axis.imshow(
                np.ma.masked_invalid(spectrogram[number].T.numpy()),
                origin="lower", aspect="auto", cmap=colormap, vmin=low, vmax=top,
                extent=(0, spectrogram.shape[1] / 100, 0, spectrogram.shape[2]),
            )  # fmt: skip
            axis.tick_params(labelsize=6)
            axis.set_title(f"{title}: mel bins over seconds", fontsize=8)
        row[0].set_title(f"{key}\n{COLUMNS[0]}", fontsize=6, parse_math=False)
    height = figure.get_figheight()  # inches
    figure.subplots_adjust(0.01, 0.3 / height, 0.99, 1 - 0.5 / height, wspace=0.12, hspace=0.4)
    with write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=80)
    pyplot.close(figure)


if __name__ == "__main__":
    module_main(main)
