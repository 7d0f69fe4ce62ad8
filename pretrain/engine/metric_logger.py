"""What a run tells of itself: metrics.jsonl, a tracker, lines on the terminal."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from accelerate import Accelerator

from cavmae.common.errors import CavmaeError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import json_bytes, parse_json, typed

log = logging.getLogger("cavmae")
METRICS = "metrics.jsonl"


class MetricLogger:
    """Appends to ``RUN/metrics.jsonl`` and to a tracker; of one process of a run.

    A run that goes on at a step takes back what the interrupted one told of later steps: those
    lines move to ``metrics.superseded.jsonl``.

    Args:
        run: its folder.
        step: at which it goes on; 0: it begins.
        accelerator: whose tracker is used.
        tracker: ``tensorboard``, ``wandb`` or ``none``.
    """

    def __init__(self, run: Path, step: int, accelerator: Accelerator, tracker: str):
        self._accelerator = accelerator
        self._path = run / METRICS
        if self._path.exists():
            self._take_back(run, step)
        self._file: IO[str] = self._path.open("a")
        options = {"tensorboard": {"purge_step": step + 1}} if tracker == "tensorboard" else {}
        if tracker != "none":
            accelerator.init_trackers(tracker, init_kwargs=options)

    def _take_back(self, run: Path, step: int) -> None:
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

    def log(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """One line: numbers of a step.

        Args:
            kind: ``train`` or ``held_out``.

        Raises:
            CavmaeError: it cannot be written.
        """
        # JSON knows no NaN: a number that is none is null.
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        try:
            self._file.write(json_bytes({"step": step, "kind": kind, **finite}).decode())
            self._file.flush()
        except OSError as error:
            raise CavmaeError(f"{self._path} cannot be written: {error}.") from error
        self._accelerator.log({f"{kind}/{k}": v for k, v in values.items()}, step=step)

    def close(self) -> None:
        """Ends the tracker too."""
        self._file.close()
        for tracker in self._accelerator.trackers:
            tracker.finish()
