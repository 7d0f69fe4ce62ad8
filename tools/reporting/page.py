"""A report as one HTML page that needs nothing beside itself."""

import base64
import datetime
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image as Pictures

from cavmae.common.quoting import caption, visible
from cavmae.finetune.speaker.metric_table import METRICS
from cavmae.tools.reporting.blocks import (
    Block,
    Charts,
    Details,
    Heading,
    Image,
    ListBlock,
    Paragraph,
    Table,
)
from cavmae.tools.reporting.charts import Line, data_url, lines
from cavmae.tools.reporting.examples import example
from cavmae.tools.reporting.fields import (
    Faults,
    Fields,
    FileRefused,
    is_number,
    is_there,
    read_inside,
)
from cavmae.tools.reporting.sources import (
    DataSet,
    Evaluation,
    Run,
    Separation,
    Source,
    series,
)

HERE = Path(__file__).parent
PICTURE_BYTES = 64 << 20
PICTURE_PIXELS = 80_000_000
# Charts of training: number in metrics.jsonl, title, unit, logarithmic.
TRAINING = (
    ("loss", "Loss", "loss", False),
    ("lr", "Learning rate", "rate", False),
    ("samples_per_sec", "Throughput", "samples per second", False),
    ("grad_norm", "Gradient norm", "norm", True),
    ("data_wait", "Waiting for data", "share of the time", False),
)
NOT_DRAWN = {"step", "kind", "samples", "epoch", "skipped_steps", "skipped_samples"}
MEASURES = 60  # charts, rows and columns that a page has at most of what a file names


class Section(NamedTuple):
    """A part of a page with a title, which the page's head links to."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


def page(sources: Sequence[Source], title: str, faults: Faults) -> str:
    """The page.

    Args:
        sources: in the order in which they are named.
        faults: what was left out so far; takes what the page leaves out.
    """
    runs = [s for s in sources if isinstance(s, Run)]
    parts: dict[str, Sequence[Block]] = {
        "Separated recordings": [b for s in sources if isinstance(s, Separation)
                                 for b in example(s)],
        "Measures": _measures([s for s in sources if isinstance(s, Evaluation)]),
        "Training": _training(runs),
        "Measured while training": _held_out(runs, faults),
        "Reconstructions": [b for run in runs for name in run.pictures
                            for b in _image(run.folder, name, _named(run, name), faults)],
        "Retrieval": _retrieval(runs),
        "Data": [b for s in sources if isinstance(s, DataSet) for b in _data(s, faults)],
        "Configuration": [Details(run.name, run.config) for run in runs if run.config],
    }  # fmt: skip
    parts["Left out"] = [ListBlock(faults.sentences)] if faults.sentences else []
    style = (HERE / "page.css").read_text()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_finalized,
    )  # fmt: skip
    return environment.get_template("page.html.j2").render(
        title=title,
        date=datetime.datetime.now(tz=datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        # Nothing is fetched or run; what is shown lies in the page itself.
        policy=f"default-src 'none'; img-src data:; media-src data:; "
        f"style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        style=Markup(style),
        sections=[Section(name, blocks) for name, blocks in parts.items() if blocks],
    )


def _finalized(value: Any) -> Any:
    return value if isinstance(value, Markup) else visible(value, keep="\n\t")


def _training(runs: Sequence[Run]) -> list[Block]:
    drawn = []
    for name, title, unit, logarithmic in TRAINING:
        named = {run.name: Line(*series(run.train, name)) for run in runs}
        named = {k: line for k, line in named.items() if line.steps}
        if named:
            drawn.append(lines(title, unit, named, logarithmic))
    return [Charts(drawn)] if drawn else []


def _held_out(runs: Sequence[Run], faults: Faults) -> list[Block]:
    names = dict.fromkeys(n for run in runs for line in run.held_out for n in line)
    measured: list[tuple[str, dict[str, Line]]] = []
    for name in names:
        named = {run.name: Line(*series(run.held_out, name)) for run in runs}
        named = {k: line for k, line in named.items() if line.steps}
        if name not in NOT_DRAWN and named:
            measured.append((name, named))
    if len(measured) > MEASURES:
        faults.add(f"Of {len(measured)} measures of training the first {MEASURES} are shown.")
    titles = {name: metric.title for name, metric in METRICS.items()}
    units = {name: metric.unit for name, metric in METRICS.items()}
    drawn = []
    once: list[tuple[str, dict[str, Line]]] = []
    for name, named in measured[:MEASURES]:
        if max(len(line.steps) for line in named.values()) > 1:
            drawn.append(lines(titles.get(name, name), units.get(name) or name, named))
        else:
            once.append((METRICS[name].label if name in METRICS else name, named))
    return [*_once(once), *([Charts(drawn)] if drawn else [])]


def _once(rows: Sequence[tuple[str, dict[str, Line]]]) -> list[Block]:
    """What was measured a single time is no curve."""
    if not rows:
        return []
    measured = dict.fromkeys(
        (run, line.steps[0]) for _, named in rows for run, line in named.items()
    )
    body = []
    for name, named in rows:
        values = [
            named[run].values[0] if run in named and named[run].steps[0] == step else None
            for run, step in measured
        ]
        body.append((name, [_number(value) for value in values]))
    return [_table(["", *(f"{run}, step {step:.0f}" for run, step in measured)], body)]


def _table(head: Sequence[str], body: Sequence[tuple[str, Sequence[str]]]) -> Table:
    """Names of any length leave room for the numbers."""
    return Table([caption(name) for name in head], [(caption(n), cells) for n, cells in body])


def _named(run: Run, name: str) -> str:
    return f"{run.name}: {Path(name).stem.replace('_', ' ')}"


def _image(folder: Path, name: str, description: str, faults: Faults) -> list[Block]:
    """A PNG file of a folder; empty: it is left out."""
    try:
        data = read_inside(folder, name, PICTURE_BYTES)
        with Pictures.open(io.BytesIO(data), formats=["PNG", "JPEG"]) as picture:
            if picture.width * picture.height > PICTURE_PIXELS:
                raise FileRefused(f"has {picture.width}x{picture.height} pixels")
            kind = f"image/{str(picture.format).lower()}"
    except FileRefused as refusal:
        faults.add(f"{folder / name} {refusal}, and is left out.")
        return []
    except (OSError, ValueError, SyntaxError, Pictures.DecompressionBombError):
        faults.add(f"{folder / name} is no picture (PNG), and is left out.")
        return []
    return [Image(data_url(data, kind), description)]


def _retrieval(runs: Sequence[Run]) -> list[Block]:
    rows: list[tuple[str, Mapping[str, float]]] = []
    for run in runs:
        for record in run.retrieval:
            clips = record.whole("clips", 0)
            of = "" if clips is None else f", {clips} clips"
            for direction, values in record.values.items():
                if isinstance(values, dict):
                    measured = dict(record.object(direction).numbers())
                    rows.append((f"{run.name}, {direction}{of}", measured))
    if not rows:
        return []
    columns = list(dict.fromkeys(name for _, values in rows for name in values))[:MEASURES]
    body = [
        (name, [_number(values.get(column), "recall" in column) for column in columns])
        for name, values in rows[:MEASURES]
    ]
    return [_table(["", *columns], body)]


def _number(value: Any, share: bool = False, digits: int = 3) -> str:
    if not is_number(value):
        return "-"
    if abs(value) >= 1e15:
        return f"{value:.{digits}e}"
    return f"{value:.1%}" if share else f"{value:.{digits}f}".rstrip("0").rstrip(".") or "0"


def _measures(evaluations: Sequence[Evaluation]) -> list[Block]:
    blocks: list[Block] = []
    summaries = {e.name: _summary(e.record) for e in evaluations}
    if len(evaluations) > 1:
        blocks.append(Heading("Side by side"))
        blocks += _summary_table({name: s.get("model", {}) for name, s in summaries.items()})
    for evaluation in evaluations:
        record, name = evaluation.record, evaluation.name
        scenes = record.object("scenes").raw("model")
        count = f"{len(scenes)} scenes" if isinstance(scenes, list) else "scenes"
        cue = record.text("cue")
        blocks.append(Heading(name))
        blocks.append(
            Paragraph(
                f"{record.text('model')} on {count} of {Path(record.text('list')).name}"
                + ("" if cue in ("none", "") else f", cue: {cue}")
            )
        )
        blocks += _summary_table(summaries[name])
        drawn = (
            ("measures.png", f"{name}: SI-SDR improvement over the mixture's SI-SDR and over "
             "overlap, IoU over size; a dot each person"),
            ("examples.png", f"{name}: first scenes, found masks solid and true ones dotted, "
             "spectrograms of the mixture and of each voice, true and found"),
        )  # fmt: skip
        for file, description in drawn:
            blocks += _picture(evaluation.folder, file, description, record.faults)
    return blocks


def _picture(folder: Path, name: str, description: str, faults: Faults) -> list[Block]:
    """A PNG file of a folder that need not be there."""
    return _image(folder, name, description, faults) if is_there(folder, name) else []


def _summary(record: Fields) -> dict[str, dict[str, float]]:
    """Measures of each way of looking at the scenes."""
    ways = record.object("summary")
    return {way: dict(ways.object(way).numbers()) for way in list(ways.values)[:MEASURES]}


def _summary_table(columns: Mapping[str, Mapping[str, float]]) -> list[Block]:
    body = []
    for name, metric in METRICS.items():
        values = [column.get(name) for column in columns.values()]
        if any(value is not None for value in values):
            cells = [_number(value, digits=metric.digits) for value in values]
            body.append((metric.label, cells))
    return [_table(["", *columns], body)] if body else []


def _data(data_set: DataSet, faults: Faults) -> list[Block]:
    blocks: list[Block] = [Heading(data_set.name)]
    if data_set.stats is not None:
        body = [
            (name, [_number(value) if is_number(value) else caption(value, 300)])
            for name, value in data_set.stats.values.items()
            if is_number(value) or isinstance(value, str)
        ]
        blocks.append(_table(["", ""], body[:MEASURES]))
    description = f"{data_set.name}: frames and sound of random clips"
    blocks += _picture(data_set.folder, "contact_sheet.png", description, faults)
    if data_set.stats is None:
        blocks.append(Paragraph("Not checked yet: run", "cavmae check"))
    return blocks
