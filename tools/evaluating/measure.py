"""Metrics of a speaker model on a fixed list of scenes: measurement, table and files."""

import csv
import dataclasses
import importlib.util
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cavmae.common.cli import output
from cavmae.common.device import device_of, to_device
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import sha256_of, write_atomically
from cavmae.common.json_files import json_bytes
from cavmae.common.progress import Progress
from cavmae.common.tables import markdown_table
from cavmae.datasets.mixtures.scene_stream import FixedSceneStream
from cavmae.datasets.mixtures.voice_pairs import PairedScene, paired_scenes
from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.loader import Loader
from cavmae.finetune.speaker.cues import CueKind
from cavmae.finetune.speaker.evaluation import WAYS, EvaluationResult, evaluate
from cavmae.finetune.speaker.factory import load_speaker
from cavmae.finetune.speaker.metric_table import METRICS
from cavmae.finetune.speaker.metrics import SceneMetrics, summary
from cavmae.finetune.speaker.scene_lists import listed_stream
from cavmae.finetune.speaker.settings import LossSettings
from cavmae.finetune.speaker.task import SpeakerTask
from cavmae.tools.evaluate import EvaluateSettings
from cavmae.tools.evaluating.examples import draw_examples
from cavmae.tools.evaluating.out_folder import MEASURES, prepare_out
from cavmae.tools.evaluating.plots import draw
from cavmae.tools.evaluating.weights_hash import weights_sha256

log = logging.getLogger("cavmae")


def measure(shards: str, settings: EvaluateSettings) -> int:
    """Measures a model, prints the table, and writes ``settings.out``.

    Returns:
        exit code 0.

    Raises:
        UsageError: there is no list, or none of its scenes has a cue of the kind asked for.
        CavmaeError: the model, the list or the shards cannot be used.
    """
    if not settings.list:
        raise UsageError("Name the list of scenes: --list FILE; `cavmae make-scenes` draws one.")
    model, statistics = load_speaker(settings.model)
    if settings.hints and not model.config.classes:
        raise UsageError(f"--hints: {settings.model} has no classes; leave it out.")
    identity = {
        "weights_sha256": weights_sha256(settings.model),
        "list_sha256": _list_sha256(Path(settings.list)),
        "cue": settings.cue,
        "hints": settings.hints,
        "references": settings.references,
    }
    if settings.out:
        prepare_out(Path(settings.out), MEASURES, identity)
    device = device_of(settings.device)
    task = SpeakerTask(model, LossSettings(), statistics).to(device).eval()
    stream = listed_stream(settings.list, shards, model.config, settings.batch_size)
    pairs = {f"{number:05d}": pair for number, pair in paired_scenes(stream.specs).items()}
    groups = _voice_groups(pairs)
    if settings.people:
        groups |= _sex_groups(Path(settings.people), stream)
    loader = Loader(stream, settings.workers)

    first: list[Batch] = []

    def batches() -> Iterator[Batch]:
        with Progress(stream.samples, "scene") as progress:
            for batch in loader:
                moved = to_device(batch, device)
                if not first:
                    first.append(moved)
                yield moved
                for _ in batch["key"]:
                    progress.done()

    cue: CueKind = settings.cue
    ways = WAYS if settings.references else WAYS[:1]
    quality_metrics = _quality_metrics()
    cued = cue != "none"
    diarization = _is_installed("pyannote.metrics")
    result = evaluate(
        task, batches(), ways, cue, quality_metrics, settings.hints, pairs, diarization and not cued
    )
    if cued and not any(p.is_target for scene in result.scenes["model"] for p in scene.people):
        raise UsageError(
            f"No person in {settings.list} has a cue of the kind {cue}: such cues are made of "
            f"{'other recordings of the same people' if cue == 'voice' else 'masks'}."
        )
    columns = _columns(result, groups, cued)
    text = table(result, columns, cued)
    text += f"\n\nReal-time factor of the model: {result.real_time:.3f} ({device})."
    if "pesq" not in quality_metrics:
        text += "\n\nPESQ is missing: it needs a compiler to install (`pip install cavmae[pesq]`)."
    if not diarization:
        text += (
            "\n\nDiarization error rates are missing: install them (`pip install cavmae[eval]`)."
        )
    elif cued:
        text += "\n\nDiarization error rates are of all people: measure them without --cue."
    output(text)
    if settings.out:
        _write(Path(settings.out), result, groups, columns, text, settings, identity)
        draw_examples(task, first[0], Path(settings.out) / "examples.png")
    return 0


def _list_sha256(path: Path) -> str | None:
    """Hash of a list of scenes; None: it cannot be read, which its reader says."""
    try:
        return sha256_of(path)
    except OSError:
        return None


def _quality_metrics() -> list[str]:
    """Names of the installed quality metrics."""
    return ["stoi", "pesq"] if _is_installed("pesq") else ["stoi"]


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        return False


def _voice_groups(pairs: Mapping[str, PairedScene]) -> dict[str, list[str]]:
    """Keys of the paired scenes with the person's own voice, and of those with another voice."""
    groups: dict[str, list[str]] = {}
    for key, pair in pairs.items():
        groups.setdefault("own voice" if pair.own_voice else "other voice", []).append(key)
    return groups


def _sex_groups(path: Path, stream: FixedSceneStream) -> dict[str, list[str]]:
    """Keys of the scenes with two audible people of the same sex, and of different sex."""
    try:
        with path.open(newline="") as file:
            sexes = {row["speaker"]: row["sex"] for row in csv.DictReader(file)}
    except (OSError, KeyError, csv.Error) as error:
        raise CavmaeError(f"{path} is no table with columns speaker and sex ({error}).") from error
    groups: dict[str, list[str]] = {}
    pool = stream.pool
    for number, recipe in enumerate(stream.specs):
        audible = [p for p in recipe.people if p.level_db is not None]
        person_sexes = [sexes.get(pool.clips[pool.index_of[p.clip]].person) for p in audible]
        if len(person_sexes) == 2 and None not in person_sexes:
            group = "same sex" if person_sexes[0] == person_sexes[1] else "different sex"
            groups.setdefault(group, []).append(f"{number:05d}")
    return groups


def _columns(
    result: EvaluationResult, groups: Mapping[str, Sequence[str]], cued: bool
) -> dict[str, dict[str, float]]:
    """Summary of each way of evaluation, and of the model on each group of scenes.

    Args:
        result: metrics of all scenes.
        groups: keys of the scenes of each group.
        cued: only cued people and their scenes count.
    """
    columns: dict[str, dict[str, float]] = {
        way: summary(way_scenes, cued) for way, way_scenes in result.scenes.items() if way_scenes
    }
    for group, keys in sorted(groups.items()):
        members = set(keys)
        chosen = [s for s in result.scenes["model"] if s.key in members]
        columns[group] = summary(_counted(chosen, cued), cued)
    return columns


def _counted(scenes: Sequence[SceneMetrics], cued: bool) -> Sequence[SceneMetrics]:
    """Scenes that count: with a cue, those whose target has a cue."""
    return [s for s in scenes if any(p.is_target for p in s.people)] if cued else scenes


def table(result: EvaluationResult, columns: Mapping[str, Mapping[str, float]], cued: bool) -> str:
    """Markdown table of all metrics.

    Args:
        result: metrics of all scenes.
        columns: summary of each way and group.
        cued: only scenes with a cue count.
    """
    rows = []
    for name, metric in METRICS.items():
        values = [column.get(name) for column in columns.values()]
        if any(value is not None for value in values):
            cells = ["-" if value is None else f"{value:.{metric.digits}f}" for value in values]
            rows.append([metric.label, *cells])
    for name, value in result.dependence.items():
        empty_cells = [""] * (len(columns) - 1)
        rows.append([f"masks that change, audio {name}", f"{value:.3f}", *empty_cells])
    count = len(_counted(result.scenes["model"], cued))
    return markdown_table([f"{count} scenes", *columns], rows)


def finite(value: Any) -> Any:
    """Replace NaN and infinity by None, since JSON has neither."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scene_record(scene: SceneMetrics) -> dict[str, Any]:
    """Values of a scene for JSON, without the probabilities of every frame."""
    record = dataclasses.asdict(dataclasses.replace(scene, activity=None))
    del record["activity"]
    if scene.activity is not None:
        a = scene.activity
        if not math.isnan(a.voice_score):
            record |= {"voice_score": a.voice_score, "own_voice": a.own_voice}
        record["diarization"] = {str(c): errors._asdict() for c, errors in a.diarization.items()}
    return record


def _write(
    out: Path,
    result: EvaluationResult,
    groups: Mapping[str, Sequence[str]],
    columns: Mapping[str, Mapping[str, float]],
    text: str,
    settings: EvaluateSettings,
    identity: Mapping[str, Any],
) -> None:
    record: dict[str, Any] = {
        "model": settings.model,
        "list": settings.list,
        **identity,
        "summary": columns,
        "dependence": result.dependence,
        "real_time_factor": result.real_time,
        "groups": groups,
        "scenes": {
            way: [_scene_record(scene) for scene in scenes] for way, scenes in result.scenes.items()
        },
    }
    with write_atomically(out / MEASURES) as file:
        file.write(json_bytes(finite(record), indent=1))
    with write_atomically(out / "table.md") as file:
        file.write(f"{text}\n".encode())
    draw(result.scenes["model"], out / "measures.png")
    log.info("Wrote %s.", out)
