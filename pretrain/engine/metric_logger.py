"""Metric logging: metrics.jsonl and a tracker."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO

from accelerate import Accelerator

from cavmae.common.errors import CavmaeError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import json_bytes, parse_json, typed

log = logging.getLogger("cavmae")
METRICS = "metrics.jsonl"


class MetricLogger:
    """Appends metrics to ``RUN/metrics.jsonl`` and to a tracker, in one process of a run.

    A resumed run moves lines of later steps to ``metrics.superseded.jsonl``.

    Args:
        run: folder of the run.
        step: at which the run resumes; 0: it begins.
        accelerator: with the tracker.
        tracker: ``tensorboard``, ``wandb`` or ``none``.
    """

    def __init__(self, run: Path, step: int, accelerator: Accelerator, tracker: str):
        self._accelerator = accelerator
        self._path = run / METRICS
        if self._path.exists():
            self._supersede_later_steps(run, step)
        self._file: IO[str] = self._path.open("a")
        options = {"tensorboard": {"purge_step": step + 1}} if tracker == "tensorboard" else {}
        if tracker != "none":
            accelerator.init_trackers(tracker, init_kwargs=options)

    def _supersede_later_steps(self, run: Path, step: int) -> None:
        kept: list[bytes] = []
        later: list[bytes] = []
        for line in self._path.read_bytes().splitlines():
            try:
                then = typed(parse_json(line, METRICS), "step", int)
                (kept if then <= step else later).append(line)
            except (ValueError, CavmaeError):
                later.append(line)  # half a line, where the disk was full or the power cut
        if later:
            with (run / "metrics.superseded.jsonl").open("ab") as file:
                file.writelines(line + b"\n" for line in later)
            with write_atomically(self._path) as whole:
                whole.writelines(line + b"\n" for line in kept)

    def log(
        self, step: int, kind: str, values: Mapping[str, float],
        conditions: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """Writes one line: the values of a step.

        Args:
            kind: ``train`` or ``held_out``.
            conditions: under which the values were measured.

        Raises:
            CavmaeError: the line cannot be written.
        """
        # JSON has no NaN: such a number is null.
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        try:
            self._file.write(
                json_bytes({"step": step, "kind": kind, **conditions, **finite}).decode()
            )
            self._file.flush()
        except OSError as error:
            raise CavmaeError(f"{self._path} cannot be written: {error}.") from error
        self._accelerator.log({f"{kind}/{k}": v for k, v in values.items()}, step=step)

    def close(self) -> None:
        """Closes the file and the tracker."""
        self._file.close()
        for tracker in self._accelerator.trackers:
            tracker.finish()
