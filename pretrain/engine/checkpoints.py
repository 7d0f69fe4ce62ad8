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
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from torch import Tensor

from cavmae.common.errors import CavmaeError
from cavmae.common.files import flush_folder, write_atomically
from cavmae.common.json_files import json_bytes, read_json, typed, value_as
from cavmae.datasets.stream.base import Position
from cavmae.pretrain.engine.model_files import (
    AVERAGE,
    COMPLETE,
    CONFIG,
    PREPROCESSING,
    TRAINER,
    TRAINER_TENSORS,
    WEIGHTS,
    write_hashes,
)
from cavmae.pretrain.engine.tensor_files import read_tensors, write_tensors

log = logging.getLogger("cavmae")
SCHEMA = 2
TRAINER_LIMIT_BYTES = 1 << 30  # random states and positions of every rank
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
                write_tensors(temporary / part / WEIGHTS, weights)
                _write(temporary / part / CONFIG, _as_json(checkpoint.config))
                _write(temporary / part / PREPROCESSING, _as_json(preprocessing))
                flush_folder(temporary / part)
        write_tensors(temporary / TRAINER_TENSORS, checkpoint.tensors)
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
        averaging: dict[str, Any] = {}
        if (folder / AVERAGE / WEIGHTS).is_file():
            record = read_json(folder / AVERAGE / PREPROCESSING, remedy=remedy)
            averaging = typed(record, "averaging", dict)
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
        averaging=averaging,
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


def _remove(folder: Path) -> None:
    """Removes a checkpoint; no remaining part looks complete."""
    gone = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.tmp")
    folder.rename(gone)
    shutil.rmtree(gone)
