"""Recordings of a command line: their result folders, and work on one after the other."""

import contextlib
import fnmatch
import functools
import logging
import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import is_url
from cavmae.common.progress import Progress
from cavmae.datasets.sharding.input_lists import collect, log_refused
from cavmae.datasets.sharding.inputs import Input
from cavmae.finetune.inference.naming import (
    LONGEST,
    SCRATCH,
    folder_names,
    is_result_of,
    name_limit,
)
from cavmae.finetune.inference.recording_errors import FullDiskError
from cavmae.finetune.inference.result_files import RESULT, SeparatedFiles

log = logging.getLogger("cavmae")
HUNDREDTHS = 100


def whole_recordings(videos: Sequence[str], out: Path, result: str) -> list[Input]:
    """Recordings of the command line, without the results of earlier runs.

    Args:
        videos: files, folders, lists and URLs.
        out: parent folder of the results.
        result: name of the file that a finished result folder has.

    Raises:
        UsageError: a table names more than recordings.
        CavmaeError: there is no recording.
    """
    items, repeated = collect(videos)
    for item in repeated:
        log.warning("%s is named more than once; it is read once.", item.source)
    # A search of the parent folder of `out`, or of another one, finds masks and overlays.
    videos_of = functools.cache(_videos_of_result)
    fresh = [item for item in items if not _is_ours(item.source, out, result, videos_of)]
    if len(fresh) < len(items):
        log.info(
            "%d videos are results of earlier runs; they are skipped.", len(items) - len(fresh)
        )
    if not fresh:
        raise CavmaeError(f"No videos in {', '.join(map(repr, videos))}.")
    if any(item.start is not None or item.end is not None for item in fresh):
        raise UsageError("Recordings are read as a whole: leave start and end out of the table.")
    if any(item.frames is not None for item in fresh):
        raise UsageError("Data files of CAV-MAE hold no recordings: name videos.")
    if any(item.labels or item.speaker or item.masks for item in fresh):
        log.info("Of a table only the column path is used.")
    log_refused(fresh)
    return fresh


def _is_ours(
    source: str, out: Path, result: str, videos_of: Callable[[Path], frozenset[str]]
) -> bool:
    """Whether a video was written by an earlier run, into ``out`` or into any other folder."""
    if is_url(source):
        return False
    top, path = Path(os.path.realpath(out)), Path(os.path.realpath(source))
    if any(fnmatch.fnmatch(parent.name, SCRATCH.format("*")) for parent in path.parents):
        return True
    if top in path.parents and (top / path.relative_to(top).parts[0] / result).exists():
        return True
    return path.name in videos_of(path.parent)


def _videos_of_result(folder: Path) -> frozenset[str]:
    """Names of the videos that `cavmae separate` wrote into a folder; none into any other."""
    if not (folder / RESULT).is_file():
        return frozenset()
    try:
        result = SeparatedFiles.load(folder)
    except CavmaeError:  # some other program's
        return frozenset()
    return frozenset(p.name for p in (result.overlay, *(p.mask for p in result.people)) if p)


class Folders:
    """Assignment of a result folder to each recording of a run.

    A recording keeps the folder that holds its result. A new recording gets a folder of its own
    name; if that is taken, a hash of its path is added. Names that differ in case only count as
    equal, as on some file systems.

    Args:
        out: parent folder of the result folders.
        result: name of the file that a finished result folder has.
        load: reads that file in a folder; raises a CavmaeError if it is damaged.
    """

    def __init__(self, out: Path, result: str, load: Callable[[Path], Mapping[str, Any]]):
        self._out, self._result, self._load = out, result, load
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
            if (folder / self._result).exists() and is_result_of(self._load(folder), source):
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


def process_all(
    items: Sequence[Input],
    folders: Folders,
    process: Callable[[Input, Path], bool],
    done: str,
) -> int:
    """Processes recordings one after the other; the failure of one does not stop the others.

    Args:
        items: recordings.
        folders: assigns their result folders.
        process: processes a recording into its folder; False: its result was there already.
        done: what happened to the recordings, for the summary, such as ``separated``.

    Returns:
        exit code: 1 if any recording failed.

    Raises:
        UsageError: the only recording failed with it.
    """
    existing = 0
    failed: list[str] = []
    for number, item in enumerate(items):
        try:
            existing += not process(item, folders.of(item.source))
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
    return _summary(len(items), existing, failed, done)


class ProgressLine:
    """Progress display of a recording, which begins with the first fraction that is reported."""

    def __init__(self) -> None:
        self._closing = contextlib.ExitStack()
        self._progress: Progress | None = None
        self._hundredths = 0

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.close()

    def report(self, fraction: float) -> None:
        """Show the fraction done."""
        if self._progress is None:
            self._progress = self._closing.enter_context(Progress(HUNDREDTHS, "%"))
        while self._hundredths < int(fraction * HUNDREDTHS):
            self._hundredths += 1
            self._progress.done()


def _summary(videos: int, existing: int, failed: Sequence[str], done: str) -> int:
    if videos > 1:
        fresh = videos - existing - len(failed)
        log.info("%d of %d videos %s, %d there already.", fresh, videos, done, existing)
        if failed:
            log.error("cavmae: %d of %d videos failed:", len(failed), videos)
    for line in failed:
        log.error("cavmae: %s", line)
    return 1 if failed else 0


def _prefixed(item: Input, error: object) -> str:
    message = str(error)
    return message if message.startswith(item.source) else f"{item.source}: {message}"
