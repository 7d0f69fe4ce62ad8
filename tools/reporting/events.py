"""Blocks of events: predictions over the time of a recording, and metrics of a classifier."""

import itertools

from cavmae.common.quoting import caption
from cavmae.finetune.events.conditions import Conditions
from cavmae.finetune.inference.event_model import FIGURES
from cavmae.tools.reporting.blocks import Heading, Listing, PageBlock, Paragraph, Table, Timeline
from cavmae.tools.reporting.charts import TimelineRow, timeline
from cavmae.tools.reporting.fields import Fields, is_number
from cavmae.tools.reporting.sources import EventEvaluation, Prediction

ROWS = 12  # classes of a timeline
STRETCHES = 1_000_000  # of time in a timeline, at most
MOST_SPANS = 6  # that a table lists of a class
MOST_REMARKS = 50
MOST_CLASSES = 60  # rows of the table of an evaluation


def predicted_events(prediction: Prediction) -> list[PageBlock]:
    """Blocks of the events of one recording: its timeline and a table of its labels."""
    record, name = prediction.record, prediction.name
    conditions = record.object("conditions")
    texts = ", ".join(
        f"{field} {conditions.text(field)}" for field in Conditions._fields if conditions.values
    )
    window, hop, seconds = (record.number(field) for field in ("window", "hop", "seconds"))
    blocks: list[PageBlock] = [
        Heading(name),
        Paragraph(
            f"{_number(seconds)} s by {record.text('model')}: {texts}; windows of "
            f"{_number(window)} s every {_number(hop)} s."
        ),
    ]
    remarks = record.raw("remarks")
    if isinstance(remarks, list) and remarks:
        blocks.append(Listing([caption(remark, 300) for remark in remarks[:MOST_REMARKS]]))
    bounds = _bounds(record)
    rows = [row for fields in record.objects("labels", ROWS) if (row := _row(fields, bounds))]
    if rows and bounds:
        title = f"{name}: probability (full colour: present)"
        blocks.append(Timeline(timeline(title, rows, bounds), title))
        body = [(caption(row.name), _cells(row, bounds)) for row in rows]
        blocks.append(Table(["class", "largest", "mean", "present, in seconds"], body))
    return blocks


def _bounds(record: Fields) -> list[float]:
    """Edges of the stretches of time; empty: they are not those of a timeline."""
    parts = record.objects("timeline", STRETCHES)
    starts = [part.number("start") for part in parts]
    edges = [*starts, parts[-1].number("end") if parts else None]
    known = [edge for edge in edges if edge is not None]
    if len(known) < len(edges) or any(a >= b for a, b in itertools.pairwise(known)):
        record.faults.add(f"{record.place}: timeline is not in order of time, and is left out.")
        return []
    return known


def _row(fields: Fields, bounds: list[float]) -> TimelineRow | None:
    """Row of a label; None: its values do not belong to the timeline."""
    probs = fields.raw("probs")
    if not (
        isinstance(probs, list)
        and len(probs) + 1 == len(bounds)
        and all(is_number(prob) and 0 <= prob <= 1 for prob in probs)
    ):
        fields.faults.add(f"{fields.place}: probs is no probability of each stretch of time.")
        return None
    return TimelineRow(fields.text("name"), probs, fields.spans("spans", len(probs)))


def _cells(row: TimelineRow, bounds: list[float]) -> list[str]:
    lengths = [b - a for a, b in itertools.pairwise(bounds)]
    mean = sum(p * n for p, n in zip(row.probs, lengths, strict=True)) / sum(lengths)
    spans = [f"{start:.1f}-{end:.1f}" for start, end in row.spans[:MOST_SPANS]]
    more = len(row.spans) - MOST_SPANS
    spans += [f"and {more} more"] if more > 0 else []
    return [f"{max(row.probs):.2f}", f"{mean:.2f}", ", ".join(spans) or "-"]


def event_measures(evaluation: EventEvaluation) -> list[PageBlock]:
    """Blocks of the metrics of a classifier: figures with their conditions, and its classes."""
    record, name = evaluation.record, evaluation.name
    figures = record.object("figures")
    body = []
    for key, label in FIGURES.items():
        figure = figures.object(key)
        conditions = [figure.text(field) for field in Conditions._fields]
        body.append((label, [_number(figure.raw("value"), 4), *conditions]))
    classes = record.objects("classes", MOST_CLASSES)
    rows = [
        (caption(row.text("name")), [_number(row.raw(key), 4) for key in ("clips", "ap", "auc")])
        for row in classes
    ]
    return [
        Heading(name),
        Paragraph(record.text("model")),
        Table([caption(name), "value", *Conditions._fields], body),
        Table(["class", "clips", "AP", "AUC"], rows),
    ]


def _number(value: object, digits: int = 2) -> str:
    """Number without trailing zeros; ``-``: it is none."""
    if not is_number(value):
        return "-"
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") or "0"
