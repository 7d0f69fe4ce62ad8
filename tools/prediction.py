"""Prediction of the events of the recordings of a command line."""

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cavmae.common.allocator import return_memory
from cavmae.common.cli import stop_on_signals
from cavmae.common.files import make_folder
from cavmae.common.locks import locked
from cavmae.datasets.sharding.inputs import Input
from cavmae.finetune.inference.event_files import (
    EVENTS,
    is_current,
    load_events_record,
    write_events,
)
from cavmae.finetune.inference.event_predictor import EventPredictor
from cavmae.finetune.inference.event_settings import PredictSettings
from cavmae.finetune.inference.naming import scratch_of
from cavmae.finetune.inference.recording_errors import recording_errors
from cavmae.tools.recordings import (
    Folders,
    ProgressLine,
    process_all,
    whole_recordings,
)

log = logging.getLogger("cavmae")
PRINTED = 3  # labels of a recording on the console
PRINTED_SPANS = 3  # of a label


def predict_recordings(
    videos: Sequence[str],
    out: Path,
    load: Callable[[], EventPredictor],
    settings: PredictSettings,
) -> int:
    """Predicts the events of the recordings of the command line.

    Args:
        videos: files, folders, lists and URLs.
        out: parent folder of the results.
        load: loads the model, once the recordings are known.
        settings: options.

    Returns:
        exit code: 1 if any recording failed.

    Raises:
        UsageError: a table names more than recordings, ``out`` cannot be a folder, or the model
            does not take the settings.
        CavmaeError: there is no recording, or the model cannot be used.
    """
    items = whole_recordings(videos, out, EVENTS)
    return_memory()
    with stop_on_signals():
        predictor = load()
        predictor.check(settings)
        make_folder(out)

        def process(item: Input, folder: Path) -> bool:
            return _predict(predictor, item.source, folder, settings)

        return process_all(items, Folders(out, EVENTS, load_events_record), process, "predicted")


def _predict(
    predictor: EventPredictor, source: str, folder: Path, settings: PredictSettings
) -> bool:
    """Predicts a recording into its folder; False: the prediction was there already."""
    provenance = predictor.provenance(source, settings)
    if (folder / EVENTS).exists():
        if is_current(folder, load_events_record(folder), provenance):
            log.info("%s: %s is there already, of the same settings.", source, folder)
            return False
        log.info(
            "%s: %s is not of this recording, model and settings, or not whole: made again.",
            source, folder,
        )  # fmt: skip
    scratch = scratch_of(folder)
    with locked(scratch, f"Another process is making {folder}."):
        for leftover in scratch.glob("cavmae-*"):  # of a process that was killed
            shutil.rmtree(leftover)
        with ProgressLine() as progress:
            prediction = predictor.predict(source, settings, progress.report, scratch)
        with recording_errors(source, provenance["model"], None, {}):
            # A new folder appears with all its files; in an old one, `events.json` comes last.
            target = folder if folder.exists() else scratch / "cavmae-made"
            target.mkdir(exist_ok=True)
            record = write_events(prediction, target, settings, provenance)
            if target != folder:
                target.rename(folder)
    log.info("%s: %s; in %s.", source, _summary(record), folder)
    return True


def _summary(record: dict[str, Any]) -> str:
    """Most probable labels of a recording, each with the times at which it is present."""
    parts = []
    for label in record["labels"][:PRINTED]:
        spans = [f"{_clock(a)}-{_clock(b)}" for a, b in label["spans"][:PRINTED_SPANS]]
        spans += ["..."] if len(label["spans"]) > PRINTED_SPANS else []
        times = f" ({', '.join(spans)})" if spans else ""
        parts.append(f"{label['name']} {label['max_prob']:.2f}{times}")
    return ", ".join(parts)


def _clock(seconds: float) -> str:
    """Time of a player, such as 1:02:03.5."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    clock = f"{minutes:02d}:{rest / 10:04.1f}" if hours else f"{minutes}:{rest / 10:04.1f}"
    return f"{hours}:{clock}" if hours else clock
