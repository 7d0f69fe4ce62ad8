"""Searching folders for media files, through links, each folder and each file once."""

import dataclasses
import logging
import os
from collections import Counter, deque
from collections.abc import Collection
from pathlib import Path

from cavmae.common.errors import UsageError

log = logging.getLogger("cavmae")
EXAMPLES = 5  # names in a line of the log


@dataclasses.dataclass
class Search:
    """Files of a folder by their endings, and what else lies there.

    Attributes:
        folder: that was searched.
        files: with one of the endings, in the order of the search; links that lead nowhere and
            pipes are among them, so that whoever reads them names them.
        others: number of files by their other endings.
        repeated: links, hard ones too, to files or folders that are searched already.
        broken: links with another ending that lead nowhere.
        loops: links to a folder that holds them.
    """

    folder: Path
    files: list[Path] = dataclasses.field(default_factory=list)
    others: Counter[str] = dataclasses.field(default_factory=Counter)
    repeated: list[Path] = dataclasses.field(default_factory=list)
    broken: list[Path] = dataclasses.field(default_factory=list)
    loops: list[Path] = dataclasses.field(default_factory=list)

    def log_unused(self, kind: str) -> None:
        """Logs a line for each kind of thing that is passed over.

        Args:
            kind: of file that is searched for, such as ``videos``.
        """
        if self.others:
            log.info(
                "%s: %d files that are not %s are passed over (%s).",
                self.folder, self.others.total(), kind,
                ", ".join(f"{n} {e}" for e, n in self.others.most_common(EXAMPLES)),
            )  # fmt: skip
        for paths, why in (
            (self.repeated, "other names of what is searched already"),
            (self.loops, "links to a folder that holds them"),
            (self.broken, "links that lead nowhere"),
        ):
            if paths:
                names = ", ".join(repr(os.path.relpath(p, self.folder)) for p in paths[:EXAMPLES])
                more = f" and {len(paths) - EXAMPLES} more" if len(paths) > EXAMPLES else ""
                log.warning("%s: passed over, as %s: %s%s.", self.folder, why, names, more)


def search(folder: Path, endings: Collection[str]) -> Search:
    """All files below a folder with one of the endings (lower case, with the dot).

    Linked folders come last, so that a file that can be reached in both ways has the name without
    a link in it, as in data sets that were made before links were followed.

    Raises:
        UsageError: a folder that cannot be listed.
    """
    found = Search(folder)
    folders: set[tuple[int, int] | None] = set()
    files: set[tuple[int, int]] = set()
    links: deque[Path] = deque()
    places = [folder]
    while places or links:
        if not places:
            link = links.popleft()
            target = os.path.realpath(link)
            if any(_inside(os.path.realpath(p), target) for p in (folder, link.parent)):
                found.loops.append(link)
                continue
            if _identity(link) in folders:
                found.repeated.append(link)
                continue
            places.append(link)
        place = places.pop()
        identity, entries = _entries(place)
        if identity in folders:
            continue  # a real folder below two linked ones
        folders.add(identity)
        below: list[Path] = []
        for entry in entries:
            path = place / entry.name
            if _is_folder(entry):
                (links if entry.is_symlink() else below).append(path)
            elif path.suffix.lower() in endings:
                file = _identity(entry)
                if file is not None and file in files:
                    found.repeated.append(path)
                    continue
                if file is not None:
                    files.add(file)
                found.files.append(path)
            elif entry.is_symlink() and _identity(entry) is None:
                found.broken.append(path)
            else:
                ending = path.suffix.lower()
                found.others[ending if ending[1:].isalnum() else "without an ending"] += 1
        places += reversed(below)
    return found


def _entries(folder: Path) -> tuple[tuple[int, int] | None, list[os.DirEntry[str]]]:
    """A folder's identity and what is in it, by name."""
    try:
        with os.scandir(folder) as entries:
            return _identity(folder), sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError(f"Cannot list folder {str(folder)!r}: {error.strerror}.") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _identity(file: Path | os.DirEntry[str]) -> tuple[int, int] | None:
    """Device and inode of what a name leads to; None for a link that leads nowhere."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _inside(path: str, folder: str) -> bool:
    """Whether a real path is a folder's, or of something in it."""
    return Path(path).is_relative_to(folder)
