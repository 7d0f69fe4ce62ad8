"""Sheet of reconstructions: original, masked and reconstructed clips."""

import logging
from pathlib import Path

import matplotlib
import numpy as np
import torch

from cavmae.common.errors import CavmaeError
from cavmae.common.files import write_atomically
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.stream.stream import EvalStream
from cavmae.datasets.stream.transforms import IMAGENET_MEAN, IMAGENET_STD, DeviceTransform
from cavmae.pretrain.factory import load_model
from cavmae.pretrain.inpainting import Inpainting, inpaint
from cavmae.tools.evaluating.retrieving import statistics_of, view_of
from cavmae.tools.inpaint import InpaintSettings

matplotlib.use("Agg")  # draws to files; needs no display

from matplotlib import pyplot

log = logging.getLogger("cavmae")
COLUMNS = ("original", "masked", "reconstructed")


def draw_reconstructions(name: str, shards: str, out: str, settings: InpaintSettings) -> int:
    """Reconstructs the first clips of a data set and draws them.

    Args:
        name: folder of weights, or a name on the hub.
        shards: folder or URL of a data set.
        out: PNG file.
        settings: options.

    Returns:
        exit code 0.

    Raises:
        CavmaeError: the model or the shards cannot be used.
    """
    model = load_model(name)
    statistics = statistics_of(name, shards, settings.statistics)
    view = view_of(model.config, "middle", name)
    stream = EvalStream(Manifest.load(shards), view, settings.clips)
    batch = next(iter(Loader(stream)), None)
    if batch is None:
        raise CavmaeError(f"{shards} has no readable clip.")
    batch = DeviceTransform(statistics).eval()(batch)
    torch.manual_seed(settings.seed)
    inpainting = inpaint(
        model,
        batch["fbank"],
        batch["frames"].flatten(0, 1),
        settings.mask_ratio,
        settings.mode,
        settings.norm_pix_loss,
    )
    draw(inpainting, batch["key"], Path(out))
    log.info("Wrote %s.", out)
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
    frames = len(inpainting.image) // len(keys)
    images = [  # the middle frame of each clip
        x[frames // 2 :: frames]
        for x in (inpainting.image, inpainting.image_masked, inpainting.image_rebuilt)
    ]
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
