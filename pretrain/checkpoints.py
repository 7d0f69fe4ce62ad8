"""Checkpoints: written whole or not at all, checked before anything of them is used.

``RUN/checkpoints/000001200/`` holds ``model.safetensors`` and ``config.json`` (what
``from_pretrained`` reads) and ``preprocessing.json`` (how its data were normalised), the same under
``average/`` where weights are averaged, the trainer's state in ``trainer.safetensors`` and
``trainer.json``, and, written last, ``COMPLETE``: size and SHA-256 of every file. The folder is
made beside its final name, flushed, then renamed.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cavmae.datasets.errors import CavmaeError
from cavmae.datasets.storage import flush_folder, sha256_of, write_atomically

log = logging.getLogger("cavmae")
SCHEMA = 1
COMPLETE = "COMPLETE"
WEIGHTS, CONFIG, AVERAGE = "model.safetensors", "config.json", "average"
PREPROCESSING = "preprocessing.json"
_NAME = re.compile(r"\d{9}", re.ASCII)
_UNFINISHED = re.compile(r"\.\d{9}\.[0-9a-f]{12}\.tmp", re.ASCII)


class Checkpoint(NamedTuple):
    """What a run needs to go on.

    Attributes:
        weights: of the model.
        config: of the model, as its ``config.json`` says it.
        preprocessing: of the data, for who uses the weights.
        averaged: the averaged weights of the model; None: there are none.
        tensors: of the trainer: optimizer, parameters beside the model's.
        trainer: everything else, as JSON-able values.
    """

    weights: Mapping[str, Tensor]
    config: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    averaged: Mapping[str, Tensor] | None
    tensors: Mapping[str, Tensor]
    trainer: Mapping[str, Any]


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / "checkpoints" / f"{step:09d}"


def complete(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    names = sorted(int(p.name) for p in folder.iterdir() if _NAME.fullmatch(p.name))
    found = [folder_of(run, step) for step in names]
    for path in found:
        if not (path / COMPLETE).is_file():
            log.warning("%s is not complete and is passed over.", path)
    return [path for path in found if (path / COMPLETE).is_file()]


def save(run: Path, step: int, checkpoint: Checkpoint, keep: int) -> None:
    """Writes a checkpoint, then removes all but the newest ``keep``.

    Raises:
        CavmaeError: it could not be written; those before it are intact.
    """
    final = folder_of(run, step)
    if (final / COMPLETE).is_file():
        return
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        (temporary / AVERAGE if checkpoint.averaged else temporary).mkdir(parents=True)
        for part, weights in (("", checkpoint.weights), (AVERAGE, checkpoint.averaged)):
            if weights:
                _write_tensors(temporary / part / WEIGHTS, weights)
                _write(temporary / part / CONFIG, _as_json(checkpoint.config))
                _write(temporary / part / PREPROCESSING, _as_json(checkpoint.preprocessing))
                flush_folder(temporary / part)
        _write_tensors(temporary / "trainer.safetensors", checkpoint.tensors)
        _write(temporary / "trainer.json", _as_json({"schema": SCHEMA, **checkpoint.trainer}))
        listing = {
            str(path.relative_to(temporary)): {
                "bytes": path.stat().st_size,
                "sha256": sha256_of(path),
            }
            for path in sorted(temporary.rglob("*"))
            if path.is_file()
        }
        _write(temporary / COMPLETE, _as_json(listing))
        flush_folder(temporary)
        if final.exists():  # an incomplete one, that somebody copied here
            final.rename(final.with_name(f".{final.name}.{uuid.uuid4().hex[:12]}.tmp"))
        temporary.rename(final)
        flush_folder(final.parent)
    except (OSError, SafetensorError) as error:
        before = complete(run)
        intact = f"{before[-1]} is intact" if before else "there is none before it"
        raise CavmaeError(
            f"The checkpoint {final} could not be written ({error}); {intact}. Make room or mend "
            "permissions, then go on with --resume auto."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for path in complete(run)[:-keep]:
        try:
            _remove(path)
        except OSError as error:
            log.warning("The old checkpoint %s could not be removed: %s.", path, error)


def remove_unfinished(run: Path) -> None:
    """Removes what a killed process left of a checkpoint it was writing."""
    with contextlib.suppress(FileNotFoundError):
        for path in (run / "checkpoints").iterdir():
            if _UNFINISHED.fullmatch(path.name):
                shutil.rmtree(path)


def verify(folder: Path) -> None:
    """Checks every file of a checkpoint against its COMPLETE.

    Raises:
        CavmaeError: a file is missing or altered.
    """
    advice = (
        f"move {folder} away to go on from the checkpoint before it, or fetch a sound copy of it"
    )
    try:
        listing = json.loads((folder / COMPLETE).read_bytes())
        wanted = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in listing.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CavmaeError(f"{folder / COMPLETE} cannot be read ({error}): {advice}.") from error
    for name, (size, digest) in wanted.items():
        path = folder / name
        if not path.is_file():
            raise CavmaeError(f"The checkpoint's file {path} is missing: {advice}.")
        if path.stat().st_size != size or sha256_of(path) != digest:
            raise CavmaeError(f"The checkpoint's file {path} was altered: {advice}.")


def load(folder: Path) -> Checkpoint:
    """Reads a checkpoint that was verified.

    Raises:
        CavmaeError: it is not one of this program's, or of another version.
    """
    try:
        trainer = json.loads((folder / "trainer.json").read_bytes())
        if trainer.get("schema") != SCHEMA:
            raise CavmaeError(
                f"{folder} was written by another version of this program: its schema is "
                f"{trainer.get('schema')}, not {SCHEMA}."
            )
        average = folder / AVERAGE / WEIGHTS
        return Checkpoint(
            weights=load_file(str(folder / WEIGHTS)),
            config=json.loads((folder / CONFIG).read_bytes()),
            preprocessing=json.loads((folder / PREPROCESSING).read_bytes()),
            averaged=load_file(str(average)) if average.is_file() else None,
            tensors=load_file(str(folder / "trainer.safetensors")),
            trainer=trainer,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise CavmaeError(f"The checkpoint {folder} cannot be read: {error}.") from error


def _as_json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=1, sort_keys=True).encode() + b"\n"


def _write(path: Path, content: bytes) -> None:
    with write_atomically(path) as file:
        file.write(content)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(path), {"format": "pt"})
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _remove(folder: Path) -> None:
    """Removes a checkpoint so that no part of it ever looks like one."""
    gone = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.tmp")
    folder.rename(gone)
    shutil.rmtree(gone)
