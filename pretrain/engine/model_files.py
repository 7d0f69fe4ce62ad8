"""Files of checkpoints and models: their names, and the hashes that vouch for them.

It imports no PyTorch, so that models are listed at once.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from cavmae.common.errors import CavmaeError
from cavmae.common.files import flush_folder, sha256_of, write_atomically
from cavmae.common.json_files import json_bytes, read_json, typed

COMPLETE = "COMPLETE"
WEIGHTS, CONFIG, AVERAGE = "model.safetensors", "config.json", "average"
PREPROCESSING = "preprocessing.json"
TRAINER, TRAINER_TENSORS = "trainer.json", "trainer.safetensors"
MODEL_FILES = (CONFIG, WEIGHTS)  # without which there is no model
_OF_A_MODEL = (*MODEL_FILES, PREPROCESSING)
# All that is ever read of a checkpoint. Other files (a card, notes) may lie beside these.
FILES = (*_OF_A_MODEL, *(f"{AVERAGE}/{name}" for name in _OF_A_MODEL), TRAINER, TRAINER_TENSORS)
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)


def write_hashes(folder: Path) -> None:
    """Writes ``COMPLETE`` of the files of a checkpoint or model, and flushes the folder."""
    listing = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
        for name in FILES
        if (folder / name).is_file()
    }
    with write_atomically(folder / COMPLETE) as file:
        file.write(json_bytes(listing, indent=1, sort_keys=True))
    flush_folder(folder)


def verify(folder: Path) -> None:
    """Checks every file of a checkpoint against its ``COMPLETE``.

    Raises:
        CavmaeError: a file is missing or altered; or ``COMPLETE`` does not name the files that are
            there, and no others.
    """
    advice = (
        f"move {folder} away to go on from the checkpoint before it, or fetch a sound copy of it"
    )
    _verify(folder, FILES, advice)


def verify_model(folder: Path) -> None:
    """Checks the files of a model, not of its training, against ``COMPLETE`` if it is there.

    Args:
        folder: a checkpoint, its averaged weights (``average``), or an exported model.

    Raises:
        CavmaeError: see :func:`verify`.
    """
    whole = folder.resolve()
    inside = ""
    if whole.name == AVERAGE and not (whole / COMPLETE).exists():
        whole, inside = whole.parent, f"{AVERAGE}/"
    if (whole / COMPLETE).exists():
        advice = f"fetch a sound copy of {folder}, or use another checkpoint"
        _verify(whole if inside else folder, [inside + name for name in _OF_A_MODEL], advice)


def _verify(folder: Path, names: Sequence[str], advice: str) -> None:
    listing = read_hashes(folder, advice)
    for name in FILES:
        if name not in listing and (folder / name).exists():
            raise CavmaeError(
                f"{folder / COMPLETE} does not name {name}, which is there: {advice}."
            )
    for name in names:
        if name not in listing:
            continue
        path, (size, digest) = folder / name, listing[name]
        if not path.is_file():
            raise CavmaeError(f"The checkpoint's file {path} is missing: {advice}.")
        if path.stat().st_size != size or sha256_of(path) != digest:
            raise CavmaeError(f"The checkpoint's file {path} was altered: {advice}.")


def read_hashes(folder: Path, advice: str) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of each file that a ``COMPLETE`` names."""
    path = folder / COMPLETE
    try:
        record = read_json(path, remedy=advice)
        for name in (*MODEL_FILES, *(record if isinstance(record, dict) else ())):
            if name not in FILES:
                raise ValueError(f"{name[:100]!r} is no file of a checkpoint")
            entry = typed(record, name, dict)
            if typed(entry, "bytes", int) < 0 or not _HASH.fullmatch(typed(entry, "sha256", str)):
                raise ValueError(f"no size and SHA-256 of {name}")
    except (OSError, ValueError) as error:
        raise CavmaeError(f"{path} cannot be used ({error}): {advice}.") from error
    return {name: (entry["bytes"], entry["sha256"]) for name, entry in record.items()}
