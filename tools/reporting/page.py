"""A report as one HTML page that needs nothing beside itself."""

import datetime
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from cavmae.tools.evaluate import ROWS
from cavmae.tools.reporting.charts import Line, data_url, lines
from cavmae.tools.reporting.examples import example
from cavmae.tools.reporting.sources import (
    DataSet,
    Evaluation,
    Run,
    Separation,
    Source,
    series,
)

STYLE = Path(__file__).with_name("page.css")
# Charts of training: number in metrics.jsonl, title, unit, logarithmic.
TRAINING = (
    ("loss", "Loss", "loss", False),
    ("lr", "Learning rate", "rate", False),
    ("samples a second", "Throughput", "samples a second", False),
    ("gradient norm", "Gradient norm", "norm", True),
    ("waiting for data", "Waiting for data", "share of the time", False),
)
NOT_DRAWN = {"step", "kind", "samples", "epoch", "skipped steps", "skipped clips"}


def page(sources: Sequence[Source], title: str) -> str:
    """The page.

    Args:
        sources: in the order in which they are named.
    """
    runs = [s for s in sources if isinstance(s, Run)]
    parts = {
        "Separated recordings": "".join(example(s) for s in sources if isinstance(s, Separation)),
        "Measures": _measures([s for s in sources if isinstance(s, Evaluation)]),
        "Training": _training(runs),
        "Measured while training": _held_out(runs),
        "Reconstructions": _pictures(runs),
        "Retrieval": _retrieval(runs),
        "Data": "".join(_data(s) for s in sources if isinstance(s, DataSet)),
        "Configuration": "".join(_configuration(run) for run in runs),
    }
    parts = {name: text for name, text in parts.items() if text}
    links = "".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in parts)
    sections = "".join(
        f'<section id="{_anchor(name)}"><h2>{name}</h2>{text}</section>'
        for name, text in parts.items()
    )
    made = datetime.datetime.now(tz=datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE.read_text()}</style></head><body>"
        f"<h1>{escape(title)}</h1><p>Made {made} by cavmae.</p><nav>{links}</nav>"
        f"<main>{sections}</main></body></html>\n"
    )


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _charts(drawn: Sequence[str]) -> str:
    inner = "".join(f"<div>{chart}</div>" for chart in drawn)
    return f'<div class="charts">{inner}</div>' if drawn else ""


def _training(runs: Sequence[Run]) -> str:
    drawn = []
    for name, title, unit, logarithmic in TRAINING:
        named = {run.name: Line(*series(run.train, name)) for run in runs}
        named = {k: line for k, line in named.items() if line.steps}
        if named:
            drawn.append(lines(title, unit, named, logarithmic))
    return _charts(drawn)


def _held_out(runs: Sequence[Run]) -> str:
    names = dict.fromkeys(n for run in runs for line in run.held_out for n in line)
    drawn = []
    once: list[tuple[str, dict[str, Line]]] = []
    units = {name: unit for name, unit, _ in ROWS}
    for name in names:
        named = {run.name: Line(*series(run.held_out, name)) for run in runs}
        named = {k: line for k, line in named.items() if line.steps}
        if name in NOT_DRAWN or not named:
            continue
        if max(len(line.steps) for line in named.values()) > 1:
            drawn.append(lines(name, units.get(name) or name, named))
        else:
            once.append((f"{name}, {unit}" if (unit := units.get(name)) else name, named))
    return _once(once) + _charts(drawn)


def _once(rows: Sequence[tuple[str, dict[str, Line]]]) -> str:
    """What was measured a single time is no curve."""
    if not rows:
        return ""
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
    return _table(["", *(f"{run}, step {step:.0f}" for run, step in measured)], body)


def _pictures(runs: Sequence[Run]) -> str:
    return "".join(
        _image(path, f"{run.name}: {path.stem.replace('_', ' ')}", "image/png")
        for run in runs
        for path in run.pictures
    )


def _image(path: Path, told: str, kind: str) -> str:
    return (
        f'<figure><img src="{data_url(path.read_bytes(), kind)}" alt="{escape(told)}">'
        f"<figcaption>{escape(told)}</figcaption></figure>"
    )


def _retrieval(runs: Sequence[Run]) -> str:
    rows = []
    columns: list[str] = []
    for run in runs:
        for record in run.retrieval:
            for direction, values in record.items():
                if isinstance(values, dict):
                    columns = list(dict.fromkeys([*columns, *values]))
                    rows.append((f"{run.name}, {direction}, {record['clips']} clips", values))
    if not rows:
        return ""
    body = [(name, [_number(values.get(c), "R@" in c) for c in columns]) for name, values in rows]
    return _table(["", *columns], body)


def _number(value: Any, share: bool = False, digits: int = 3) -> str:
    if not isinstance(value, int | float):
        return "-"
    return f"{value:.1%}" if share else f"{value:.{digits}f}".rstrip("0").rstrip(".") or "0"


def _table(head: Sequence[str], body: Sequence[tuple[str, Sequence[str]]]) -> str:
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, cells in body
    )
    return (
        f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _measures(evaluations: Sequence[Evaluation]) -> str:
    text = ""
    if len(evaluations) > 1:
        told = {e.name: e.record["summary"]["model"] for e in evaluations}
        text += "<h3>Side by side</h3>" + _summary_table(told)
    for evaluation in evaluations:
        record = evaluation.record
        scenes = len(record["scenes"]["model"])
        cue = "" if record["cue"] == "none" else f", cue: {record['cue']}"
        text += f"<h3>{escape(evaluation.name)}</h3><p>{escape(str(record['model']))} on {scenes} "
        text += f"scenes of {escape(Path(record['list']).name)}{escape(cue)}</p>"
        text += _summary_table(record["summary"])
        plot = evaluation.folder / "measures.png"
        if plot.exists():
            told_of = (
                f"{evaluation.name}: SI-SDR improvement over the mixture's SI-SDR and over "
                "overlap, IoU over size; a dot each person"
            )
            text += _image(plot, told_of, "image/png")
        scenes_drawn = evaluation.folder / "examples.png"
        if scenes_drawn.exists():
            told_of = f"{evaluation.name}: first scenes, found masks solid and true ones dotted, "
            told_of += "spectrograms of the mixture and of each voice, true and found"
            text += _image(scenes_drawn, told_of, "image/png")
    return text


def _summary_table(columns: dict[str, dict[str, float]]) -> str:
    body = []
    for name, unit, digits in ROWS:
        values = [column.get(name) for column in columns.values()]
        if any(value is not None for value in values):
            shown = f"{name}, {unit}" if unit and unit not in name else name
            body.append((shown, [_number(value, digits=digits) for value in values]))
    return _table(["", *columns], body)


def _data(data_set: DataSet) -> str:
    text = f"<h3>{escape(data_set.name)}</h3>"
    if data_set.stats is not None:
        told = {k: v for k, v in data_set.stats.items() if isinstance(v, int | float | str)}
        text += _table(["", ""], [(k, [_number(v) if isinstance(v, int | float) else str(v)])
                                  for k, v in told.items()])  # fmt: skip
    if data_set.sheet is not None:
        told_of = f"{data_set.name}: frames and sound of random clips"
        text += _image(data_set.sheet, told_of, "image/png")
    if data_set.stats is None:
        text += "<p>Not checked yet: run <code>cavmae check</code>.</p>"
    return text


def _configuration(run: Run) -> str:
    if not run.config:
        return ""
    told = escape(run.config)
    return f"<details><summary>{escape(run.name)}</summary><pre>{told}</pre></details>"
