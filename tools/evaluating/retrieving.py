"""Retrieval between the audio and the video of clips: features, metrics and files."""

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save as save_tensors

from cavmae.common.cli import output
from cavmae.common.device import device_of, to_device
from cavmae.common.errors import CavmaeError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import json_bytes
from cavmae.common.progress import Progress
from cavmae.common.tables import markdown_table
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.stream.features import FBANK_RATE
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.stream.stream import EvalStream
from cavmae.datasets.stream.transforms import DeviceTransform, Statistics
from cavmae.datasets.stream.view import View
from cavmae.pretrain.config import CAVMAEConfig
from cavmae.pretrain.factory import load_model, read_preprocessing
from cavmae.pretrain.model import CAVMAE
from cavmae.pretrain.retrieval import Features, extract, retrieval
from cavmae.tools.retrieve import RetrieveSettings, StatisticsSource

log = logging.getLogger("cavmae")
WHOLE_CLIP = 1000  # fbank frames from which on a model takes whole clips, padded or cropped


def view_of(config: CAVMAEConfig, frames: Literal["middle", "all"], model: str) -> View:
    """View of a clip for a model: its middle, or the whole clip for models of 10 s.

    Args:
        config: shape of the model.
        frames: the ``middle`` frame, or ``all``; of a model of several frames as many as it takes,
            evenly spaced.
        model: folder or name of the model; a folder may set the padding of short clips.
    """
    count = config.audio_size[1]
    window = None if count >= WHOLE_CLIP else count / FBANK_RATE
    return View(
        fbank_frames=count,
        padding=(read_preprocessing(model) or {}).get("padding", "zero"),
        frames=config.frames if config.frames > 1 else frames,
        window=window,
        random_window=False,
        frame_size=config.image_size,
    )


def statistics_of(model: str, shards: str, which: StatisticsSource) -> Statistics:
    """Fbank statistics for a model: see :class:`~cavmae.tools.retrieve.FbankStatisticsSettings`.

    Raises:
        CavmaeError: the statistics are missing or damaged.
    """
    if which == "audioset":
        return Statistics()
    trained = read_preprocessing(model) if which == "auto" else None
    if trained is None:
        return Statistics.load(shards)
    return Statistics(trained["fbank_mean"], trained["fbank_std"])


def retrieve(name: str, shards: str, settings: RetrieveSettings) -> int:
    """Extracts the features of all clips, prints the metrics, and writes the files.

    Features are centered if the model was trained so (``objective.center_embeddings``).

    Args:
        name: folder of weights, or a name on the hub.
        shards: folder or URL of a data set.
        settings: options.

    Returns:
        exit code 0.

    Raises:
        CavmaeError: the model or the shards cannot be used.
    """
    model = load_model(name)
    features = _extract(model, name, shards, settings)
    if settings.features:
        _save_features(Path(settings.features), features)
    centered = bool((read_preprocessing(name) or {}).get("center_embeddings", False))
    scores = retrieval(features.normalized(centered))
    output(table(scores, len(features.keys)))
    if settings.json:
        with write_atomically(Path(settings.json)) as file:
            record = {"clips": len(features.keys), **scores}
            file.write(json_bytes(record, indent=1))
    return 0


def _extract(model: CAVMAE, name: str, shards: str, settings: RetrieveSettings) -> Features:
    manifest = Manifest.load(shards)
    statistics = statistics_of(name, shards, settings.statistics)
    device = device_of(settings.device)
    model.to(device)
    transform = DeviceTransform(statistics).to(device).eval()
    stream = EvalStream(manifest, view_of(model.config, settings.frames, name), settings.batch_size)
    loader = Loader(stream, workers=settings.workers)

    def batches() -> Iterator[dict[str, Any]]:
        with Progress(manifest.samples, "clip") as progress:
            for batch in loader:
                yield transform(to_device(batch, device))
                for _ in batch["key"]:
                    progress.done()

    features = extract(model, batches(), device)
    if loader.broken:
        log.warning("Broken samples left out: %s.", dict(loader.broken))
    if not features.keys:
        raise CavmaeError(f"{shards} has no readable clip.")
    return features


def _save_features(path: Path, features: Features) -> None:
    with write_atomically(path.with_suffix(".keys.txt")) as file:
        file.write("".join(f"{key}\n" for key in features.keys).encode())
    with write_atomically(path) as file:
        if path.suffix == ".npy":
            buffer = io.BytesIO()
            np.save(buffer, torch.cat([features.audio, features.video], dim=1).numpy())
            file.write(buffer.getvalue())
        else:
            file.write(save_tensors({"audio": features.audio, "video": features.video}))


def table(scores: dict[str, dict[str, float]], clips: int) -> str:
    """Markdown table of the retrieval metrics."""
    names = list(next(iter(scores.values())))
    rows = []
    for direction, values in scores.items():
        cells = [f"{v:.1%}" if n.startswith("recall") else f"{v:g}" for n, v in values.items()]
        rows.append([direction, *cells])
    return markdown_table([f"{clips} clips", *names], rows)
