"""Separation of the recordings of a command line: their folders, results and messages."""

import contextlib
import fnmatch
import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cavmae.common.cli import stop_on_signals
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import is_url
from cavmae.common.progress import Progress
from cavmae.datasets.sharding.inputs import Input, collect
from cavmae.datasets.sharding.sources import log_refused
from cavmae.finetune.inference.naming import (
    LONGEST,
    SCRATCH,
    folder_names,
    is_result_of,
    name_limit,
)
from cavmae.finetune.inference.result_files import RESULT, SCHEMA, SeparatedFiles
from cavmae.finetune.inference.separator import FullDiskError, Separator
from cavmae.finetune.inference.settings import SeparateSettings
from cavmae.finetune.inference.target import Target

log = logging.getLogger("cavmae")
HUNDREDTHS = 100


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
    items = recordings(videos, out)
    if any(item.start is not None or item.end is not None for item in items):
        raise UsageError(
            "Recordings are separated as a whole: leave start and end out of the table."
        )
    if any(item.frames is not None for item in items):
        raise UsageError("Data files of CAV-MAE hold no recordings: name videos.")
    if any(item.labels or item.speaker or item.masks for item in items):
        log.info("Of a table only the column path is used.")
    log_refused(items)
    with stop_on_signals():
        separator = load()
        separator.check(settings)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out {out} cannot be a folder: {error.strerror}.") from error
        return separate_all(separator, items, out, settings, target)


def recordings(videos: Sequence[str], out: Path) -> list[Input]:
    """Recordings of the command line, without the results of earlier runs.

    Raises:
        CavmaeError: there is no recording.
    """
    items, repeated = collect(videos)
    for item in repeated:
        log.warning("%s is named more than once; it is separated once.", item.source)
    # A search of the parent folder of `out` finds masks and overlays of earlier runs.
    fresh = [item for item in items if not _is_ours(item.source, out)]
    if len(fresh) < len(items):
        log.info(
            "%d videos in %s are results of earlier runs; they are skipped.",
            len(items) - len(fresh), out,
        )  # fmt: skip
    if not fresh:
        raise CavmaeError(f"No videos in {', '.join(map(repr, videos))}.")
    return fresh


def _is_ours(source: str, out: Path) -> bool:
    if is_url(source):
        return False
    top, path = Path(os.path.realpath(out)), Path(os.path.realpath(source))
    if top not in path.parents:
        return False
    folder = top / path.relative_to(top).parts[0]
    return (folder / RESULT).exists() or fnmatch.fnmatch(folder.name, SCRATCH.format("*"))


class Folders:
    """Assignment of a result folder to each recording of a run.

    A recording keeps the folder that holds its result. A new recording gets a folder of its own
    name; if that is taken, a hash of its path is added. Names that differ in case only count as
    equal, as on some file systems.

    Args:
        out: parent folder of the result folders.
    """

    def __init__(self, out: Path):
        self._out = out
        self._longest = min(LONGEST, name_limit(out) - len(SCRATCH.format("")))
        self._taken: set[str] = set()

    def of(self, source: str) -> Path:
        """Result folder of a recording.

        Raises:
            CavmaeError: the folders of its names hold a damaged result, or other files.
        """
        names = folder_names(source, self._longest)
        for name in names:
            folder = self._out / name
            if (folder / RESULT).exists() and is_result_of(
                SeparatedFiles.load(folder).record, source
            ):
                return self._take(name)
        for name in names:
            if _key(name) not in self._taken and not os.path.lexists(self._out / name):
                return self._take(name)
        raise CavmaeError(
            f"{source}: {' and '.join(str(self._out / name) for name in names)} are there already "
            "and hold no result of it: remove one of them, or name another --out."
        )

    def _take(self, name: str) -> Path:
        self._taken.add(_key(name))
        return self._out / name


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def separate_all(
    separator: Separator,
    items: Sequence[Input],
    out: Path,
    settings: SeparateSettings,
    target: Target,
) -> int:
    """Separate recordings one after the other; the failure of one does not stop the others.

    Returns:
        exit code: 1 if any recording failed.

    Raises:
        UsageError: the only recording failed with it.
    """
    folders = Folders(out)
    existing = 0
    failed: list[str] = []
    for number, item in enumerate(items):
        try:
            folder = folders.of(item.source)
            if (folder / RESULT).exists():
                _check_same(
                    folder, item.source, separator.provenance(item.source, settings, target)
                )
                log.info("%s: %s is there already, of the same settings.", item.source, folder)
                existing += 1
            else:
                with _ProgressLine() as progress:
                    files = separator.separate(
                        item.source, folder, settings, target, progress.report
                    )
                _log_result(item, files)
        except FullDiskError as error:
            failed.append(str(error))
            failed += [f"{other.source}: it was not begun." for other in items[number + 1 :]]
            break
        except (CavmaeError, OSError) as error:
            if isinstance(error, UsageError) and len(items) == 1:
                raise
            failed.append(_prefixed(item, error))
        except Exception as error:  # a bug: the other recordings still get their results
            failed.append(_prefixed(item, f"{type(error).__name__}: {error}"))
            log.exception(
                "cavmae: %s: this is an error of the program; please report it.", item.source
            )
        else:
            continue
        if number + 1 < len(items):  # the summary reports the last one
            log.error("cavmae: %s", failed[-1])
    return _summary(len(items), existing, failed)


class _ProgressLine:
    """Progress display of a recording, which begins with the first fraction that is reported."""

    def __init__(self) -> None:
        self._closing = contextlib.ExitStack()
        self._progress: Progress | None = None
        self._hundredths = 0

    def __enter__(self) -> "_ProgressLine":
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.close()

    def report(self, fraction: float) -> None:
        """Show the fraction done."""
        if self._progress is None:
            self._progress = self._closing.enter_context(Progress(HUNDREDTHS, "hundredth"))
        while self._hundredths < int(fraction * HUNDREDTHS):
            self._hundredths += 1
            self._progress.done()


def _summary(videos: int, existing: int, failed: Sequence[str]) -> int:
    if videos > 1:
        fresh = videos - existing - len(failed)
        log.info("%d of %d videos separated, %d there already.", fresh, videos, existing)
        if failed:
            log.error("cavmae: %d of %d videos failed:", len(failed), videos)
    for line in failed:
        log.error("cavmae: %s", line)
    return 1 if failed else 0


def _prefixed(item: Input, error: object) -> str:
    message = str(error)
    return message if message.startswith(item.source) else f"{item.source}: {message}"


def _check_same(folder: Path, source: str, wanted: Mapping[str, Any]) -> None:
    """Compare the inputs of a finished result with those of this run.

    Raises:
        UsageError: the recording, the model or the settings differ.
        CavmaeError: a file of the result is missing.
    """
    result = SeparatedFiles.load(folder)
    record = result.record
    differences = list(_differences(record, wanted))
    if differences:
        raise UsageError(
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
    if wanted["source_bytes"] not in (None, record.get("source_bytes")):
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
