"""`cavmae retrieve MODEL SHARDS`: audio-video retrieval; features of many clips."""

import dataclasses
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save as save_tensors

from cavmae.common.cli import fill, module_main, output, parse, parser
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import json_bytes
from cavmae.common.progress import Progress
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.stream.features import FRAME_RATE
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.stream.stream import EvalStream
from cavmae.datasets.stream.transforms import DeviceTransform, Statistics
from cavmae.datasets.stream.view import View
from cavmae.pretrain.config import CAVMAEConfig
from cavmae.pretrain.factory import load_model, read_preprocessing
from cavmae.pretrain.model import CAVMAE
from cavmae.pretrain.retrieval import Features, extract, retrieval

log = logging.getLogger("cavmae")
WHOLE_CLIP = 1000  # fbank frames from which on a model takes whole clips, padded or cropped


@dataclasses.dataclass(frozen=True)
class RetrieveSettings:
    """Options of retrieval and of its output files.

    Args:
        frames: the ``middle`` frame of a clip, or ``all`` frames with averaged features.
        statistics: fbank statistics: ``auto``, those of the model folder, else those of the data
            set; ``data``, those that `cavmae check` measured; ``audioset``, for published weights.
        batch: clips of a batch.
        workers: processes that load clips.
        device: ``auto``: a GPU if there is one.
        centred: subtract the mean of all clips from the features; ``auto``: if the model was
            trained so (`objective.center_embeddings`).
        json: also write the metrics to this file.
        features: also write the features to this file: .safetensors (``audio``, ``video``), or .npy
            (audio, then video); the keys go to a .keys.txt beside it.
    """

    frames: Literal["middle", "all"] = "middle"
    statistics: Literal["auto", "data", "audioset"] = "auto"
    batch: int = 32
    workers: int = 0
    device: str = "auto"
    centred: Literal["auto", "yes", "no"] = "auto"
    json: str | None = None
    features: str | None = None


def view_of(config: CAVMAEConfig, frames: Literal["middle", "all"], model: str) -> View:
    """View of a clip for a model: its middle, or the whole clip for models of 10 s.

    Args:
        config: shape of the model.
        frames: the ``middle`` frame, or ``all``.
        model: folder or name of the model; a folder may set the padding of short clips.
    """
    count = config.audio_size[1]
    window = None if count >= WHOLE_CLIP else count / FRAME_RATE
    return View(
        fbank_frames=count,
        padding=(read_preprocessing(model) or {}).get("padding", "zero"),
        frames=frames,
        window=window,
        random_window=False,
        frame_size=config.image_size,
    )


def statistics_of(
    model: str, shards: str, which: Literal["auto", "data", "audioset"]
) -> Statistics:
    """Fbank statistics for a model: see :class:`RetrieveSettings`.

    Raises:
        CavmaeError: the statistics are missing or damaged.
    """
    if which == "audioset":
        return Statistics()
    trained = read_preprocessing(model) if which == "auto" else None
    if trained is None:
        return Statistics.load(shards)
    return Statistics(trained["fbank_mean"], trained["fbank_std"])


def main(words: Sequence[str]) -> int:
    cli = parser("retrieve", "Audio-video retrieval between the clips of a data set.")
    cli.add_argument("model", type=str, help="Folder of weights, or a name on the hub.")
    cli.add_argument("shards", type=str, help="Folder or URL of a data set.")
    cli.add_class_arguments(RetrieveSettings)
    options = parse(cli, words)
    settings = fill(RetrieveSettings, options)
    if settings.batch < 1 or settings.workers < 0:
        raise UsageError("--batch must be at least 1, --workers at least 0.")
    if settings.features and Path(settings.features).suffix not in (".npy", ".safetensors"):
        raise UsageError(f"--features {settings.features}: end the name with .npy or .safetensors.")
    model = load_model(options.model)
    features = _extract(model, options.model, options.shards, settings)
    if settings.features:
        _save_features(Path(settings.features), features)
    trained = read_preprocessing(options.model) or {}
    centred = {"yes": True, "no": False}.get(
        settings.centred, trained.get("center_embeddings", False)
    )
    scores = retrieval(features.normalized(centred))
    output(table(scores, len(features.keys)))
    if settings.json:
        with write_atomically(Path(settings.json)) as file:
            record = {"clips": len(features.keys), **scores}
            file.write(json_bytes(record, indent=1))
    return 0


def _extract(model: CAVMAE, name: str, shards: str, settings: RetrieveSettings) -> Features:
    manifest = Manifest.load(shards)
    statistics = statistics_of(name, shards, settings.statistics)
    device_name = settings.device
    if device_name == "auto":
        device_name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device_name)
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device {device_name} cannot be used: {str(error).splitlines()[0]}"
        ) from error
    transform = DeviceTransform(statistics).to(device).eval()
    stream = EvalStream(manifest, view_of(model.config, settings.frames, name), settings.batch)
    loader = Loader(stream, workers=settings.workers)

    def batches() -> Iterator[dict[str, Any]]:
        with Progress(manifest.samples, "clip") as progress:
            for batch in loader:
                moved = {
                    k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()
                }
                yield transform(moved)
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
    lines = [
        f"| {clips} clips | {' | '.join(names)} |",
        "|---|" + "---:|" * len(names),
    ]
    for direction, values in scores.items():
        cells = [f"{v:.1%}" if n.startswith("recall") else f"{v:g}" for n, v in values.items()]
        lines.append(f"| {direction} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    module_main(main)
