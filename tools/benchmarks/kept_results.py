"""Output folders of benchmarks that keep finished runs: settings of all runs are the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cavmae.common.errors import UsageError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import json_bytes, read_json


def check_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Keeps runs of different settings out of one table: compares with ``settings.json``.

    Args:
        out: folder of the benchmark, where the file is written if it is missing.
        settings: JSON values of those that all runs share.

    Raises:
        UsageError: the folder has runs of other settings.
    """
    path = out / "settings.json"
    if not path.exists():
        with write_atomically(path) as file:
            file.write(json_bytes(settings, indent=1))
        return
    before = read_json(path)
    changed = [name for name, value in settings.items() if before.get(name) != value]
    if changed:
        raise UsageError(f"{out} has runs with another {', '.join(changed)}: choose another --out.")
