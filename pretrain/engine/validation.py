"""A held-out set through a task, in every process of a run."""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from cavmae.common.errors import CavmaeError
from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.loader import Loader
from cavmae.pretrain.engine.distributed import DistEnv
from cavmae.pretrain.engine.task import Record


@torch.no_grad()
def validation_records(
    module: nn.Module,
    loader: Loader,
    moved: Callable[[Batch], Batch],
    processes: DistEnv,
    sharded: bool,
) -> tuple[list[Record], CavmaeError | None]:
    """What a task notes of this process's held-out batches, and what went wrong, if anything.

    Args:
        module: the task, wrapped if its weights are sharded.
        moved: puts a batch on the device.
        sharded: all processes have to go through as many batches, as each gathers its weights from
            all of them.
    """
    records: list[Record] = []
    try:
        for batch, counts in _evenly(iter(loader), moved, processes, sharded):
            record = module("evaluate", batch)
            if counts:
                records.append(record)
    except CavmaeError as error:
        return [], error
    except Exception as error:  # noqa: BLE001 - told by all processes
        return [], CavmaeError(f"Evaluation failed: {type(error).__name__}: {error}")
    return records, None


def _evenly(
    batches: Iterator[Batch],
    moved: Callable[[Batch], Batch],
    processes: DistEnv,
    sharded: bool,
) -> Iterator[tuple[Batch, bool]]:
    """Batches on the device, and whether they count: who has no more shows its last one again."""
    before: Batch | None = None
    while True:
        batch: Batch | None = None
        problem: CavmaeError | None = None
        try:
            batch = next(batches, None)
        except CavmaeError as error:
            problem = error
        some = batch is not None
        if sharded:
            some, failed, nothing = processes.any(
                some, problem is not None, batch is None and before is None
            )
            if failed and problem is None:
                problem = CavmaeError("Another process could not read the held-out set.")
            elif some and nothing:
                problem = CavmaeError("The held-out set has fewer batches than processes.")
        if problem is not None:
            raise problem
        if not some:
            return
        if batch is not None:
            before = moved(batch)
        assert before is not None
        yield before, batch is not None
