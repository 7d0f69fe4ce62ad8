"""Recursive search of folders for media files, through links, each folder and file once."""

import dataclasses
import logging
import os
from collections import Counter, deque
from collections.abc import Collection
from pathlib import Path

from cavmae.common.errors import UsageError

log = logging.getLogger("cavmae")
EXAMPLES = 5  # names in a log message


@dataclasses.dataclass
class Search:
    """Result of a search: files with the requested extensions, and skipped entries.

    Attributes:
        folder: root of the search.
        files: files with a requested extension, in the order of the search; broken links and pipes
            are among them, so that their reader reports them.
        others: number of files with another extension, by extension.
        repeated: links, hard ones too, to files or folders that are searched already.
        broken: broken links with another extension.
        loops: links to a folder that contains them.
        unlisted: folders that may not be listed, such as those of other users.
    """

    folder: Path
    files: list[Path] = dataclasses.field(default_factory=list)
    others: Counter[str] = dataclasses.field(default_factory=Counter)
    repeated: list[Path] = dataclasses.field(default_factory=list)
    broken: list[Path] = dataclasses.field(default_factory=list)
    loops: list[Path] = dataclasses.field(default_factory=list)
    unlisted: list[Path] = dataclasses.field(default_factory=list)

    def log_unused(self, kind: str) -> None:
        """Logs a line for each kind of skipped entry.

        Args:
            kind: of the requested files, such as ``videos``.
        """
        if self.others:
            log.info(
                "%s: %d files that are not %s are skipped (%s).",
                self.folder, self.others.total(), kind,
                ", ".join(f"{n} {e}" for e, n in self.others.most_common(EXAMPLES)),
            )  # fmt: skip
        for paths, reason in (
            (self.repeated, "other names of files or folders that are searched already"),
            (self.loops, "links to a folder that contains them"),
            (self.broken, "broken links"),
            (self.unlisted, "folders that may not be listed"),
        ):
            if paths:
                names = ", ".join(repr(os.path.relpath(p, self.folder)) for p in paths[:EXAMPLES])
                more = f" and {len(paths) - EXAMPLES} more" if len(paths) > EXAMPLES else ""
                log.warning("%s: skipped, as %s: %s%s.", self.folder, reason, names, more)


def search(folder: Path, extensions: Collection[str]) -> Search:
    """Searches a folder for files with one of the extensions (lower case, with the dot).

    Linked folders come last, so that a file that is reachable in both ways has the name without
    a link in it, as in data sets from before links were followed.

    Raises:
        UsageError: a folder cannot be listed, but for one inside it that is not permitted.
    """
    result = Search(folder)
    folders: set[tuple[int, int] | None] = set()
    files: set[tuple[int, int]] = set()
    links: deque[Path] = deque()
    pending = [folder]
    while pending or links:
        if not pending:
            link = links.popleft()
            target = os.path.realpath(link)
            if any(_inside(os.path.realpath(p), target) for p in (folder, link.parent)):
                result.loops.append(link)
                continue
            if _identity(link) in folders:
                result.repeated.append(link)
                continue
            pending.append(link)
        current = pending.pop()
        try:
            identity, entries = _entries(current)
        except OSError as error:
            if current != folder and isinstance(error, PermissionError):
                result.unlisted.append(current)
                continue
            raise UsageError(
                f"The folder {str(current)!r} cannot be listed ({error.strerror}): mend it, or "
                "name another."
            ) from error
        if identity in folders:
            continue  # a real folder below two linked ones
        folders.add(identity)
        subfolders: list[Path] = []
        for entry in entries:
            path = current / entry.name
            if _is_folder(entry):
                (links if entry.is_symlink() else subfolders).append(path)
            elif path.suffix.lower() in extensions:
                file = _identity(entry)
                if file is not None and file in files:
                    result.repeated.append(path)
                    continue
                if file is not None:
                    files.add(file)
                result.files.append(path)
            elif entry.is_symlink() and _identity(entry) is None:
                result.broken.append(path)
            else:
                extension = path.suffix.lower()
                result.others[extension if extension[1:].isalnum() else "without an extension"] += 1
        pending += reversed(subfolders)
    return result


def _entries(folder: Path) -> tuple[tuple[int, int] | None, list[os.DirEntry[str]]]:
    """Identity of a folder, and its entries sorted by name."""
    with os.scandir(folder) as entries:
        return _identity(folder), sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _identity(file: Path | os.DirEntry[str]) -> tuple[int, int] | None:
    """Device and inode of the target of a name; None for a broken link."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _inside(path: str, folder: str) -> bool:
    """Whether a real path is a folder or lies in it."""
    return Path(path).is_relative_to(folder)
