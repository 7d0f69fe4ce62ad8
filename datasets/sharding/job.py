"""A sharding job: creates or completes a data set, with a pool of worker processes."""

import contextlib
import dataclasses
import gc
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cavmae.common import ray_pool, worker_pool
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import is_url
from cavmae.common.progress import ShardProgress
from cavmae.common.remote import Limits, local_path
from cavmae.common.stores import Store
from cavmae.common.threads import cores
from cavmae.datasets.format.manifest import NAME, Manifest
from cavmae.datasets.sharding.input_lists import collect, log_refused
from cavmae.datasets.sharding.input_plan import Plan
from cavmae.datasets.sharding.inputs import Input
from cavmae.datasets.sharding.job_state import (
    InputLayout,
    State,
    drop_retried,
    locked,
    merge_parts,
    pending_retries,
    read_lines,
    remove_copies,
    remove_work,
)
from cavmae.datasets.sharding.parts import parse_part, share_of
from cavmae.datasets.sharding.settings import (
    SHARD_BYTES,
    SHARD_NAME,
    ShardRunSettings,
    ShardSettings,
)
from cavmae.datasets.sharding.shard_writer import Assembler
from cavmae.datasets.sharding.takeover import check_place, refuse_other_sets
from cavmae.datasets.sharding.task_queue import ShardTask, TaskQueue
from cavmae.datasets.sharding.uploads import Uploads, refuse_local_folder

log = logging.getLogger("cavmae")


@worker_pool.with_modules("cavmae.datasets.sharding.clip_extraction", "webdataset")
def shard_task(task: ShardTask, report: Any) -> None:
    """Extract an input, or a stretch of one. Runs in a worker: this process lacks PyTorch."""
    from cavmae.datasets.sharding.clip_extraction import shard_input

    shard_input(
        task.item, task.settings, task.part, report, task.limits, task.stretch_seconds,
        task.assigned,
    )  # fmt: skip


def shard(
    names: Sequence[str], out: str | Path, settings: ShardSettings, run_settings: ShardRunSettings
) -> int:
    """Create or complete a data set.

    Args:
        names: of the inputs.
        out: folder of the data set, or address of one at an object store.
        settings: of the samples.
        run_settings: of the run.

    Returns:
        0, or 1 if no input gave a sample. A part without inputs is done: 0.

    Raises:
        CavmaeError: bad usage, a folder of other settings, a full or read-only disk, a store that
            fails or has another data set there.
    """
    settings = settings.resolved()
    if run_settings.download_gb <= 0 or run_settings.stall_seconds <= 0:
        raise UsageError("--download-gb and --stall-seconds must be positive numbers.")
    if run_settings.stretch_minutes < 0:
        raise UsageError("--stretch-minutes must be a positive number, or 0 for whole inputs.")
    folder, store = _destination(str(out), run_settings)
    items = select_inputs(names, run_settings)
    try:
        part = _choose_part(folder, store, run_settings)
        layout = InputLayout(folder, SHARD_NAME, part)
        folder.mkdir(parents=True, exist_ok=True)
        if part is not None:
            if store is not None:
                check_place(layout, store)
            items = share_of(items, part, folder, store)
        with locked(layout), contextlib.ExitStack() as stack:
            uploads = None
            if store is not None:
                uploads = stack.enter_context(contextlib.closing(Uploads(layout, store)))
            manifest = _write_shards(layout, items, settings, run_settings, uploads)
            if uploads is not None:
                uploads.publish()
            _summary(layout, manifest, out)
            if part is not None:
                _join_parts(layout, part[1], uploads)
            if uploads is not None:
                uploads.end()
            remove_work(layout)
    except OSError as error:
        raise CavmaeError(
            f"Cannot write to {folder}: {error.strerror or error}; finished work is kept; "
            "fix this and run the same command again."
        ) from error
    empty_part = part is not None and not manifest.inputs  # its share is none of the inputs
    return 0 if manifest.samples or empty_part else 1


def _destination(out: str, run_settings: ShardRunSettings) -> tuple[Path, Store | None]:
    """Folder of this machine in which the data set is built, and the store that receives it.

    Raises:
        UsageError: options or an address that do not fit.
        CavmaeError: a folder that is used for the other kind of output.
    """
    out = local_path(out) or out
    local_folder = run_settings.local_folder
    if not is_url(out):
        if local_folder is not None:
            raise UsageError("--local-folder is for a remote --out, such as s3://BUCKET/FOLDER.")
        refuse_local_folder(Path(out))
        return Path(out), None
    store = Store.parse(out, Limits(stall_seconds=run_settings.stall_seconds))
    if local_folder is None or is_url(local_folder):
        raise UsageError(
            f"--out {store.url} needs --local-folder DIR: a folder of this machine with room for a "
            "few shards, in which the data set is built."
        )
    return Path(local_folder), store


def _choose_part(
    folder: Path, store: Store | None, run_settings: ShardRunSettings
) -> tuple[int, int] | None:
    if not run_settings.part:
        return None
    if store is not None and run_settings.part == "auto":  # which may be recorded there
        refuse_other_sets(store, store.sizes(), (0, 0))
    return parse_part(run_settings.part, folder, os.environ, store)


def _join_parts(layout: InputLayout, count: int, uploads: Uploads | None) -> None:
    """Writes the manifest of the whole data set if all parts are done."""
    if uploads is not None:
        merged, place = uploads.publish_whole(count), uploads.store.address(NAME)
    else:
        merged, place = merge_parts(layout.folder, count), str(layout.folder / NAME)
    log.info(
        "All %d parts are done: %s joins them."
        if merged
        else "Some of %d parts are missing or not finished; the last one to finish writes %s.",
        count,
        place,
    )


def select_inputs(names: Sequence[str], run_settings: ShardRunSettings) -> list[Input]:
    items, repeated = collect(names)
    if repeated:
        log.info("%d inputs are named more than once; each is used once.", len(repeated))
    if not items:
        raise CavmaeError(f"No videos in {', '.join(map(repr, names))}.")
    log_refused(items)
    if not run_settings.keep_order:
        items.sort(key=lambda item: item.identity)
    return items


def _write_shards(
    layout: InputLayout,
    items: list[Input],
    settings: ShardSettings,
    run_settings: ShardRunSettings,
    uploads: Uploads | None,
) -> Manifest:
    remove_copies(layout.work_folder, "*.input-")
    remove_copies(layout.work_folder, ray_pool.MAIL_PREFIX)
    values = dataclasses.asdict(settings)
    if uploads is not None:
        uploads.take_up(items, values)
    state = State.load(layout, values)
    plan = Plan(layout)
    _check_parts(layout)
    if uploads is not None:
        uploads.start(state)
    else:
        _check_shards(layout, state)
    before = len(plan.items)
    fresh = plan.extend(items)
    items.clear()  # the plan's file has them now; of a million, collecting returns 0.3 GB at once
    gc.collect()
    retried = 0
    if run_settings.retry_skipped:
        retried = plan.extend_by_retries(pending_retries(layout))
        drop_retried(layout, state)
    complete = state.item == len(plan.items) and layout.manifest.exists()
    if uploads is not None:
        uploads.publish_plan(len(plan.items), complete)
    samples, size = (1, 1.0) if complete else (settings.shard_samples, SHARD_BYTES)
    assembler = Assembler(layout, plan, state, samples, size, uploads)
    assembler.load_finished()
    if before:
        done = min(state.item, before) + sum(number < before for number in assembler.finished())
        log.info(
            "%s: %d of %d inputs were done before, %d are new%s%s.",
            layout.folder, done, before, fresh,
            f", {retried} that were skipped are tried again"
            if run_settings.retry_skipped else "",
            "; it is complete, nothing is left to do" if complete else "",
        )  # fmt: skip
    if complete:
        return assembler.finish()
    assembler.advance()
    while True:
        _run_pool(layout, plan, assembler, settings, run_settings, uploads)
        assembler.advance(wait=True)
        if assembler.next_item == len(plan.items):
            return assembler.finish()
        log.info(
            "The part of %s is damaged on disk; it is extracted again.",
            plan.items[assembler.next_item].source,
        )


def _check_parts(layout: InputLayout) -> None:
    """Raise CavmaeError if the folder has another number of parts."""
    for path in layout.folder.glob("inputs*.jsonl"):
        parts = path.stem.rpartition("-of-")[2] if "-of-" in path.stem else ""
        wanted = str(layout.part[1]) if layout.part else ""
        if parts != wanted:
            layout_in_use = f"in {parts} parts" if parts else "in one piece, not in parts"
            raise CavmaeError(
                f"{layout.folder} was made {layout_in_use}; choose another --out folder."
            )


def _check_shards(layout: InputLayout, state: State) -> None:
    """Raise CavmaeError if the folder lacks shards."""
    for shard in state.shards:
        path = layout.folder / shard.file
        if not path.exists() or path.stat().st_size != shard.bytes:
            raise CavmaeError(
                f"Shard {path} is missing or altered: copy it back, or create the data set in "
                "another --out folder."
            )


def _run_pool(
    layout: InputLayout,
    plan: Plan,
    assembler: Assembler,
    settings: ShardSettings,
    run_settings: ShardRunSettings,
    uploads: Uploads | None,
) -> None:
    first, finished = assembler.next_item, assembler.finished()
    todo = ((n, plan.items[n]) for n in range(first, len(plan.items)) if n not in finished)
    limits = Limits(run_settings.download_gb * 1e9, run_settings.stall_seconds)
    workers, limit = run_settings.workers, run_settings.memory_gb * 1e9
    has_room = uploads.has_room if uploads is not None else lambda: True
    if run_settings.executor == "local":
        workers = workers or cores()
    # A single worker gains nothing by stretches.
    seconds = 60 * run_settings.stretch_minutes if workers != 1 else 0.0
    queue = TaskQueue(layout, todo, settings, limits, seconds or None, assembler.awaited)
    if run_settings.executor == "ray":
        events = ray_pool.run(
            queue.tasks(), shard_task, run_settings.ray_address, layout.work_folder, workers,
            run_settings.timeout, limit, has_room,
        )  # fmt: skip
    else:
        events = worker_pool.run(
            queue.tasks(), shard_task, workers, run_settings.timeout, limit, has_room
        )
    progress = ShardProgress(len(plan.items), first + len(finished))
    with progress, contextlib.closing(events):
        for event in events:
            done = queue.handle(event)
            progress.set_clips(queue.clips, queue.seconds)
            if done is None:
                if uploads is not None and assembler.advance() is not None:
                    return  # what had to wait for uploads
                continue
            assembler.finish_item(*done)
            progress.done()
            if assembler.advance() is not None:
                return  # the caller extracts the damaged input again
    log.info("%s.", progress.status())


def _summary(layout: InputLayout, manifest: Manifest, out: str | Path) -> None:
    log.info("%d samples in %d shards in %s.", manifest.samples, len(manifest.shards), out)
    reasons = Counter(record["reason"] for record in read_lines(layout.skipped))
    if reasons:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        log.info("Skipped (%s): %s.", layout.skipped, counts)
