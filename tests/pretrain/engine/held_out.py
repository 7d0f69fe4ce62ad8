"""Metrics of a held-out set, as several processes measure it, one after the other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cavmae.common.cli import parse_settings, parser
from cavmae.pretrain.engine.distributed import DistEnv
from cavmae.pretrain.engine.run import Build, RunContext
from cavmae.pretrain.engine.validation import validation_records


class Share(DistEnv):
    """One of several processes that exchange nothing."""

    def __init__(self, rank: int, count: int):
        self.together = False
        self.rank, self.count = rank, count


def held_out_metrics(
    build: Build[Any], settings_class: type, words: Sequence[str], processes: int, folder: Path
) -> tuple[int, Mapping[str, float]]:
    """Number of records of batches, and metrics, of a run that ``processes`` processes make."""
    settings, _ = parse_settings(parser("training", ""), settings_class, words)
    records: list[Any] = []
    for rank in range(processes):
        share = Share(rank, processes)
        parts = build(settings, RunContext(share, str(folder / f"broken{rank}.jsonl"), False))
        assert parts.held_out is not None
        parts.task.eval()
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(settings.loop.seed)
            own, problem = validation_records(
                parts.task, parts.held_out, torch.device("cpu"), share, False
            )
        assert problem is None, problem
        records += own
    return len(records), parts.task.aggregate(records)
