"""A corpus of talking heads: renders, completes or lengthens it, with worker processes."""

import contextlib
import csv
import importlib
import io
import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cavmae.common import worker_pool
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import json_bytes, read_json, typed
from cavmae.common.locks import locked
from cavmae.common.progress import Progress
from cavmae.common.settings import LimitedPoolSettings
from cavmae.common.threads import cores
from cavmae.datasets.synthetic.settings import RenderSettings

if TYPE_CHECKING:
    from cavmae.datasets.synthetic.population import Population

log = logging.getLogger("cavmae")
SHEET = "contact_sheet.png"
SETTINGS, CLIPS, WORK, SKIPPED = "talkers.json", "clips", ".work", "skipped-clips.jsonl"
SCHEMA = 4


class ClipProgress(Progress):
    """Progress with the rendering speed against real time."""

    def __init__(self, total: int, before: int, seconds: float):
        super().__init__(total, "clip", before)
        self._seconds = seconds

    def status(self) -> str:
        return f"{(self._done - self._before) * self._seconds / self.elapsed:.1f} times real time"


def render_talkers(
    out: Path, clips: int, settings: RenderSettings, run_settings: LimitedPoolSettings
) -> int:
    """Render, complete or lengthen a corpus.

    Returns:
        0, or 1 if a clip could not be rendered.

    Raises:
        CavmaeError: bad usage, a missing package, no usable recordings, a folder made with other
            settings or by something else, a full or read-only disk.
    """
    settings.check()
    if clips < 1:
        raise UsageError(f"--clips {clips}: ask for at least one.")
    _require_skia()
    from cavmae.datasets.synthetic import sheet, speaker_discovery

    workers = run_settings.workers or cores()
    try:
        out.mkdir(parents=True, exist_ok=True)
        message = f"Another `cavmae render-talkers` is writing to {out}; wait for it to end."
        with locked(out / WORK, message):
            earlier = _check_folder(out, settings)
            if earlier > clips:
                log.info("%s: an earlier run asked for %d clips, which stay.", out, earlier)
            clips = max(clips, earlier)
            # Written first: a later run recognizes the folder by this file, even after a kill.
            _save_settings(out, clips, settings)
            # Workers that find speakers and those that render are forked from one server.
            worker_pool.preload("cavmae.datasets.synthetic.clip_writer")
            population = speaker_discovery.load_or_discover(out, settings, workers)
            (out / CLIPS).mkdir(exist_ok=True)
            rows, skipped = _render(out, clips, settings, run_settings, population)
            _write_tables(out, rows, settings)
            _write_skipped(out, skipped)
            if rows:
                sheet.draw_sheet([out / CLIPS / f"{row['clip']:06d}" for row in rows], out / SHEET)
    except OSError as error:
        raise CavmaeError(
            f"Cannot write to {out}: {error.strerror or error}; finished work is kept; "
            "fix this and run the same command again."
        ) from error
    counts = Counter(row["split"] for row in rows)
    log.info(
        "%d clips, %.0f s, in %s (train %d, valid %d, test %d); look at %s.",
        len(rows), sum(row["seconds"] for row in rows), out,
        counts["train"], counts["valid"], counts["test"], SHEET,
    )  # fmt: skip
    if skipped:
        log.error(
            "%d clips failed, the first: %s. %s names them; run the same command to try again.",
            len(skipped), skipped[0]["detail"], out / SKIPPED,
        )  # fmt: skip
    return 1 if skipped else 0


def _require_skia() -> None:
    try:
        importlib.import_module("skia")
    except ImportError as error:
        raise CavmaeError(
            f"Rendering talkers needs skia-python ({error}): pip install 'cavmae[talkers]'; if it "
            "misses libEGL or libGL, install those (Debian, Ubuntu: apt install libegl1 libgl1)."
        ) from error


def _check_folder(out: Path, settings: RenderSettings) -> int:
    """Number of clips that an earlier run was asked for; 0 without one.

    Raises:
        CavmaeError: it had other settings, or the folder holds something else.
    """
    path = out / SETTINGS
    if not path.exists():
        foreign = sorted(
            p.name
            for p in out.iterdir()
            # A kill leaves temporary files.
            if p.name != WORK and not (p.name.startswith(f".{SETTINGS}.") and p.suffix == ".tmp")
        )
        if foreign:
            raise CavmaeError(
                f"{out} already holds {foreign[0]!r}; choose an empty or new --out folder."
            )
        return 0
    try:
        record = read_json(path, remedy="choose another --out folder")
        earlier, clips = typed(record, "settings", dict), typed(record, "clips", int)
    except ValueError as error:
        raise CavmaeError(f"{path} is damaged ({error}); choose another --out folder.") from error
    if record.get("schema") != SCHEMA:
        raise CavmaeError(f"{path} is of another version of this program; choose another folder.")
    if not (out / "speakers.json").exists() and not (out / CLIPS).exists():
        return 0  # nothing was rendered with these settings yet
    for name, value in _comparable(settings).items():
        if earlier.get(name) != value:
            option = f"--{name.replace('_', '-')}"
            before, now = f"{option} {earlier.get(name)}", str(value)
            if name == "speech":
                before, now = (f"{'with' if x else 'without'} {option}" for x in (not value, value))
            raise CavmaeError(
                f"{out} was made {'' if name == 'speech' else 'with '}{before}, not {now}: give "
                "the same, or choose another --out folder."
            )
    return clips


def _comparable(settings: RenderSettings) -> dict[str, Any]:
    """Settings that must not change; of recordings only the sizes are compared, not the folder."""
    return {**settings.record(), "speech": settings.speech is not None}


def _save_settings(out: Path, clips: int, settings: RenderSettings) -> None:
    record = {"schema": SCHEMA, "clips": clips, "settings": _comparable(settings)}
    with write_atomically(out / SETTINGS) as file:
        file.write(json_bytes(record, indent=1))


def _render(
    out: Path,
    clips: int,
    settings: RenderSettings,
    run_settings: LimitedPoolSettings,
    population: "Population",
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Render missing clips; returns the rows of all clips, and the clips that failed."""
    from cavmae.datasets.synthetic import clip_writer

    folders = [out / CLIPS / f"{number:06d}" for number in range(clips)]
    rows = {
        n: row for n, folder in enumerate(folders) if (row := clip_writer.read_complete(folder))
    }
    todo = [number for number in range(clips) if number not in rows]
    altered = sum(folders[number].exists() for number in todo)
    if rows or altered:
        log.info(
            "%s: %d of %d clips were done before, %s%s.",
            out, len(rows), clips,
            f"{len(todo)} are left" if todo else "nothing is left to do",
            f" ({altered} of them altered or incomplete, and rendered again)" if altered else "",
        )  # fmt: skip
    skipped: list[dict[str, Any]] = []
    shots = ((n, clip_writer.Shot(n, settings, population, folders[n], out / WORK)) for n in todo)
    events = worker_pool.run(
        shots,
        clip_writer.render,
        run_settings.workers or cores(),
        run_settings.timeout,
        run_settings.memory_gb * 1e9,
    )
    progress = ClipProgress(clips, len(rows), settings.length)
    with progress, contextlib.closing(events):
        for event in events:
            if isinstance(event, worker_pool.TaskProgress | worker_pool.Restarted):
                continue
            if isinstance(event, worker_pool.Lost):
                clip = {"clip": event.task, "reason": event.reason, "detail": event.detail}
                skipped.append(clip)
            else:
                rows[event.task] = event.result
            progress.done()
    if todo:
        log.info("%s.", progress.status())
    return [rows[n] for n in sorted(rows)], sorted(skipped, key=lambda s: s["clip"])


def _write_tables(out: Path, rows: list[dict[str, Any]], settings: RenderSettings) -> None:
    """Write one table for each split with a share, as input of `cavmae shard`."""
    fractions = {
        "train": 1 - settings.valid_share - settings.test_share,
        "valid": settings.valid_share,
        "test": settings.test_share,
    }
    for split in (name for name, fraction in fractions.items() if fraction > 1e-9):
        rows_of_split = [row for row in rows if row["split"] == split]
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["path", "labels", "speaker", "masks"])
        for row in rows_of_split:
            folder = f"{CLIPS}/{row['clip']:06d}"
            table.writerow(
                [
                    f"{folder}/{row['clip']:06d}.mp4",
                    ";".join(row["labels"]),
                    "+".join(row["speakers"]),
                    f"{folder}/masks",
                ]
            )
        with write_atomically(out / f"{split}.csv") as file:
            file.write(text.getvalue().encode())


def _write_skipped(out: Path, skipped: list[dict[str, Any]]) -> None:
    path = out / SKIPPED
    if skipped:
        with write_atomically(path) as file:
            for record in skipped:
                file.write(json_bytes(record))
    elif path.exists():
        path.unlink()
