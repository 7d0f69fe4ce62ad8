"""Separation of the recordings of a command line: their results and messages."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cavmae.common.cli import stop_on_signals
from cavmae.common.errors import CavmaeError
from cavmae.common.files import make_folder
from cavmae.datasets.sharding.inputs import Input
from cavmae.finetune.inference.naming import is_same_content
from cavmae.finetune.inference.result_files import RESULT, SCHEMA, SeparatedFiles
from cavmae.finetune.inference.separator import Separator
from cavmae.finetune.inference.settings import SeparateSettings
from cavmae.finetune.inference.target import Target
from cavmae.tools.recordings import (
    Folders,
    ProgressLine,
    process_all,
    whole_recordings,
)

log = logging.getLogger("cavmae")


def separate_recordings(
    videos: Sequence[str],
    out: Path,
    load: Callable[[], Separator],
    settings: SeparateSettings,
    target: Target,
) -> int:
    """Separates the recordings of the command line.

    Args:
        videos: files, folders, lists and URLs.
        out: parent folder of the results.
        load: loads the model, once the recordings are known.
        settings: options of separation.
        target: options of the target person.

    Returns:
        exit code: 1 if any recording failed.

    Raises:
        UsageError: a table names more than recordings, ``out`` cannot be a folder, or the model has
            no class of the hint's name.
        CavmaeError: there is no recording, or the target's files cannot be read.
    """
    target.check()
    items = whole_recordings(videos, out, RESULT)
    with stop_on_signals():
        separator = load()
        separator.check(settings)
        make_folder(out)
        return separate_all(separator, items, out, settings, target)


def separate_all(
    separator: Separator,
    items: Sequence[Input],
    out: Path,
    settings: SeparateSettings,
    target: Target,
) -> int:
    """Separate recordings; see :func:`~cavmae.tools.recordings.process_all`."""

    def process(item: Input, folder: Path) -> bool:
        if (folder / RESULT).exists():
            _check_same(folder, item.source, separator.provenance(item.source, settings, target))
            log.info("%s: %s is there already, of the same settings.", item.source, folder)
            return False
        with ProgressLine() as progress:
            files = separator.separate(item.source, folder, settings, target, progress.report)
        _log_result(item, files)
        return True

    folders = Folders(out, RESULT, lambda folder: SeparatedFiles.load(folder).record)
    return process_all(items, folders, process, "separated")


def _check_same(folder: Path, source: str, wanted: Mapping[str, Any]) -> None:
    """Compare the inputs of a finished result with those of this run.

    Raises:
        CavmaeError: the recording, the model or the settings differ, or a file is missing.
    """
    result = SeparatedFiles.load(folder)
    record = result.record
    differences = list(_differences(record, wanted))
    if differences:
        raise CavmaeError(
            f"{source}: {folder} was made with {', '.join(differences)}: name another --out, or "
            "remove it."
        )
    files = [result.residual, *(p.voice for p in result.people), *(p.mask for p in result.people)]
    missing = [path.name for path in (*files, result.overlay) if path and not path.is_file()]
    if missing:
        raise CavmaeError(
            f"{source}: {folder} lacks {', '.join(missing)}: remove it to have it made again."
        )


def _differences(record: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterable[str]:
    """Yield a phrase for each input of a result that differs from this run."""
    if record.get("schema") != SCHEMA:
        yield "another version of this program"
        return
    if not is_same_content(record, wanted):
        yield "another content of the recording"
    if record.get("weights") != wanted["weights"]:
        yield f"other weights ({record.get('model')}) than those of {wanted['model']}"
    for kind, group in (
        ("settings", ""), ("target_settings", "target."), ("thresholds", "thresholds."),
    ):  # fmt: skip
        for name, value in wanted[kind].items():
            before = (record.get(kind) or {}).get(name)
            if before != value:
                option = group + name.replace("_", "-")
                yield f"--{option} {_written(before)}, not {_written(value)}"
    if record.get("target_sha256") != wanted["target_sha256"]:
        yield "another content of the target's file"
    if record.get("precision") != wanted["precision"]:
        yield f"--precision {record.get('precision')}, not {wanted['precision']}"


def _written(value: object) -> str:
    """Value as it is written on the command line."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _log_result(item: Input, result: SeparatedFiles) -> None:
    people = ", ".join(
        f"{p.number} ({p.record['state']}, {p.record['level_db']} dB)" for p in result.people
    )
    log.info(
        "%s: %s, in %s.", item.source, f"people {people}" if people else "no people", result.folder
    )
