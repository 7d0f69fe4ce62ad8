"""Search of `cavmae expand`: trials in processes of their own, kept results, table and plot."""

import contextlib
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cavmae.common import worker_pool
from cavmae.common.cli import output, stop_on_signals
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.json_files import read_json
from cavmae.common.locks import locked
from cavmae.common.registry import to_json_value
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.mixtures.clip_pool import ClipPool
from cavmae.datasets.mixtures.sampler import SceneSampler
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.datasets.stream.shard_reader import Access
from cavmae.finetune.speaker.scene_lists import shared_sources
from cavmae.tools.benchmarks.kept_results import check_settings
from cavmae.tools.expanding.axes import axes_of, network_of, start_point
from cavmae.tools.expanding.cost import CostBook
from cavmae.tools.expanding.results import path_table, write_results
from cavmae.tools.expanding.search import Point, expand
from cavmae.tools.expanding.settings import ExpandSettings
from cavmae.tools.expanding.trial import TrialJob, run_trial

log = logging.getLogger("cavmae")
RATE_SLACK = 0.9  # of a video's frames that may be missing
# Settings that trials do not depend on.
OF_SEARCH = (
    "out", "budget_gmacs", "budget_ms", "axes", "motion", "resolution", "seconds", "jobs"
)  # fmt: skip


def run(settings: ExpandSettings) -> None:
    """Expands the pathway up to the budget, and prints the table of the path.

    Raises:
        UsageError: an option is out of range, clips cannot give what the axes need, or the folder
            has trials of other settings.
        CavmaeError: another process uses the folder, clips cannot be used, or a trial ended.
    """
    side = _check_clips(settings)
    axes = axes_of(settings, side)
    start = start_point(settings)
    out = Path(settings.out)
    message = f"Another process searches in {out}: wait for it, or choose another --out."
    with locked(out / ".lock", message), stop_on_signals():
        kept = to_json_value(settings)
        for name in OF_SEARCH:
            del kept[name]
        check_settings(out, kept)
        measured = settings.budget_ms > 0
        book = CostBook(out / ("costs_ms.json" if measured else "costs_gmacs.json"), measured)
        budget = settings.budget_ms or settings.budget_gmacs

        def cost(point: Point) -> float:
            return book.cost(network_of(settings, point))

        if cost(start) > budget:
            raise UsageError(
                f"--budget-{'ms' if measured else 'gmacs'} {budget:g} is below the cost of the "
                f"start, {cost(start):.3g}: raise it, or start with a smaller --motion."
            )

        def work(point: Point) -> float:
            return cost(point) * point["seconds"]

        def score(points: Sequence[Point]) -> list[float]:
            records = _trials([TrialJob(settings, network_of(settings, p)) for p in points])
            return [float(record["score"]) for record in records]

        path = expand(start, axes, cost, work, budget, score)
        output(path_table(settings, path))
        write_results(settings, path)


def _trials(jobs: Sequence[TrialJob]) -> list[Mapping[str, Any]]:
    """Results of trials, the missing ones trained in a process of their own each.

    Raises:
        CavmaeError: a process ended.
    """
    missing = [job for job in jobs if not job.path.exists()]
    at_once = missing[0].settings.jobs if missing else 1
    for first in range(0, len(missing), at_once):
        group = missing[first : first + at_once]
        # Without limits: how long a trial takes is the user's choice.
        events = worker_pool.run(iter(enumerate(group)), run_trial, len(group), math.inf, math.inf)
        with contextlib.closing(events):
            for event in events:
                label = group[event.task].network.label
                if isinstance(event, worker_pool.Lost):
                    raise CavmaeError(
                        f"{label}: {event.detail}; run the same command again to resume."
                    )
                if isinstance(event, worker_pool.Restarted):
                    log.info("%s begins again: %s.", label, event.detail)
                if isinstance(event, worker_pool.Finished):
                    log.info(
                        "%s: score %.3f, %d steps.", label, event.result["score"],
                        event.result["steps"],
                    )  # fmt: skip
    return [read_json(job.path) for job in jobs]


def _check_clips(settings: ExpandSettings) -> int:
    """Smaller side of the frames of the held-out clips, in pixels.

    Raises:
        UsageError: clips are too short, or have too few frames a second, for the axes; or people
            are both trained and measured on.
        CavmaeError: clips cannot be used.
    """
    data = settings.data
    pools = {}
    for folder in (data.train, data.held_out):
        pool = ClipPool(Manifest.load(folder), Access(), data.exclude)
        SceneSampler(pool, settings.compose)  # there are enough people
        clips = [clip for clip in pool.clips if not clip.background]
        seconds = statistics.median(clip.info.duration for clip in clips)
        if seconds < settings.compose.seconds - 1 / VIDEO_RATE:
            raise UsageError(
                f"The clips of {folder} last {seconds:.2f} s, less than --compose.seconds "
                f"{settings.compose.seconds:g}: lower it, or shard longer clips."
            )
        rate = statistics.median(len(clip.times) / clip.info.duration for clip in clips)
        needed = VIDEO_RATE / _least_stride(settings)
        if rate < RATE_SLACK * needed:
            stride = math.ceil(VIDEO_RATE / rate)
            raise UsageError(
                f"The clips of {folder} have {rate:.3g} frames a second, the pathway reads up to "
                f"{needed:.3g}: shard them with --frame-rate {VIDEO_RATE}, or start with "
                f"--motion.frame-stride {stride} and without that axis in --axes."
            )
        pools[folder] = pool
    if both := shared_sources(pools[data.train], pools[data.held_out]):
        raise UsageError(
            f"{len(both)} people or videos of --data.held-out {data.held_out} are trained on, too "
            f"({', '.join(both[:3])}): name shards of other people."
        )
    held_out = pools[data.held_out].clips
    return int(statistics.median(min(clip.info.frame_size) for clip in held_out))


def _least_stride(settings: ExpandSettings) -> int:
    """Smallest distance of computed frames that the search may reach."""
    if "frame_stride" in settings.motion.shrinking and "frame_stride" in (
        settings.axes or settings.motion.shrinking
    ):
        return 1
    return int(getattr(settings.motion, "frame_stride", 1))
