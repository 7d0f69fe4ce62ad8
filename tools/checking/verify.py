"""Verification of a data set: every shard, statistics, a contact sheet, and the report."""

import dataclasses
import logging
from collections import Counter
from pathlib import Path
from typing import Any

from cavmae.common import worker_pool
from cavmae.common.cli import output
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import Cache, is_url, make_folder, write_atomically
from cavmae.common.json_files import json_bytes
from cavmae.common.progress import Progress
from cavmae.common.quoting import visible
from cavmae.common.threads import cores
from cavmae.datasets.format.manifest import Manifest, ShardEntry
from cavmae.datasets.stream.shard_reader import Access
from cavmae.tools.check import CheckSettings
from cavmae.tools.checking import scenes, sheet
from cavmae.tools.checking.dataset_stats import Damage, Survey, statistics, survey_shard

log = logging.getLogger("cavmae")
NAMED = 50  # damaged samples on the console; the file names all
TIMEOUT = 1800.0  # seconds that a shard may take


@dataclasses.dataclass(frozen=True)
class _Task:
    manifest: Manifest
    shard: ShardEntry
    settings: CheckSettings


def survey_task(task: _Task, report: Any) -> Survey:
    """Verify and measure one shard. Runs in a worker process."""
    access = Access(cache_dir=task.settings.cache_dir)
    remote = is_url(task.manifest.folder)
    cache = Cache(access.cache_dir, int(access.cache_gb * 1e9)) if remote else None
    return survey_shard(task.manifest, task.shard, task.settings.verify, cache)


def check(data_set: str, settings: CheckSettings) -> int:
    """Check a data set.

    Returns:
        0, or 1 if anything is damaged.

    Raises:
        CavmaeError: there is no data set, or the results cannot be written.
    """
    manifest = Manifest.load(data_set)
    if settings.out is None and is_url(manifest.folder):
        raise UsageError(f"{manifest.folder} is remote: name a local folder with --out.")
    out = Path(settings.out if settings.out is not None else manifest.folder)
    make_folder(out)
    survey = _survey(manifest, settings)
    for key, times in Counter(survey.keys).items():
        if times > 1:
            survey.damage.append(Damage("", key, "repeated_key", f"{times} samples have this key"))
    if not manifest.shards:
        raise CavmaeError(f"{manifest.folder} has no samples; its skipped.jsonl gives the reasons.")
    if not survey.damage:  # statistics of a part would pass for those of the whole
        with write_atomically(out / "stats.json") as file:
            file.write(json_bytes(statistics(manifest, survey), indent=1, sort_keys=True))
    with write_atomically(out / "damage.jsonl") as file:
        for damage in survey.damage:
            file.write(json_bytes(damage._asdict(), sort_keys=True))
    output(report(manifest, survey))
    if not survey.damage:
        output("Statistics: %s", out / "stats.json")
    if settings.sheet and not any(not damage.key for damage in survey.damage):
        path = out / "contact_sheet.png"
        drawn = sheet.draw_sheet(
            manifest, Access(cache_dir=settings.cache_dir), settings.sheet, settings.seed, path
        )
        output("Contact sheet of %d samples: %s", drawn, path)
    if settings.compose and not survey.damage:
        access, path = Access("size", settings.cache_dir), out / "composed.png"
        drawn = scenes.draw_scenes(
            manifest, access, settings.scenes, settings.sheet, settings.seed, path
        )
        output("Sheet of %d composed scenes: %s", drawn, path)
    if not survey.damage:
        return 0
    for damage in survey.damage[:NAMED]:
        output("DAMAGED %s %s %s: %s", *damage)
    output("%d damaged; all are named in %s", len(survey.damage), out / "damage.jsonl")
    return 1


def _survey(manifest: Manifest, settings: CheckSettings) -> Survey:
    total = Survey()
    bare = dataclasses.replace(manifest, shards=(), labels=())  # a worker needs one shard only
    tasks = ((i, _Task(bare, s, settings)) for i, s in enumerate(manifest.shards))
    surveys: dict[int, Survey] = {}
    with Progress(len(manifest.shards), "shard") as progress:
        for event in worker_pool.run(
            tasks,
            survey_task,
            settings.workers or cores(),
            TIMEOUT,
            memory_bytes=8e9,
        ):
            if isinstance(event, worker_pool.TaskProgress | worker_pool.Restarted):
                continue
            if isinstance(event, worker_pool.Finished):
                surveys[event.task] = event.result
            elif isinstance(event, worker_pool.Lost):
                name = manifest.shards[event.task].file
                damage = Damage(name, "", event.reason, f"reading it: {event.detail}")
                surveys[event.task] = Survey(damage=[damage])
            progress.done()
    for number in sorted(surveys):
        total += surveys[number]
    return total


def _most(counts: Counter[str], unit: str, limit: int = 6) -> str:
    if not counts:
        return "none"
    common = ", ".join(f"{name} ({n})" for name, n in counts.most_common(limit))
    more = f", ... {len(counts)} {unit}" if len(counts) > limit else ""
    return common + more


def report(manifest: Manifest, survey: Survey) -> str:
    """Text report of a data set."""
    quiet = survey.quiet_frames / max(1, survey.fbank_rows)
    lines = [
        ("Data set", manifest.folder),
        (
            "Samples",
            f"{survey.samples} of {manifest.samples} intact, in {len(manifest.shards)} shards",
        ),
        (
            "Inputs",
            f"{manifest.inputs}, with {manifest.skipped} inputs or clips skipped",
        ),
        ("Duration", f"{survey.seconds / 3600:.3f} h, {survey.seconds:.1f} s"),
        ("Frames", f"{survey.frames}, {survey.masks} with masks, {survey.missing_frames} missing"),
        ("Frames a second", _most(survey.frame_rates, "rates")),
        ("Frame sizes", _most(survey.sizes, "sizes")),
        ("Decoders", _most(survey.decoders, "decoders")),
        ("Labels", _most(survey.labels, "labels")),
        ("Speakers", _most(survey.speakers, "speakers")),
        ("Silence", f"{100 * quiet:.1f} % of the time, {survey.silent} silent clips"),
        ("Fbank", f"mean {survey.fbank_mean:.4f}, std {survey.fbank_std:.4f}"),
    ]
    return "\n".join(f"{name + ':':<17}{visible(value)}" for name, value in lines)
