"""`cavmae evaluate`: measures of a speaker model on a fixed list of scenes; makes such lists."""

import csv
import dataclasses
import importlib.util
import logging
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from cavmae.common.cli import fill, module_main, output, parse, parser
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import json_bytes
from cavmae.common.progress import Progress
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.mixtures.clip_pool import ClipPool
from cavmae.datasets.mixtures.sampler import SceneSampler
from cavmae.datasets.mixtures.scene_spec import ComposeSettings
from cavmae.datasets.mixtures.scene_stream import FixedSceneStream, write_list
from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.loader import Loader
from cavmae.finetune.speaker.cues import CueKind
from cavmae.finetune.speaker.evaluation import WAYS, EvaluationResult, evaluate
from cavmae.finetune.speaker.factory import load_speaker
from cavmae.finetune.speaker.metric_table import METRICS
from cavmae.finetune.speaker.metrics import summary
from cavmae.finetune.speaker.scene_lists import listed_stream
from cavmae.finetune.speaker.settings import LossSettings
from cavmae.finetune.speaker.task import SpeakerTask
from cavmae.tools.evaluating.examples import draw_examples
from cavmae.tools.evaluating.plots import draw

log = logging.getLogger("cavmae")


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """What is measured, and on what.

    Args:
        list: file of the scenes.
        make: draw so many scenes from the shards and write them to ``list`` instead of measuring.
        compose: how they are drawn; always at the clips' own speed.
        seed: of drawing them.
        out: folder for ``measures.json``, ``table.md``, plots, and ``examples.png`` (the first
            scenes, to be looked at); None: the table is only printed.
        cue: tell the model by a cue of this kind whom slot 0 means, and measure that person only.
        hints: tell the model the class of whom a cue would mean (``model.classes`` of training).
        references: also measure with pictures blanked, still, or wrong, and an oracle ratio mask.
        people: CSV file with columns ``speaker`` and ``sex``: measures apart for same and other.
        batch: scenes at a time.
        workers: processes that compose.
        device: ``auto``: a GPU if there is one.
    """

    list: str = ""
    make: int = 0
    compose: ComposeSettings = ComposeSettings()  # noqa: RUF009 - frozen
    seed: int = 0
    out: str | None = None
    cue: Literal["none", "box", "point", "mask", "voice"] = "none"
    hints: bool = False
    references: bool = True
    people: str | None = None
    batch: int = 8
    workers: int = 1
    device: str = "auto"


def main(words: Sequence[str]) -> int:
    made = parser("evaluate", "Measures of a speaker model on a fixed list of scenes.")
    made.add_argument("shards", type=str, help="Folder or URL of the data set of the scenes.")
    made.add_argument("--model", type=str, default="", help="Checkpoint of `finetune speakers`.")
    made.add_class_arguments(EvaluateSettings)
    options = parse(made, words)
    settings = fill(EvaluateSettings, options)
    if not settings.list:
        raise UsageError("Name the list of scenes: --list FILE; --make 200 makes it.")
    if settings.make:
        return _make(options.shards, settings)
    if not options.model:
        raise UsageError("Name the model to be measured: --model FOLDER.")
    return _measure(options.model, options.shards, settings)


def _make(shards: str, settings: EvaluateSettings) -> int:
    path = Path(settings.list)
    if path.exists():
        raise UsageError(f"{path} is there already: results would no longer compare. Name another.")
    manifest = Manifest.load(shards)
    # Measured is how people really speak.
    compose = dataclasses.replace(settings.compose, speed=0.0)
    book = SceneSampler(ClipPool(manifest), compose)
    drawn = [book.sample(random.Random(f"list {settings.seed} {n}")) for n in range(settings.make)]
    write_list(path, compose, drawn)
    log.info("Wrote %d scenes to %s.", len(drawn), path)
    return 0


def _measure(name: str, shards: str, settings: EvaluateSettings) -> int:
    model, statistics = load_speaker(name)
    where = settings.device
    if where == "auto":
        where = "cuda" if torch.cuda.is_available() else "cpu"
    task = SpeakerTask(model, LossSettings(), statistics).to(where).eval()
    stream = listed_stream(settings.list, shards, model.config, settings.batch)
    groups = _groups(Path(settings.people), stream) if settings.people else {}
    loader = Loader(stream, settings.workers)

    first: list[Batch] = []

    def batches() -> Iterator[Batch]:
        with Progress(stream.samples, "scene") as progress:
            for batch in loader:
                moved = {
                    k: v.to(where) if isinstance(v, torch.Tensor) else v for k, v in batch.items()
                }
                if not first:
                    first.append(moved)
                yield moved
                for _ in batch["key"]:
                    progress.done()

    cue: CueKind = settings.cue
    ways = WAYS if settings.references else WAYS[:1]
    quality = _quality()
    found = evaluate(task, batches(), ways, cue, quality, settings.hints)
    cued = cue != "none"
    if cued and not any(p.is_target for scene in found.scenes["model"] for p in scene.people):
        raise UsageError(
            f"Nobody in {settings.list} can be meant by a cue of the kind {cue}: such cues are "
            f"made of {'other recordings of the same people' if cue == 'voice' else 'masks'}."
        )
    text = table(found, groups, cued)
    text += f"\n\nReal-time factor of the model: {found.real_time:.3f} ({where})."
    if "pesq" not in quality:
        text += "\n\nPESQ is missing: it needs a compiler to install (`pip install cavmae[pesq]`)."
    output(text)
    if settings.out:
        _write(Path(settings.out), found, groups, text, name, settings)
        draw_examples(task, first[0], Path(settings.out) / "examples.png")
    return 0


def _quality() -> list[str]:
    """Which of the measures of quality are installed."""
    return ["stoi", "pesq"] if importlib.util.find_spec("pesq") else ["stoi"]


def _groups(path: Path, stream: FixedSceneStream) -> dict[str, str]:
    """Of scenes in which two people speak: whether they are of the same sex."""
    try:
        with path.open(newline="") as file:
            sexes = {row["speaker"]: row["sex"] for row in csv.DictReader(file)}
    except (OSError, KeyError, csv.Error) as error:
        raise CavmaeError(f"{path} is no table with columns speaker and sex ({error}).") from error
    found = {}
    pool = stream.pool
    for number, recipe in enumerate(stream.specs):
        heard = [p for p in recipe.people if p.level_db is not None]
        told = [sexes.get(pool.clips[pool.index_of[p.clip]].person) for p in heard]
        if len(told) == 2 and None not in told:
            found[f"{number:05d}"] = "same sex" if told[0] == told[1] else "different sex"
    return found


def table(found: EvaluationResult, groups: dict[str, str], cued: bool) -> str:
    """All measures as a Markdown table, a column each way.

    Args:
        cued: only whom cues mean counts, and scenes that have one.
    """
    columns = {way: summary(scenes, cued) for way, scenes in found.scenes.items() if scenes}
    whole = found.scenes["model"]
    if cued:
        whole = [scene for scene in whole if any(p.is_target for p in scene.people)]
    for group in sorted(set(groups.values())):
        chosen = [s for s in whole if groups.get(s.key) == group]
        columns[group] = summary(chosen, cued)  # type: ignore[index]
    lines = [
        f"| {len(whole)} scenes | {' | '.join(columns)} |",
        f"|---|{'---:|' * len(columns)}",
    ]
    for name, metric in METRICS.items():
        values = [column.get(name) for column in columns.values()]
        if any(value is not None for value in values):
            cells = ["-" if value is None else f"{value:.{metric.digits}f}" for value in values]
            lines.append(f"| {metric.label} | {' | '.join(cells)} |")
    for name, value in found.dependence.items():
        rest = " |" * (len(columns) - 1)
        lines.append(f"| masks that change, sound {name} | {value:.3f} |{rest}")
    return "\n".join(lines)


def _known(value: Any) -> Any:
    """JSON knows no NaN and no infinity: a measure that is not finite is null."""
    if isinstance(value, dict):
        return {name: _known(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_known(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(
    out: Path,
    found: EvaluationResult,
    groups: dict[str, str],
    text: str,
    name: str,
    settings: EvaluateSettings,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "model": name,
        "list": settings.list,
        "cue": settings.cue,
        "summary": {
            way: summary(scenes, settings.cue != "none")
            for way, scenes in found.scenes.items()
            if scenes
        },
        "dependence": found.dependence,
        "real_time_factor": found.real_time,
        "groups": groups,
        "scenes": {
            way: [dataclasses.asdict(scene) for scene in scenes]
            for way, scenes in found.scenes.items()
        },
    }
    with write_atomically(out / "measures.json") as file:
        file.write(json_bytes(_known(record), indent=1))
    with write_atomically(out / "table.md") as file:
        file.write(f"{text}\n".encode())
    draw(found.scenes["model"], out / "measures.png")
    log.info("Wrote %s.", out)


if __name__ == "__main__":
    module_main(main)
