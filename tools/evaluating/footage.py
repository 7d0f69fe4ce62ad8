"""Separation and measurement of all recordings of a folder of `cavmae make-footage`."""

import dataclasses
from pathlib import Path
from typing import Any

from cavmae.common.errors import CavmaeError
from cavmae.common.progress import Progress
from cavmae.datasets.footage.rendering import LIST, truth_path, video_path
from cavmae.datasets.footage.spec import read_footage_list
from cavmae.datasets.footage.truth import FootageTruth
from cavmae.finetune.inference.separator import Separator
from cavmae.finetune.inference.settings import SeparateSettings
from cavmae.finetune.tracking.evaluation import RecordingTracks, evaluate_recording


def evaluate_footage(
    folder: Path, separator: Separator, settings: SeparateSettings
) -> dict[str, dict[str, RecordingTracks]]:
    """Metrics of each recording by its name, by kind.

    Args:
        folder: list, recordings and truth.
        separator: the model.
        settings: options of separation.

    Raises:
        CavmaeError: the list, a recording or its truth cannot be used.
    """
    _, specs = read_footage_list(folder / LIST)
    for spec in specs:
        for path in (video_path(folder, spec.name), truth_path(folder, spec.name)):
            if not path.is_file():
                raise CavmaeError(
                    f"{path} is missing: run `cavmae make-footage` again, which renders the rest."
                )
    results: dict[str, dict[str, RecordingTracks]] = {}
    with Progress(len(specs), "recording") as progress:
        for spec in specs:
            truth = FootageTruth.load(truth_path(folder, spec.name))
            path = video_path(folder, spec.name)
            try:
                tracks = evaluate_recording(separator, path, truth, settings)
            except CavmaeError as error:
                raise CavmaeError(
                    f"{error} Remove {path}, and run `cavmae make-footage` again, which renders it."
                ) from error
            results.setdefault(spec.kind, {})[spec.name] = tracks
            progress.done()
    return results


def recording_record(tracks: RecordingTracks) -> dict[str, Any]:
    """Metrics of a recording for JSON: its counts with IDF1, and the voices of its people."""
    voices = [dataclasses.asdict(voice) | {"si_sdri": voice.si_sdri} for voice in tracks.voices]
    counts = dataclasses.asdict(tracks.counts)
    return counts | {"idf1": tracks.counts.idf1, "voices": voices}
