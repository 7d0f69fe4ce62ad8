"""Sources of a report: folders of other commands, recognised by their files."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.json_files import JSONError, parse_json
from cavmae.finetune.inference.event_files import EVENTS, is_prediction
from cavmae.finetune.inference.result_files import RESULT
from cavmae.tools.reporting.fields import (
    Faults,
    Fields,
    FileRefused,
    is_number,
    is_there,
    open_inside,
    read_inside,
)

Numbers = dict[str, Any]
METRICS, MEASURES, MANIFEST = "metrics.jsonl", "measures.json", "manifest.json"
OWN = METRICS, MEASURES, RESULT, EVENTS, MANIFEST  # files of a folder that is itself a source
METRICS_BYTES = 1 << 30
LINE_BYTES = 1 << 20
CONFIG_BYTES = 1 << 20
LAST_STEP = 10**15
IMAGES = 24  # of a run, at most


@dataclasses.dataclass(frozen=True)
class Run:
    """Training run.

    Attributes:
        name: title in the report.
        folder: of the run.
        config: its whole configuration, as YAML.
        train, held_out: lines of ``metrics.jsonl``, each with a ``step``.
        images: names of PNG files in its folder, such as reconstructions.
        retrieval: files that ``cavmae retrieve --json`` wrote there.
    """

    name: str
    folder: Path
    config: str
    train: list[Numbers]
    held_out: list[Numbers]
    images: list[str]
    retrieval: list[Fields]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Output folder of ``cavmae evaluate --out``."""

    name: str
    folder: Path
    record: Fields


@dataclasses.dataclass(frozen=True)
class Separation:
    """Output folder of ``cavmae separate`` for one recording."""

    name: str
    folder: Path
    record: Fields


@dataclasses.dataclass(frozen=True)
class EventEvaluation:
    """Output folder of ``cavmae evaluate --out`` of an event classifier."""

    name: str
    folder: Path
    record: Fields


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Output folder of ``cavmae predict`` for one recording."""

    name: str
    folder: Path
    record: Fields


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Folder of shards.

    Attributes:
        name: title in the report.
        folder: of the shards.
        stats: statistics of ``cavmae check``; None: the shards are not checked yet.
    """

    name: str
    folder: Path
    stats: Fields | None


Source = Run | Evaluation | Separation | EventEvaluation | Prediction | DataSet


def sources_of(names: Sequence[str], faults: Faults | None = None) -> list[Source]:
    """Load the sources of a report; a folder of results of recordings has one for each.

    Args:
        names: folders.
        faults: records what is left out; None: it is only logged.

    Raises:
        UsageError: no command of ours wrote a folder.
        CavmaeError: a folder is damaged.
    """
    faults = faults or Faults()
    sources: list[Source] = []
    for name in names:
        folder = Path(name)
        if not folder.is_dir():
            raise UsageError(f"There is no folder {name!r}.")
        inner = [] if is_there(folder, RESULT) else _recordings(folder, RESULT, faults)
        if not any(is_there(folder, own) for own in (*OWN, RESULT)):
            inner += [p for p in _recordings(folder, EVENTS, faults) if p not in inner]
        sources += [_source(path, faults) for path in inner or [folder]]
    return _with_unique_names(sources)


def _recordings(folder: Path, result: str, faults: Faults) -> list[Path]:
    """Folders of recordings with a result in a folder; links are not followed."""
    recordings = []
    for path in sorted(file.parent for file in folder.glob(f"*/{result}")):
        if path.is_symlink():
            faults.add(
                f"{path} is a link, and is left out: name it on the command line to include it."
            )
        else:
            recordings.append(path)
    return recordings


def _source(folder: Path, faults: Faults) -> Source:
    name = folder.resolve().name
    if is_there(folder, METRICS):
        return _run(name, folder, faults)
    if is_there(folder, MEASURES):
        return Evaluation(name, folder, Fields.load(folder, MEASURES, faults))
    if is_there(folder, RESULT):
        return Separation(name, folder, Fields.load(folder, RESULT, faults))
    if is_there(folder, EVENTS):
        record = Fields.load(folder, EVENTS, faults)
        return (Prediction if is_prediction(record.values) else EventEvaluation)(
            name, folder, record
        )
    if is_there(folder, MANIFEST):
        checked = is_there(folder, "stats.json")
        stats = Fields.load(folder, "stats.json", faults) if checked else None
        return DataSet(name, folder, stats)
    raise UsageError(
        f"{folder} is no source of a report: name a run (metrics.jsonl), an evaluation "
        "(measures.json, events.json), a separated recording (result.json), predicted events "
        "(events.json) or shards (manifest.json)."
    )


def _run(name: str, folder: Path, faults: Faults) -> Run:
    lines = list(_lines(folder, faults))
    images = sorted(path.name for path in folder.glob("*.png"))
    if len(images) > IMAGES:
        faults.add(f"{folder}: the first {IMAGES} of {len(images)} images are in the report.")
    return Run(
        name,
        folder,
        _config(folder, faults),
        [line for line in lines if line["kind"] == "train"],
        [line for line in lines if line["kind"] == "held_out"],
        images[:IMAGES],
        [Fields.load(folder, p.name, faults) for p in sorted(folder.glob("retrieval*.json"))],
    )


def _config(folder: Path, faults: Faults) -> str:
    name = "config.yaml"
    if not is_there(folder, name):
        return ""
    try:
        return read_inside(folder, name, CONFIG_BYTES).decode()
    except UnicodeDecodeError:
        faults.add(f"{folder / name} is not UTF-8, and is left out.")
    except FileRefused as refusal:
        faults.add(f"{folder / name} {refusal}, and is left out.")
    return ""


def _lines(folder: Path, faults: Faults) -> Iterator[Numbers]:
    """Lines of ``metrics.jsonl`` that have a step and a kind.

    Raises:
        CavmaeError: the file cannot be read, or a line is not JSON and not the last, which a run
            may still be writing.
    """
    path = folder / METRICS
    bad: list[int] = []
    try:
        with open_inside(folder, METRICS, METRICS_BYTES) as file:
            number, line = 1, file.readline(LINE_BYTES)
            while line:
                following = file.readline(LINE_BYTES)
                try:
                    value = parse_json(line, f"{path}, line {number}", limit_bytes=LINE_BYTES)
                except JSONError as error:
                    if following:
                        reason = f"line {number} is not JSON: {error.__cause__}"
                        raise CavmaeError(f"{path}, {reason}.") from error
                else:
                    if _is_metrics_line(value):
                        yield value
                    else:
                        bad.append(number)
                number, line = number + 1, following
    except FileRefused as refusal:
        raise CavmaeError(f"{path} {refusal}: the report cannot use it.") from refusal
    if bad:
        others = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        faults.add(
            f"{path}, line {bad[0]}{others}: left out, as a line must be an object with a kind "
            "and a step, an integer of at least 0."
        )


def _is_metrics_line(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        return False
    step = value.get("step")
    return is_number(step) and 0 <= step <= LAST_STEP and step == int(step)


def _with_unique_names(sources: list[Source]) -> list[Source]:
    """Number the sources that share a name and a kind."""
    unique: list[Source] = []
    for source in sources:
        same = [s for s in sources if type(s) is type(source) and s.name == source.name]
        if len(same) > 1:
            number = next(n for n, s in enumerate(same, 1) if s is source)
            source = dataclasses.replace(source, name=f"{source.name} ({number})")
        unique.append(source)
    return unique


def series(lines: Sequence[Numbers], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric, from the lines in which it is a number."""
    pairs = [(line["step"], line[name]) for line in lines if is_number(line.get(name))]
    return [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
