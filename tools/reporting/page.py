"""Self-contained HTML page of a report."""

import base64
import datetime
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image as PILImage

from cavmae.common.quoting import caption, visible
from cavmae.finetune.inference.event_model import FIGURES
from cavmae.finetune.speaker.metric_table import METRICS
from cavmae.tools.reporting.blocks import (
    Details,
    Gallery,
    Heading,
    Image,
    Listing,
    PageBlock,
    Paragraph,
    Table,
)
from cavmae.tools.reporting.charts import Line, data_url, lines
from cavmae.tools.reporting.events import event_measures, predicted_events
from cavmae.tools.reporting.examples import examples
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
    EventEvaluation,
    Prediction,
    Run,
    Separation,
    Source,
    series,
)

HERE = Path(__file__).parent
IMAGE_BYTES = 64 << 20
IMAGE_PIXELS = 80_000_000
# Larger images are embedded as WebP: contact sheets take a sixth of their PNG, a demo's page 11
# instead of 21 MB.
SMALL_IMAGE_BYTES = 500_000
WEBP_QUALITY, WEBP_SIDE = 90, 16_383  # the latter the largest that the format has, in pixels
# Charts of training: key in metrics.jsonl, title, unit, logarithmic.
TRAINING = (
    ("loss", "Loss", "loss", False),
    ("lr", "Learning rate", "rate", False),
    ("samples_per_sec", "Throughput", "samples per second", False),
    ("grad_norm", "Gradient norm", "norm", True),
    ("data_wait", "Waiting for data", "fraction of the time", False),
)
NOT_DRAWN = {"step", "kind", "samples", "epoch", "skipped_steps", "skipped_samples"}
MAX_METRICS = 60  # charts, rows and columns that a page takes from one file


class Section(NamedTuple):
    """Titled section of a page, linked from its head."""

    title: str
    blocks: Sequence[PageBlock]

    @property
    def anchor(self) -> str:
        """Id of the section's element."""
        return self.title.lower().replace(" ", "-")


def page(sources: Sequence[Source], title: str, faults: Faults) -> str:
    """Render the HTML page of a report.

    Args:
        sources: in the order of the command line.
        title: of the page.
        faults: of the sources; records what the page leaves out, and is listed at its end.
    """
    runs = [s for s in sources if isinstance(s, Run)]
    parts: dict[str, Sequence[PageBlock]] = {
        "Separated recordings": examples([s for s in sources if isinstance(s, Separation)]),
        "Events over time": [b for s in sources if isinstance(s, Prediction)
                             for b in predicted_events(s)],
        "Measures": _measures([s for s in sources if isinstance(s, Evaluation)]),
        "Event classification": [b for s in sources if isinstance(s, EventEvaluation)
                                 for b in _event_measures(s)],
        "Training": _training(runs),
        "Measured while training": _held_out(runs, faults),
        "Reconstructions": [b for run in runs for name in run.images
                            for b in _image(run.folder, name, _image_caption(run, name), faults)],
        "Retrieval": _retrieval(runs),
        "Data": [b for s in sources if isinstance(s, DataSet) for b in _data(s, faults)],
        "Configuration": [Details(run.name, run.config) for run in runs if run.config],
    }  # fmt: skip
    parts["Left out"] = [Listing(faults.sentences)] if faults.sentences else []
    style = (HERE / "page.css").read_text()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_finalized,
    )  # fmt: skip
    return environment.get_template("page.html.j2").render(
        title=title,
        date=datetime.datetime.now(tz=datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        # The page fetches and runs nothing: all media are data URLs.
        policy=f"default-src 'none'; img-src data:; media-src data:; "
        f"style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        style=Markup(style),
        sections=[Section(name, blocks) for name, blocks in parts.items() if blocks],
    )


def _finalized(value: Any) -> Any:
    return value if isinstance(value, Markup) else visible(value, keep="\n\t")


def _training(runs: Sequence[Run]) -> list[PageBlock]:
    drawn = []
    for name, title, unit, logarithmic in TRAINING:
        named = {run.name: Line(*series(run.train, name)) for run in runs}
        named = {k: line for k, line in named.items() if line.steps}
        if named:
            drawn.append(lines(title, unit, named, logarithmic))
    return [Gallery("charts", drawn)] if drawn else []


def _held_out(runs: Sequence[Run], faults: Faults) -> list[PageBlock]:
    names = dict.fromkeys(n for run in runs for line in run.held_out for n in line)
    measured: list[tuple[str, dict[str, Line]]] = []
    for name in names:
        named = {run.name: Line(*series(run.held_out, name)) for run in runs}
        named = {k: line for k, line in named.items() if line.steps}
        if name not in NOT_DRAWN and named:
            measured.append((name, named))
    if len(measured) > MAX_METRICS:
        faults.add(f"The first {MAX_METRICS} of {len(measured)} metrics of training are drawn.")
    titles = {name: metric.title for name, metric in METRICS.items()} | FIGURES
    units = {name: metric.unit for name, metric in METRICS.items()}
    drawn = []
    single: list[tuple[str, dict[str, Line]]] = []
    for name, named in measured[:MAX_METRICS]:
        if max(len(line.steps) for line in named.values()) > 1:
            drawn.append(lines(titles.get(name, name), units.get(name) or name, named))
        else:
            single.append(
                (METRICS[name].label if name in METRICS else titles.get(name, name), named)
            )
    return [*_single_values(single), *([Gallery("charts", drawn)] if drawn else [])]


def _single_values(rows: Sequence[tuple[str, dict[str, Line]]]) -> list[PageBlock]:
    """Table of metrics that have one value a run, which makes no curve."""
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
    """Table whose names are shortened, so that the numbers stay in sight."""
    return Table([caption(name) for name in head], [(caption(n), cells) for n, cells in body])


def _image_caption(run: Run, name: str) -> str:
    return f"{run.name}: {Path(name).stem.replace('_', ' ')}"


def _image(folder: Path, name: str, description: str, faults: Faults) -> list[PageBlock]:
    """Block of an image file of a folder; empty: the file is left out."""
    try:
        data = read_inside(folder, name, IMAGE_BYTES)
        with PILImage.open(io.BytesIO(data), formats=["PNG", "JPEG"]) as image:
            if image.width * image.height > IMAGE_PIXELS:
                raise FileRefused(f"has {image.width}x{image.height} pixels")
            media_type = f"image/{str(image.format).lower()}"
            if len(data) > SMALL_IMAGE_BYTES and max(image.size) <= WEBP_SIDE:
                buffer = io.BytesIO()
                image.convert("RGBA").save(buffer, "WEBP", quality=WEBP_QUALITY)
                data, media_type = buffer.getvalue(), "image/webp"
    except FileRefused as refusal:
        faults.add(f"{folder / name} {refusal}, and is left out.")
        return []
    except (OSError, ValueError, SyntaxError, PILImage.DecompressionBombError):
        faults.add(f"{folder / name} is no PNG image, and is left out.")
        return []
    return [Image(data_url(data, media_type), description)]


def _retrieval(runs: Sequence[Run]) -> list[PageBlock]:
    rows: list[tuple[str, Mapping[str, float]]] = []
    for run in runs:
        for record in run.retrieval:
            clips = record.integer("clips", 0)
            of = "" if clips is None else f", {clips} clips"
            for direction, values in record.values.items():
                if isinstance(values, dict):
                    measured = dict(record.object(direction).numbers())
                    rows.append((f"{run.name}, {direction}{of}", measured))
    if not rows:
        return []
    columns = list(dict.fromkeys(name for _, values in rows for name in values))[:MAX_METRICS]
    body = [
        (name, [_number(values.get(column), "recall" in column) for column in columns])
        for name, values in rows[:MAX_METRICS]
    ]
    return [_table(["", *columns], body)]


def _number(value: Any, percent: bool = False, digits: int = 3) -> str:
    if not is_number(value):
        return "-"
    if abs(value) >= 1e15:
        return f"{value:.{digits}e}"
    return f"{value:.1%}" if percent else f"{value:.{digits}f}".rstrip("0").rstrip(".") or "0"


def _measures(evaluations: Sequence[Evaluation]) -> list[PageBlock]:
    blocks: list[PageBlock] = []
    summaries = {e.name: _summary(e.record) for e in evaluations}
    if len(evaluations) > 1:
        blocks.append(Heading("Side by side"))
        hashes = [e.record.raw("list_sha256") for e in evaluations]
        if len({h for h in hashes if isinstance(h, str)}) > 1:
            listed = "; ".join(f"{e.name}: {e.record.text('list')}" for e in evaluations)
            blocks.append(
                Paragraph(f"These are of different lists of scenes, so do not compare ({listed}).")
            )
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
             "overlap, IoU over size; one dot per person"),
            ("examples.png", f"{name}: first scenes, predicted masks solid and true ones dotted, "
             "spectrograms of the mixture and of each voice, true and predicted"),
        )  # fmt: skip
        for file, description in drawn:
            blocks += _optional_image(evaluation.folder, file, description, record.faults)
    return blocks


def _event_measures(evaluation: EventEvaluation) -> list[PageBlock]:
    description = (
        f"{evaluation.name}: confusion matrix, each row the clips of a class as shares of their "
        "most probable classes"
    )
    faults = evaluation.record.faults
    image = _optional_image(evaluation.folder, "confusion.png", description, faults)
    return [*event_measures(evaluation), *image]


def _optional_image(folder: Path, name: str, description: str, faults: Faults) -> list[PageBlock]:
    """Block of an image file that a folder may lack."""
    return _image(folder, name, description, faults) if is_there(folder, name) else []


def _summary(record: Fields) -> dict[str, dict[str, float]]:
    """Metrics of the model and of each reference."""
    summary = record.object("summary")
    names = list(summary.values)[:MAX_METRICS]
    return {name: dict(summary.object(name).numbers()) for name in names}


def _summary_table(columns: Mapping[str, Mapping[str, float]]) -> list[PageBlock]:
    body = []
    for name, metric in METRICS.items():
        values = [column.get(name) for column in columns.values()]
        if any(value is not None for value in values):
            cells = [_number(value, digits=metric.digits) for value in values]
            body.append((metric.label, cells))
    return [_table(["", *columns], body)] if body else []


def _data(data_set: DataSet, faults: Faults) -> list[PageBlock]:
    blocks: list[PageBlock] = [Heading(data_set.name)]
    if data_set.stats is not None:
        body = [
            (name, [_number(value) if is_number(value) else caption(value, 300)])
            for name, value in data_set.stats.values.items()
            if is_number(value) or isinstance(value, str)
        ]
        blocks.append(_table(["", ""], body[:MAX_METRICS]))
    description = f"{data_set.name}: frames and audio of random clips"
    blocks += _optional_image(data_set.folder, "contact_sheet.png", description, faults)
    if data_set.stats is None:
        blocks.append(Paragraph("Not checked yet: run", "cavmae check"))
    return blocks
