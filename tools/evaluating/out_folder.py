"""Folder of an evaluation: checked before anything is measured, and never of two evaluations."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cavmae.common.errors import UsageError
from cavmae.common.files import make_folder
from cavmae.common.json_files import JSONError, read_json

MEASURES = "measures.json"  # of a speaker model
EVENTS = "events.json"  # of an event classifier


def prepare_out(out: Path, file: str, identity: Mapping[str, Any]) -> None:
    """Creates the folder of an evaluation; one of the same model and data is replaced later.

    Args:
        out: the folder.
        file: of the metrics, :data:`MEASURES` or :data:`EVENTS`.
        identity: fields of that file by which two evaluations are the same.

    Raises:
        UsageError: it cannot be a folder, or has an evaluation of something else.
    """
    make_folder(out)
    for name in (MEASURES, EVENTS):
        path = out / name
        if not path.exists():
            continue
        try:
            record = read_json(path, remedy="name another --out")
        except (OSError, JSONError) as error:
            raise UsageError(f"--out {out} has a damaged {name} ({error}).") from error
        others = [
            field
            for field, value in identity.items()
            if not isinstance(record, dict) or record.get(field) != value
        ]
        if name != file or others:
            of = f"another {', '.join(others)}" if name == file else "another kind of model"
            raise UsageError(
                f"--out {out} has an evaluation of {of}: name another folder, or remove it."
            )
