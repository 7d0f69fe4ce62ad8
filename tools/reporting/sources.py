"""What a report is about: folders that other commands wrote, told apart by what is in them."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cavmae.datasets.errors import CavmaeError, UsageError
from cavmae.tools.separating.separator import RESULT, Result

Numbers = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        name: that it is shown by.
        folder: of the run.
        config: its whole configuration, as YAML.
        train, held_out: lines of ``metrics.jsonl``.
        pictures: PNG files in its folder: reconstructions, curves.
        retrieval: what ``cavmae retrieve --json`` wrote there.
    """

    name: str
    folder: Path
    config: str
    train: list[Numbers]
    held_out: list[Numbers]
    pictures: list[Path]
    retrieval: list[Numbers]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What ``cavmae evaluate --out`` wrote."""

    name: str
    folder: Path
    record: Numbers


@dataclasses.dataclass(frozen=True)
class Separation:
    """What ``cavmae separate`` wrote."""

    name: str
    result: Result


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Shards, as ``cavmae check`` saw them."""

    name: str
    folder: Path
    stats: Numbers | None
    sheet: Path | None


Source = Run | Evaluation | Separation | DataSet


def sources_of(names: Sequence[str]) -> list[Source]:
    """What folders hold; a folder of separated recordings holds one for each.

    Raises:
        UsageError: a folder that no command of ours wrote.
        CavmaeError: a damaged one.
    """
    found: list[Source] = []
    for name in names:
        folder = Path(name)
        if not folder.is_dir():
            raise UsageError(f"There is no folder {name!r}.")
        inner = sorted(p.parent for p in folder.glob(f"*/{RESULT}"))
        for place in inner if inner and not (folder / RESULT).exists() else [folder]:
            found.append(_source(place))
    return _named(found)


def _source(folder: Path) -> Source:
    name = folder.resolve().name
    if (folder / "metrics.jsonl").exists():
        return _run(name, folder)
    if (folder / "measures.json").exists():
        return Evaluation(name, folder, _json(folder / "measures.json"))
    if (folder / RESULT).exists():
        return Separation(name, Result.load(folder))
    if (folder / "manifest.json").exists():
        stats, sheet = folder / "stats.json", folder / "contact_sheet.png"
        return DataSet(
            name, folder, _json(stats) if stats.exists() else None,
            sheet if sheet.exists() else None,
        )  # fmt: skip
    raise UsageError(
        f"{folder} is none of what a report is made of: a run (metrics.jsonl), an evaluation "
        "(measures.json), a separated recording (result.json) or shards (manifest.json)."
    )


def _run(name: str, folder: Path) -> Run:
    lines: list[Numbers] = []
    written = (folder / "metrics.jsonl").read_text().splitlines()
    for number, line in enumerate(written, 1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            if number < len(written):
                raise CavmaeError(
                    f"{folder / 'metrics.jsonl'}, line {number} is not JSON: {error}."
                ) from error
            # The last line of a run that is being written.
    config = folder / "config.yaml"
    told = config.read_text() if config.exists() else ""
    return Run(
        name,
        folder,
        told,
        [line for line in lines if line.get("kind") == "train"],
        [line for line in lines if line.get("kind") == "held_out"],
        sorted(folder.glob("*.png")),
        [_json(path) for path in sorted(folder.glob("retrieval*.json"))],
    )


def _json(path: Path) -> Numbers:
    try:
        found: Numbers = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CavmaeError(f"{path} cannot be read: {error}.") from error
    return found


def _named(found: list[Source]) -> list[Source]:
    """Two of one name and kind get a number."""
    named: list[Source] = []
    for source in found:
        same = [s for s in found if type(s) is type(source) and s.name == source.name]
        if len(same) > 1:
            number = next(n for n, s in enumerate(same, 1) if s is source)
            source = dataclasses.replace(source, name=f"{source.name} ({number})")
        named.append(source)
    return named


def series(lines: Sequence[Numbers], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of a number, where it is one."""
    pairs = [(line["step"], line[name]) for line in lines if _finite(line.get(name))]
    return [float(a) for a, _ in pairs], [float(b) for _, b in pairs]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
