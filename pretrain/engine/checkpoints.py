"""Checkpoints: written atomically, verified before use.

``RUN/checkpoints/000001200/`` holds ``model.safetensors`` and ``config.json`` (what
``from_pretrained`` reads) and ``preprocessing.json`` (how its data were normalised), the same under
``average/`` where weights are averaged, the trainer's state in ``trainer.safetensors`` and
``trainer.json``, and, written last, ``COMPLETE``: size and SHA-256 of every file. The folder is
made beside its final name, flushed, then renamed. Exported and converted models have a ``COMPLETE``
too. Where there is one, nothing is used that it does not vouch for.
"""

import contextlib
import logging
import os
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from cavmae.common.errors import CavmaeError
from cavmae.common.files import flush_folder, sha256_of, write_atomically
from cavmae.common.json_files import json_bytes, read_json, typed, value_as
from cavmae.datasets.stream.base import Position
from cavmae.pretrain.engine.tensor_files import read_tensors

log = logging.getLogger("cavmae")
SCHEMA = 2
COMPLETE = "COMPLETE"
WEIGHTS, CONFIG, AVERAGE = "model.safetensors", "config.json", "average"
PREPROCESSING = "preprocessing.json"
TRAINER, TRAINER_TENSORS = "trainer.json", "trainer.safetensors"
MODEL_FILES = (CONFIG, WEIGHTS)  # without which there is no model
_OF_A_MODEL = (*MODEL_FILES, PREPROCESSING)
# All that is ever read of a checkpoint. Other files (a card, notes) may lie beside these.
FILES = (*_OF_A_MODEL, *(f"{AVERAGE}/{name}" for name in _OF_A_MODEL), TRAINER, TRAINER_TENSORS)
TRAINER_LIMIT_BYTES = 1 << 30  # random states and positions of every rank
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NAME = re.compile(r"\d{9}", re.ASCII)
_UNFINISHED = re.compile(r"\.\d{9}\.[0-9a-f]{12}\.tmp", re.ASCII)


class Checkpoint(NamedTuple):
    """Content of a checkpoint.

    Attributes:
        weights: of the model.
        config: of the model, as its ``config.json`` says it.
        preprocessing: of the data, for who uses the weights.
        averaged: the averaged weights of the model; None: there are none.
        tensors: of the trainer: optimizer, parameters beside the model's.
        trainer: everything else, as JSON-able values.
        averaging: kind of the average, which goes into its ``preprocessing.json``.
    """

    weights: Mapping[str, Tensor]
    config: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    averaged: Mapping[str, Tensor] | None
    tensors: Mapping[str, Tensor]
    trainer: Mapping[str, Any]
    averaging: Mapping[str, Any]


def checkpoint_folder(run: Path, step: int) -> Path:
    """Folder of the checkpoint of a step."""
    return run / "checkpoints" / f"{step:09d}"


def complete_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    names = sorted(int(p.name) for p in folder.iterdir() if _NAME.fullmatch(p.name))
    folders = [checkpoint_folder(run, step) for step in names]
    for path in folders:
        if not (path / COMPLETE).is_file():
            log.warning("%s is not complete and is passed over.", path)
    return [path for path in folders if (path / COMPLETE).is_file()]


def save(run: Path, step: int, checkpoint: Checkpoint, keep: int) -> None:
    """Writes a checkpoint, then removes all but the newest ``keep``.

    Raises:
        CavmaeError: it could not be written; those before it are intact.
    """
    final = checkpoint_folder(run, step)
    if (final / COMPLETE).is_file():
        return
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        (temporary / AVERAGE if checkpoint.averaged else temporary).mkdir(parents=True)
        average = {**checkpoint.preprocessing, "averaging": checkpoint.averaging}
        for part, weights, preprocessing in (
            ("", checkpoint.weights, checkpoint.preprocessing),
            (AVERAGE, checkpoint.averaged, average),
        ):
            if weights:
                _write_tensors(temporary / part / WEIGHTS, weights)
                _write(temporary / part / CONFIG, _as_json(checkpoint.config))
                _write(temporary / part / PREPROCESSING, _as_json(preprocessing))
                flush_folder(temporary / part)
        _write_tensors(temporary / TRAINER_TENSORS, checkpoint.tensors)
        _write(temporary / TRAINER, _as_json({"schema": SCHEMA, **checkpoint.trainer}))
        write_hashes(temporary)
        if final.exists():  # an incomplete one, that somebody copied here
            final.rename(final.with_name(f".{final.name}.{uuid.uuid4().hex[:12]}.tmp"))
        temporary.rename(final)
        flush_folder(final.parent)
    except (OSError, SafetensorError) as error:
        before = complete_checkpoints(run)
        intact = f"{before[-1]} is intact" if before else "there is none before it"
        raise CavmaeError(
            f"The checkpoint {final} could not be written ({error}); {intact}. Make room or mend "
            "permissions, then go on with --resume auto."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for path in complete_checkpoints(run)[:-keep]:
        try:
            _remove(path)
        except OSError as error:
            log.warning("The old checkpoint %s could not be removed: %s.", path, error)


def remove_unfinished(run: Path) -> None:
    """Removes partial checkpoints of killed processes."""
    with contextlib.suppress(FileNotFoundError):
        for path in (run / "checkpoints").iterdir():
            if _UNFINISHED.fullmatch(path.name):
                shutil.rmtree(path)


def write_hashes(folder: Path) -> None:
    """Writes ``COMPLETE`` of the files of a checkpoint or model, and flushes the folder."""
    listing = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
        for name in FILES
        if (folder / name).is_file()
    }
    _write(folder / COMPLETE, _as_json(listing))
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
    listing = _read_hashes(folder, advice)
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


def _read_hashes(folder: Path, advice: str) -> dict[str, tuple[int, str]]:
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


def load(folder: Path) -> Checkpoint:
    """Reads a verified checkpoint.

    Raises:
        CavmaeError: it is not one of this program's, or of another version.
    """
    remedy = f"go on from the checkpoint before {folder}, or fetch a sound copy of it"
    try:
        trainer = read_json(folder / TRAINER, remedy=remedy, limit_bytes=TRAINER_LIMIT_BYTES)
        schema = typed(trainer, "schema", int)
        if schema != SCHEMA:
            raise CavmaeError(
                f"{folder} was written by another version of this program: its schema is "
                f"{schema}, not {SCHEMA}."
            )
        _check_trainer(trainer)
        records = [read_json(folder / name, remedy=remedy) for name in (CONFIG, PREPROCESSING)]
        if not all(isinstance(record, dict) for record in records):
            raise ValueError("its configuration is no object")
    except (OSError, ValueError) as error:
        raise CavmaeError(f"The checkpoint {folder} cannot be used ({error}): {remedy}.") from error
    average = folder / AVERAGE / WEIGHTS
    return Checkpoint(
        weights=read_tensors(folder / WEIGHTS, remedy),
        config=records[0],
        preprocessing=records[1],
        averaged=read_tensors(average, remedy) if average.is_file() else None,
        tensors=read_tensors(folder / TRAINER_TENSORS, remedy, finite=False),
        trainer=trainer,
        averaging={},
    )


def _check_trainer(trainer: Any) -> None:
    """Checks the types of all fields of ``trainer.json``. Raises ValueError."""
    for name in ("step", "samples", "averages"):
        typed(trainer, name, int)
    for name in ("skipped", "in_row"):
        typed(typed(trainer, "nonfinite", dict), name, int)
    typed(trainer, "scaler", dict, type(None))
    for group in typed(trainer, "groups", list):
        value_as(list[str], typed(group, "params", list), "params")
    if not typed(trainer, "ranks", list):
        raise ValueError("field ranks is empty")
    for rank in trainer["ranks"]:
        typed(rank, "random", dict)
        loader = typed(rank, "loader", dict)
        typed(loader, "signature", dict)
        typed(loader, "turn", int)
        if "data_sets" in loader:
            _check_turns(loader)
        for part in loader.get("data_sets", [loader]):
            typed(part, "signature", dict)
            if not typed(part, "positions", list):
                raise ValueError("field positions is empty")
            for position in part["positions"]:
                value_as(Position, position, "position")


def _check_turns(loader: Mapping[str, Any]) -> None:
    """Raises ValueError for a state of several data sets with counts that are not theirs."""
    typed(loader, "samples_before", int)
    sets, rank = len(typed(loader, "data_sets", list)), typed(loader["signature"], "rank", int)
    for worker in typed(loader, "drawn", list):
        counts = value_as(list[int], worker, "drawn")
        if len(counts) != sets or sum(counts) < rank:
            raise ValueError("field drawn does not count the samples of each data set")


def _as_json(values: Mapping[str, Any]) -> bytes:
    return json_bytes(values, indent=1, sort_keys=True)


def _write(path: Path, content: bytes) -> None:
    with write_atomically(path) as file:
        file.write(content)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(path), {"format": "pt"})
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _remove(folder: Path) -> None:
    """Removes a checkpoint; no remaining part looks complete."""
    gone = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.tmp")
    folder.rename(gone)
    shutil.rmtree(gone)
