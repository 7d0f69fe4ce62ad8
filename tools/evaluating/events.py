"""Metrics of an event classifier on a data set: measurement, tables and files."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from cavmae.common.cli import output
from cavmae.common.device import device_of, to_device
from cavmae.common.errors import CavmaeError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import json_bytes
from cavmae.common.progress import Progress
from cavmae.common.quoting import caption, visible
from cavmae.common.tables import markdown_table
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.stream.base import data_set_digest
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.stream.shard_reader import Access
from cavmae.datasets.stream.stream import EvalStream
from cavmae.finetune.events.conditions import Conditions, frames_text
from cavmae.finetune.events.data import check_frame_rate, event_view
from cavmae.finetune.events.labels import ClassList, check_labels, class_list
from cavmae.finetune.events.metrics import EventMetrics, event_metrics
from cavmae.finetune.events.model import uses_video
from cavmae.finetune.inference.event_files import EVENTS
from cavmae.finetune.inference.event_model import (
    FIGURES,
    checked_frames,
    checked_mode,
    load_task,
    weights_text,
)
from cavmae.tools.evaluate import EvaluateSettings
from cavmae.tools.evaluating.measure import finite
from cavmae.tools.evaluating.out_folder import prepare_out
from cavmae.tools.evaluating.weights_hash import weights_sha256

log = logging.getLogger("cavmae")
MOST_ROWS = 30  # classes of a table that is printed, and names beside a confusion matrix


def measure_events(shards: str, settings: EvaluateSettings) -> int:
    """Measures a classifier, prints the tables, and writes ``settings.out``.

    Returns:
        exit code 0.

    Raises:
        UsageError: options that do not go with the model.
        CavmaeError: the model, the labels or the shards cannot be used.
    """
    device = device_of(settings.device)
    task = load_task(settings.model).to(device).eval()
    config = task.model.config
    mode = checked_mode(settings.mode, config)
    frames = checked_frames(settings.frames, mode, config)
    manifest, access = Manifest.load(shards), Access()
    classes = class_list(settings.labels, [manifest], config.classes)
    check_labels(manifest, classes, access, config.multi_label)
    if uses_video(mode):
        check_frame_rate(manifest, config, access)
    conditions = Conditions(mode, frames_text(mode, frames, config), weights_text(settings.model))
    identity = {
        "weights_sha256": weights_sha256(settings.model),
        "data_digest": data_set_digest(manifest),
        "classes_sha256": hashlib.sha256("\0".join(classes.names).encode()).hexdigest(),
        "conditions": conditions._asdict(),
    }
    if settings.out:
        prepare_out(Path(settings.out), EVENTS, identity)
    view = event_view(config, mode, task.transform.padding, frames=frames)
    stream = EvalStream(
        manifest, view, settings.batch_size, labels=classes.names, label_ids=classes.ids,
        access=access,
    )  # fmt: skip
    probs, labels, short = [], [], 0
    with Progress(stream.samples, "clip") as progress:
        for batch in Loader(stream, settings.workers):
            probs.append(task.probs(to_device(batch, device), mode).mean(dim=1).cpu())
            labels.append(batch["labels"])
            short += _clips_with_repeated_frames(batch.get("frame_times"))
            for _ in batch["key"]:
                progress.done()
    if not probs:
        raise CavmaeError(f"No clip of {shards} could be read: run `cavmae check {shards}`.")
    if short:
        log.warning(
            "%d clips have fewer than %d frames: some of theirs count twice.", short, frames
        )
    metrics = event_metrics(torch.cat(probs), torch.cat(labels))
    text = figures_table(metrics, conditions, len(torch.cat(labels)))
    per_class = classes_table(metrics, classes.names)
    output(visible(text, keep="\n"))
    if len(classes.names) <= MOST_ROWS:
        output(visible(f"\n{per_class}", keep="\n"))
    if settings.out:
        _write(
            Path(settings.out), metrics, classes, conditions, f"{text}\n\n{per_class}", settings,
            shards, len(torch.cat(labels)), identity,
        )  # fmt: skip
    return 0


def _clips_with_repeated_frames(frame_times: Tensor | None) -> int:
    """Number of clips of a batch with a frame twice: float [clips, frames], in order of time."""
    if frame_times is None:
        return 0
    return int((frame_times.diff(dim=1) == 0).any(dim=1).sum())


def figures_table(metrics: EventMetrics, conditions: Conditions, clips: int) -> str:
    """Markdown table of the metrics, each beside its conditions."""
    summary = metrics.summary()
    rows = [
        [label, f"{summary[name]:.4f}" if name in summary else "-", *conditions]
        for name, label in FIGURES.items()
    ]
    measured = sum(n > 0 for n in metrics.positives)
    head = [f"{clips} clips, {measured} of {len(metrics.positives)} classes", "value", "mode"]
    return markdown_table([*head, "frames", "weights"], rows, (0, 2, 3, 4))


def classes_table(metrics: EventMetrics, names: Sequence[str]) -> str:
    """Markdown table of AP and AUC of each class; ``-``: no clips of both kinds."""
    rows = [
        [visible(name).replace("|", "\\|"), str(clips), _cell(ap), _cell(auc)]
        for name, clips, ap, auc in zip(
            names, metrics.positives, metrics.ap, metrics.auc, strict=True
        )
    ]
    return markdown_table(["class", "clips", "AP", "AUC"], rows)


def _cell(value: float) -> str:
    return "-" if value != value else f"{value:.4f}"


def _write(
    out: Path,
    metrics: EventMetrics,
    classes: ClassList,
    conditions: Conditions,
    text: str,
    settings: EvaluateSettings,
    shards: str,
    clips: int,
    identity: Mapping[str, Any],
) -> None:
    beside = conditions._asdict()
    summary = metrics.summary()
    rows = zip(classes.names, metrics.positives, metrics.ap, metrics.auc, strict=True)
    record: dict[str, Any] = {
        "model": settings.model,
        **identity,
        "data": shards,
        "clips": clips,
        "figures": {name: {"value": summary.get(name), **beside} for name in FIGURES},
        "classes": [
            {"name": name, "clips": clips, "ap": ap, "auc": auc} for name, clips, ap, auc in rows
        ],
        "confusion": metrics.confusion.tolist(),
    }
    with write_atomically(out / EVENTS) as file:
        file.write(json_bytes(finite(record), indent=1))
    with write_atomically(out / "table.md") as file:
        file.write(f"{text}\n".encode())
    draw_confusion(metrics.confusion, classes.names, conditions, out / "confusion.png")
    log.info("Wrote %s.", out)


def draw_confusion(
    confusion: Tensor, names: Sequence[str], conditions: Conditions, path: Path
) -> None:
    """Plots a confusion matrix, each row as shares of its clips, and writes a PNG.

    Args:
        confusion: int [K, K], true class by most probable class.
        names: of the classes.
        conditions: of the evaluation.
        path: of the PNG.
    """
    size = min(16.0, 4.0 + 0.3 * len(names))
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axis = figure.subplots()
    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    image = axis.imshow(shares.numpy(), vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, label="share of the clips of a class", shrink=0.8)
    if len(names) <= MOST_ROWS:
        ticks = range(len(names))
        captions = [caption(name, 24) for name in names]
        axis.set_xticks(ticks, captions, rotation=90, parse_math=False)
        axis.set_yticks(ticks, captions, parse_math=False)
    axis.set_xlabel("most probable class")
    axis.set_ylabel("class")
    title = "; ".join(f"{name}: {value}" for name, value in conditions._asdict().items())
    axis.set_title(title, fontsize="small")
    with write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=120)
