"""Names of result folders, and whose results they hold."""

import contextlib
import hashlib
import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cavmae.common.files import is_url

SCRATCH = ".{}.unfinished"  # name of a folder while its files are being written
LONGEST = 200  # bytes of a name: what archives and backups put around it has to fit as well
LIMIT = 255  # bytes of a name on usual file systems
MARK = 6  # hex digits that tell names apart


def scratch_of(folder: Path) -> Path:
    """Where the files of a result folder are written until all of them are there."""
    max_bytes = name_limit(folder.parent) - len(SCRATCH.format(""))
    return folder.with_name(SCRATCH.format(shortened(folder.name, max_bytes)))


def folder_names(source: str, max_bytes: int) -> tuple[str, str]:
    """Names for the result folder of a recording, in the order of preference.

    Args:
        source: path or URL.
        longest: bytes of a name.

    Returns:
        the recording's own name without its ending, and the same with a mark of its place.
    """
    file = Path(source.split("?")[0] if is_url(source) else source)  # no query, no signature
    stem = _plain(file.stem)
    mark = _mark(source if is_url(source) else os.path.realpath(source))
    return shortened(stem, max_bytes), f"{shortened(stem, max_bytes - MARK - 1)}-{mark}"


def shortened(name: str, max_bytes: int) -> str:
    """A name of at most so many bytes: whole, or its beginning with a mark of the rest."""
    if len(_encoded(name)) <= max_bytes:
        return name
    # Characters that the cut goes through are left out.
    begin = _encoded(name)[: max_bytes - MARK - 1].decode(errors="ignore").rstrip("-.")
    return f"{begin}-{_mark(name)}"


def name_limit(folder: Path) -> int:
    """Bytes of a name that the file system of a folder takes."""
    try:
        return min(LIMIT, os.pathconf(folder, "PC_NAME_MAX"))
    except (OSError, ValueError):  # the folder is not there, or its file system does not say
        return LIMIT


def source_facts(source: str) -> dict[str, Any]:
    """Identity of a recording: its name, its place and its size in bytes."""
    facts: dict[str, Any] = {"source": source, "source_path": None, "source_bytes": None}
    if not is_url(source):
        facts["source_path"] = os.path.realpath(source)
        with contextlib.suppress(OSError):  # it may be gone while its result is still there
            facts["source_bytes"] = Path(source).stat().st_size
    return facts


def is_result_of(record: Mapping[str, Any], source: str) -> bool:
    """Whether a ``result.json`` is of a recording: of its path, or, moved, of its name and size."""
    facts = source_facts(source)
    if facts["source_path"] is not None and record.get("source_path") == facts["source_path"]:
        return True
    return all(record.get(name) == facts[name] for name in ("source", "source_bytes"))


def _plain(stem: str) -> str:
    """Letters, digits and marks on them; not like a hidden file or an option."""
    characters = [
        c if c.isalnum() or c in "_.-" or unicodedata.category(c)[0] == "M" else " "
        for c in unicodedata.normalize("NFC", stem)
    ]
    return "-".join("".join(characters).split()).strip("-.") or "video"


def _encoded(name: str) -> bytes:
    return name.encode(errors="surrogatepass")  # names that are not UTF-8


def _mark(name: str) -> str:
    return hashlib.sha256(_encoded(name)).hexdigest()[:MARK]
