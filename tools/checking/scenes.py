"""Sheet of composed scenes: inputs of fine-tuning and their ground truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")  # a file is drawn, no window

from matplotlib import pyplot

from cavmae.common.errors import CavmaeError, SampleError
from cavmae.common.files import write_atomically
from cavmae.common.quoting import caption
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.mixtures.composer import Scene
from cavmae.datasets.mixtures.scene_spec import ComposeSettings, SceneSpec
from cavmae.datasets.mixtures.scene_stream import ComposedStream
from cavmae.datasets.stream.features import SAMPLE_RATE, fbank
from cavmae.datasets.stream.shard_reader import Access
from cavmae.tools.checking.sheet import MASK_COLOURS

KEYS = 3  # key frames in a row
MOTION = 112  # height of the grey frames
SOFTEST = -12.0  # lower end of the scale of log-mel energies


def draw_scenes(
    manifest: Manifest, access: Access, compose: ComposeSettings, count: int, seed: int, path: Path
) -> int:
    """Draw the first scenes of a training run with this seed.

    Returns:
        number of scenes drawn; scenes with broken clips are left out.

    Raises:
        CavmaeError: the data set has too few people for such scenes, or all of them are broken.
    """
    width = max(16, round(MOTION * compose.width / compose.height / 4) * 4)
    stream = ComposedStream(manifest, compose, (MOTION, width), KEYS, 1, seed=seed, access=access)
    drawn: list[tuple[str, SceneSpec, Scene]] = []
    for number in range(min(count, stream.samples)):
        recipe = stream.spec(0, number)
        try:
            drawn.append((f"0-{number}", recipe, stream.composer.compose(recipe)))
        except SampleError:
            continue
    if not drawn:
        raise CavmaeError(f"{manifest.folder}: every scene tried has a broken clip; see above.")
    most = max(len(scene.voices) for _, _, scene in drawn)
    columns = KEYS + 2 + most
    figure, axes = pyplot.subplots(
        len(drawn), columns, figsize=(2.6 * columns, 2.3 * len(drawn) + 0.7), squeeze=False
    )
    figure.suptitle(
        f"{caption(manifest.folder)}: scenes as training composes them. Key frames, each person's "
        "visible pixels in a colour; log-mel filter banks (128 bins over seconds) of the mixture, "
        "of every person's voice in it, of the rest",
        fontsize=10,
        y=1 - 0.1 / figure.get_figheight(),
        parse_math=False,
    )
    for row, (key, recipe, scene) in zip(axes, drawn, strict=True):
        _draw_scene(row, key, recipe, scene, most)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.4 / figure.get_figheight()))
    with write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=80)
    pyplot.close(figure)
    stream.pool.close()
    return len(drawn)


def _draw_scene(axes: Sequence[Any], key: str, recipe: SceneSpec, scene: Scene, most: int) -> None:
    for number in range(KEYS):
        image = scene.frames[number].astype(np.float32)
        for person, mask in enumerate(scene.masks[:, number]):
            image[mask] = 0.6 * image[mask] + 0.4 * MASK_COLOURS[person]
        axes[number].imshow(image.astype(np.uint8))
        axes[number].set_xticks([])
        axes[number].set_yticks([])
    noise = f", {recipe.noise} noise" if recipe.noise else ""
    people = f"cue: {recipe.target + 1}" if recipe.people else "no people"
    occluders = f", {len(recipe.occluders)} in front" if recipe.occluders else ""
    axes[0].set_title(f"{key}: {recipe.kind}{noise}, {people}{occluders}", fontsize=8)
    _draw_audio(axes[KEYS], scene.mixture, "mixture", "black")
    for person, voice in enumerate(scene.voices):
        level = recipe.people[person].level_db
        loudness = "silent" if level is None else f"{level:+.1f} dB"
        mask = "" if scene.masked[person] else ", no mask"
        colour = tuple(MASK_COLOURS[person] / 255)
        _draw_audio(
            axes[KEYS + 1 + person], voice, f"person {person + 1}: {loudness}{mask}", colour
        )
    for column in range(len(scene.voices), most):
        axes[KEYS + 1 + column].axis("off")
    _draw_audio(axes[-1], scene.residual, f"rest: {len(recipe.unseen)} unseen", "black")


def _draw_audio(axis: Any, waveform: np.ndarray, title: str, colour: Any) -> None:
    image = fbank(torch.from_numpy(waveform)).T.numpy()
    seconds = len(waveform) / SAMPLE_RATE
    axis.imshow(
        image, origin="lower", aspect="auto", vmin=SOFTEST, vmax=2, extent=(0, seconds, 0, 128)
    )
    axis.set_title(title, fontsize=8, color=colour)
    axis.tick_params(labelsize=6)
