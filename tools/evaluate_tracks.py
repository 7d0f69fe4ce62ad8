"""`cavmae evaluate-tracks FOOTAGE --model MODEL`: identity of people over whole recordings."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cavmae.common.cli import module_main, output, parse_settings, parser
from cavmae.common.json_files import json_bytes
from cavmae.common.settings import DeviceSettings
from cavmae.common.tables import markdown_table
from cavmae.finetune.inference.settings import SeparateSettings, Thresholds
from cavmae.finetune.models.box import default_speaker_model


@dataclasses.dataclass(frozen=True)
class EvaluateTracksSettings(DeviceSettings):
    """Options of the metrics.

    Args:
        model: checkpoint of `cavmae finetune speakers`, or a name in the box (`cavmae models`) or
            on the hub; None: the speaker model in the box.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        second_look: as of `cavmae separate`.
        hop: as of `cavmae separate`.
        min_seconds: as of `cavmae separate`.
        thresholds: as of `cavmae separate`.
        json: print a JSON object, with the metrics of every recording, instead of a table.
    """

    model: str | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    second_look: bool = SeparateSettings.second_look
    hop: float = SeparateSettings.hop
    min_seconds: float = SeparateSettings.min_seconds
    thresholds: Thresholds = Thresholds()
    json: bool = False


def main(words: Sequence[str]) -> int:
    """Prints the metrics of a model on recordings that `cavmae make-footage` rendered.

    Raises:
        UsageError: an option is out of range.
        CavmaeError: the model or a recording cannot be used.
    """
    cli = parser("evaluate-tracks", "Identity of people over long recordings, and their voices.")
    cli.add_argument("footage", type=str, help="Folder of `cavmae make-footage`.")
    settings, options = parse_settings(cli, EvaluateTracksSettings, words)
    separate = SeparateSettings(
        second_look=settings.second_look, hop=settings.hop, min_seconds=settings.min_seconds
    )
    name = settings.model or default_speaker_model()
    from cavmae.finetune.inference.separator import Separator
    from cavmae.finetune.tracking.evaluation import kind_summaries
    from cavmae.tools.evaluating.footage import evaluate_footage, recording_record

    separator = Separator.from_pretrained(
        name, settings.device, settings.precision, settings.thresholds
    )
    recordings = evaluate_footage(Path(options.footage), separator, separate)
    kinds = {kind: list(of_kind.values()) for kind, of_kind in recordings.items()}
    summaries = kind_summaries(kinds)
    if settings.json:
        record = {
            "model": name,
            "footage": options.footage,
            "settings": dataclasses.asdict(settings),
            "summary": summaries,
            "recordings": {
                recording: recording_record(tracks)
                for of_kind in recordings.values()
                for recording, tracks in of_kind.items()
            },
        }
        output(json_bytes(record, indent=1).decode().rstrip("\n"))
    else:
        output(_table(summaries, sum(map(len, kinds.values()))))
    return 0


def _table(summaries: Mapping[str, Mapping[str, float]], count: int) -> str:
    """Markdown table: a row for each metric, a column for all recordings and for each kind."""
    from cavmae.finetune.tracking.evaluation import TRACK_METRICS

    rows = []
    for name, metric in TRACK_METRICS.items():
        values: list[Any] = [summary.get(name) for summary in summaries.values()]
        if any(value is not None for value in values):
            cells = ["-" if value is None else f"{value:.{metric.digits}f}" for value in values]
            rows.append([metric.label, *cells])
    return markdown_table([f"{count} recordings", *summaries], rows)


if __name__ == "__main__":
    module_main(main)
