"""Names of result folders, and the match of results with recordings."""

import contextlib
import hashlib
import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cavmae.common.files import is_url, open_regular

SCRATCH = ".{}.unfinished"  # name of a folder while its files are being written
LONGEST = 200  # bytes of a name; leaves room for additions of archives and backups
LIMIT = 255  # bytes of a name on usual file systems
MARK = 6  # hex digits that make a name unique
PIECES = 32  # of a recording that its digest is of
PIECE = 1 << 16  # bytes


def scratch_of(folder: Path) -> Path:
    """Scratch folder of a result folder, for files until all of them are complete."""
    max_bytes = name_limit(folder.parent) - len(SCRATCH.format(""))
    return folder.with_name(SCRATCH.format(shortened(folder.name, max_bytes)))


def folder_names(source: str, max_bytes: int) -> tuple[str, str]:
    """Names for the result folder of a recording, in the order of preference.

    Args:
        source: path or URL.
        max_bytes: limit of a name.

    Returns:
        the stem of the recording, and the stem with a hash of its path.
    """
    file = Path(source.split("?")[0] if is_url(source) else source)  # no query, no signature
    stem = _plain(file.stem)
    mark = _mark(source if is_url(source) else os.path.realpath(source))
    return shortened(stem, max_bytes), f"{shortened(stem, max_bytes - MARK - 1)}-{mark}"


def shortened(name: str, max_bytes: int) -> str:
    """A name of at most ``max_bytes``: unchanged, or its beginning with a hash."""
    if len(_encoded(name)) <= max_bytes:
        return name
    # A character that the cut splits is dropped, as are bytes that are not UTF-8.
    begin = _encoded(name)[: max_bytes - MARK - 1].decode(errors="ignore").rstrip("-.")
    return f"{begin}-{_mark(name)}"


def name_limit(folder: Path) -> int:
    """Largest number of bytes of a name in the file system of a folder."""
    try:
        return min(LIMIT, os.pathconf(folder, "PC_NAME_MAX"))
    except (OSError, ValueError):  # no such folder, or its file system reports no limit
        return LIMIT


def source_facts(source: str) -> dict[str, Any]:
    """Identity of a recording: its name, its path, its size in bytes and a digest.

    Uncompressed recordings of one length have one size, hence the digest. It is of pieces spread
    over the file, since all of a long recording takes a minute to read.
    """
    facts: dict[str, Any] = {
        "source": source, "source_path": None, "source_bytes": None, "source_digest": None,
    }  # fmt: skip
    if not is_url(source):
        facts["source_path"] = os.path.realpath(source)
        with contextlib.suppress(OSError):  # it may be gone while its result is still there
            facts["source_bytes"] = Path(source).stat().st_size
            facts["source_digest"] = _digest(source, facts["source_bytes"])
    return facts


def _digest(path: str, size: int) -> str:
    """SHA-256 of the size of a file and of pieces from its beginning to its end.

    Raises:
        OSError: it cannot be read, or is a pipe or a device.
    """
    digest = hashlib.sha256(str(size).encode())
    last = max(0, size - PIECE)
    with open_regular(path) as file:
        for start in sorted({last * number // (PIECES - 1) for number in range(PIECES)}):
            file.seek(start)
            digest.update(file.read(PIECE))
    return digest.hexdigest()


def is_same_content(record: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Whether a result is of a recording as it is now, by size and digest; unknown: yes."""
    names = ("source_bytes", "source_digest")
    return all(facts[name] in (None, record.get(name)) for name in names)


def is_result_of(record: Mapping[str, Any], source: str) -> bool:
    """Whether a ``result.json`` belongs to a recording, by path or, if moved, by name and content.

    A recording was not moved whose file is where it was.
    """
    facts, before = source_facts(source), record.get("source_path")
    if facts["source_path"] is not None and before == facts["source_path"]:
        return True
    if isinstance(before, str) and os.path.lexists(before):
        return False
    names = ("source", "source_bytes", "source_digest")
    return all(record.get(name) == facts[name] for name in names)


def _plain(stem: str) -> str:
    """Letters, digits and combining marks of a stem; never like a hidden file or an option."""
    characters = [
        c if c.isalnum() or c in "_.-" or unicodedata.category(c)[0] == "M" else " "
        for c in unicodedata.normalize("NFC", stem)
    ]
    return "-".join("".join(characters).split()).strip("-.") or "video"


def _encoded(name: str) -> bytes:
    return name.encode(errors="surrogatepass")  # names that are not UTF-8


def _mark(name: str) -> str:
    return hashlib.sha256(_encoded(name)).hexdigest()[:MARK]
