"""Validation pass over a held-out set, in every process of a run."""

from collections.abc import Iterator

import torch
from torch import nn

from cavmae.common.device import to_device
from cavmae.common.errors import CavmaeError
from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.loader import Loader
from cavmae.pretrain.engine.distributed import DistEnv
from cavmae.pretrain.engine.task import Record


@torch.no_grad()
def validation_records(
    module: nn.Module,
    loader: Loader,
    device: torch.device,
    processes: DistEnv,
    sharded: bool,
) -> tuple[list[Record], CavmaeError | None]:
    """Records of this process's held-out batches, and the error that ended them, if any.

    Args:
        module: the task, wrapped if its weights are sharded.
        device: of the module.
        processes: of the run.
        sharded: all processes make the same number of forward passes, since each gathers weights
            from all.
    """
    records: list[Record] = []
    try:
        for batch, counts in _evenly(iter(loader), device, processes, sharded):
            record = module("validation_step", batch)
            if counts:
                records.append(record)
    except CavmaeError as error:
        return [], error
    except Exception as error:  # noqa: BLE001 - raised in all processes
        return [], CavmaeError(f"Evaluation failed: {type(error).__name__}: {error}")
    return records, None


def _evenly(
    batches: Iterator[Batch],
    device: torch.device,
    processes: DistEnv,
    sharded: bool,
) -> Iterator[tuple[Batch, bool]]:
    """Batches on the device, and whether they count: a shorter set repeats its last batch."""
    before: Batch | None = None
    while True:
        batch: Batch | None = None
        problem: CavmaeError | None = None
        try:
            batch = next(batches, None)
        except CavmaeError as error:
            problem = error
        has_batch = batch is not None
        if sharded:
            has_batch, failed, nothing = processes.any_process(
                has_batch, problem is not None, batch is None and before is None
            )
            if failed and problem is None:
                problem = CavmaeError("Another process could not read the held-out set.")
            elif has_batch and nothing:
                problem = CavmaeError("The held-out set has fewer batches than processes.")
        if problem is not None:
            raise problem
        if not has_batch:
            return
        if batch is not None:
            before = to_device(batch, device)
        assert before is not None
        yield before, batch is not None
