"""Result folder of predicted events: ``events.json`` and the table ``probs.npz``."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cavmae.common.errors import CavmaeError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import JSONError, json_bytes, read_json
from cavmae.datasets.stream.features import FBANK_RATE
from cavmae.finetune.inference.event_predictor import EventPrediction
from cavmae.finetune.inference.event_settings import PredictSettings
from cavmae.finetune.inference.naming import is_same_content

SCHEMA = 2
EVENTS = "events.json"
TABLE = "probs.npz"


def write_events(
    prediction: EventPrediction,
    folder: Path,
    settings: PredictSettings,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the files of a prediction, ``events.json`` last.

    The table has the arrays ``start`` and ``end`` (float64 [B] seconds), ``probs`` (float32 [B, K])
    and ``classes`` (text [K]), of B stretches of time and K classes.

    Args:
        prediction: to be written.
        folder: existing folder; files of an earlier prediction are replaced.
        settings: options of the prediction.
        provenance: inputs that it depends on.

    Returns:
        content of ``events.json``.

    Raises:
        OSError: a file cannot be written.
    """
    timeline, plan = prediction.timeline, prediction.plan
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, start=timeline.bounds[:-1], end=timeline.bounds[1:], probs=timeline.probs,
        classes=np.array(timeline.classes),
    )  # fmt: skip
    record: dict[str, Any] = {
        "schema": SCHEMA,
        **provenance,
        "seconds": round(prediction.seconds, 4),
        "conditions": prediction.conditions._asdict(),
        "window": plan.length / FBANK_RATE,
        "hop": plan.hop / FBANK_RATE,
        "classes": len(timeline.classes),
        "remarks": list(prediction.remarks),
        "labels": timeline.labels(settings.top, settings.classes, settings.threshold),
        "timeline": timeline.records(settings.top, settings.classes),
        "table": TABLE,
        "table_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
    }
    data = json_bytes(record, indent=1)
    for name, content in ((TABLE, buffer.getvalue()), (EVENTS, data)):
        with write_atomically(folder / name) as file:
            file.write(content)
    return record


def load_events_record(folder: Path) -> dict[str, Any]:
    """Content of the ``events.json`` of a result folder.

    Raises:
        CavmaeError: it is damaged, or of another command.
    """
    try:
        record = read_json(folder / EVENTS, remedy=f"remove {folder} to have it predicted again")
    except (OSError, JSONError) as error:
        raise CavmaeError(f"{folder} holds no finished prediction ({error}).") from error
    if not is_prediction(record):
        raise CavmaeError(f"{folder / EVENTS} is of another command: name another --out.")
    result: dict[str, Any] = record
    return result


def is_prediction(record: object) -> bool:
    """Whether a JSON value is of `cavmae predict`; `evaluate` writes an ``events.json``, too."""
    return isinstance(record, dict) and "timeline" in record


def is_current(folder: Path, record: Mapping[str, Any], provenance: Mapping[str, Any]) -> bool:
    """Whether a prediction has the inputs of this run, and its table is whole.

    Args:
        folder: of the prediction.
        record: its ``events.json``.
        provenance: inputs of this run.
    """
    if record.get("schema") != SCHEMA:
        return False
    if not is_same_content(record, provenance):
        return False
    if any(record.get(name) != provenance[name] for name in ("weights", "settings")):
        return False
    try:
        table = (folder / TABLE).read_bytes()
    except OSError:
        return False
    return hashlib.sha256(table).hexdigest() == record.get("table_sha256")
