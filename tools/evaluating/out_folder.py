"""Folder of an evaluation: checked before anything is measured, and never of two evaluations."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cavmae.common.errors import UsageError
from cavmae.common.files import make_folder
from cavmae.common.json_files import JSONError, read_json
from cavmae.finetune.inference.event_files import EVENTS, is_prediction

MEASURES = "measures.json"  # of a speaker model
LARGEST = 1 << 30  # bytes of an evaluation
FIELDS = {
    "weights_sha256": "another model", "list_sha256": "another list of scenes",
    "cue": "another --cue", "hints": "another --hints", "references": "another --references",
    "data_digest": "other data", "classes_sha256": "other classes",
    "conditions": "another --mode or --frames",
}  # fmt: skip


def prepare_out(out: Path, file: str, identity: Mapping[str, Any]) -> None:
    """Creates the folder of an evaluation; one of the same model and data is replaced later.

    Args:
        out: the folder.
        file: of the metrics, :data:`MEASURES` or :data:`EVENTS`.
        identity: fields of that file, of :data:`FIELDS`, by which two evaluations are the same.

    Raises:
        UsageError: it cannot be a folder, or has an evaluation of something else.
    """
    make_folder(out)
    if not os.access(out, os.W_OK | os.X_OK):
        raise UsageError(f"--out {out} cannot be written to: name another folder.")
    for name in (MEASURES, EVENTS):
        path = out / name
        if not path.exists():
            continue
        try:
            record = read_json(path, remedy="name another --out", limit_bytes=LARGEST)
        except (OSError, JSONError) as error:
            raise UsageError(f"--out {out} has a damaged {name} ({error}).") from error
        if what := _difference(record, name == file, identity):
            raise UsageError(f"--out {out} has {what}: name another folder, or remove it.")


def _difference(record: Any, is_same_kind: bool, identity: Mapping[str, Any]) -> str | None:
    """Description of how a folder's evaluation differs from that of this run; None: it does not."""
    if is_prediction(record):
        return "a prediction of `cavmae predict`"
    if not is_same_kind or not isinstance(record, dict):
        return "an evaluation of another kind of model"
    if identity.keys() - record.keys():
        return "an evaluation of a former version"
    others = [field for field, value in identity.items() if record[field] != value]
    names = " and ".join(FIELDS[field] for field in others)
    return f"an evaluation with {names}" if others else None
