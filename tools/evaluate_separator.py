"""`cavmae evaluate-separator MODEL --speech '[DIR]'`: SI-SDR improvement on fixed mixtures."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cavmae.common.cli import module_main, parse_settings, parser
from cavmae.common.device import device_of
from cavmae.common.errors import UsageError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import json_bytes
from cavmae.common.settings import DeviceSettings
from cavmae.common.tables import markdown_table
from cavmae.finetune.speaker.metric_table import Metric

METRICS = {
    "si_sdri": Metric("SI-SDR improvement", "dB", 2),
    "si_sdri_median": Metric("median", "dB", 2),
    "si_sdri_similar_pitch": Metric("similar pitch", "dB", 2),
    "si_sdri_different_pitch": Metric("different pitch", "dB", 2),
    "si_sdr": Metric("SI-SDR", "dB", 2),
    "confusion": Metric("confusion", "", 3),
    "binding_acc": Metric("binding accuracy", "", 3),
}


@dataclasses.dataclass(frozen=True)
class EvaluateSeparatorSettings(DeviceSettings):
    """Options of the metrics.

    Args:
        speech: folders of speech of unseen speakers, each a list of mixtures of two voices.
        mixtures: of each list, in batches of 8.
        cache: folder for decoded recordings.
        out: JSON file for the metrics; None: the table is only printed.
    """

    speech: tuple[str, ...] = ()
    mixtures: int = 200
    cache: str = "sound-cache"
    out: str | None = None


def list_table(
    head: Sequence[str], rows: Sequence[tuple[Sequence[str], Mapping[str, float], str]]
) -> str:
    """Markdown table of :data:`METRICS`, without columns that no row has.

    Args:
        head: of the first columns.
        rows: first cells, metrics, and name of the list, of each row.
    """
    columns = [key for key in METRICS if any(f"{name}_{key}" in own for _, own, name in rows)]
    cells = [
        [*first, *(_cell(own.get(f"{name}_{key}"), METRICS[key].digits) for key in columns)]
        for first, own, name in rows
    ]
    heads = [*head, *(METRICS[key].label for key in columns)]
    return markdown_table(heads, cells, range(len(head)))


def _cell(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def main(words: Sequence[str]) -> int:
    """Prints the metrics of a sound separator on fixed lists of mixtures.

    Raises:
        UsageError: an option is missing or out of range.
        CavmaeError: the model or the recordings cannot be used.
    """
    cli = parser("evaluate-separator", "SI-SDR improvement of a sound separator.")
    cli.add_argument(
        "model",
        type=str,
        help="Checkpoint of `cavmae finetune separator` or `speakers`, or a model's name.",
    )
    settings, options = parse_settings(cli, EvaluateSeparatorSettings, words)
    if not settings.speech or settings.mixtures < 8:
        raise UsageError("Name folders of speech, --speech '[FOLDER, ...]', and 8 --mixtures.")
    from cavmae.datasets.mixtures.sound_settings import SoundSettings
    from cavmae.datasets.mixtures.speech_bank import load_or_build_bank
    from cavmae.finetune.separation.evaluation import evaluate_lists
    from cavmae.finetune.separation.run import held_out_mixers
    from cavmae.finetune.separation.weights import load_sound

    device = device_of(settings.device)
    model = load_sound(options.model).to(device)
    cache = Path(settings.cache)
    banks = [load_or_build_bank([Path(folder)], cache) for folder in settings.speech]
    mixers = held_out_mixers(settings.speech, banks, SoundSettings())
    metrics = evaluate_lists(model, mixers, settings.mixtures, device)
    names = [key.removesuffix("_si_sdr") for key in metrics if key.endswith("_si_sdr")]
    sys.stdout.write(f"{list_table(['list'], [([name], metrics, name) for name in names])}\n")
    if settings.out is not None:
        with write_atomically(Path(settings.out)) as file:
            file.write(json_bytes(metrics, indent=1))
    return 0


if __name__ == "__main__":
    module_main(main)
