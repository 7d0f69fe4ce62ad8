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

# Columns of the table: metric -> head.
METRICS = {
    "si_sdri": "SI-SDR improvement, dB", "si_sdri_median": "median",
    "si_sdri_similar_pitch": "similar pitch", "si_sdri_different_pitch": "different pitch",
    "si_sdr": "SI-SDR, dB", "confusion": "confusion", "binding_acc": "binding",
}  # fmt: skip


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


def list_cells(metrics: Mapping[str, float], name: str) -> list[str]:
    """Cells of the columns of :data:`METRICS`, for a list; ``-`` for what was not measured."""
    values = (metrics.get(f"{name}_{key}") for key in METRICS)
    return ["-" if value is None else f"{value:.2f}" for value in values]


def main(words: Sequence[str]) -> int:
    """Prints the metrics of a sound separator on fixed lists of mixtures.

    Raises:
        UsageError: an option is missing or out of range.
        CavmaeError: the model or the recordings cannot be used.
    """
    cli = parser("evaluate-separator", "SI-SDR improvement of a sound separator.")
    cli.add_argument("model", type=str, help="Checkpoint of `cavmae finetune separator`.")
    settings, options = parse_settings(cli, EvaluateSeparatorSettings, words)
    if not settings.speech or settings.mixtures < 8:
        raise UsageError("Name folders of speech, --speech '[FOLDER, ...]', and 8 --mixtures.")
    from cavmae.datasets.mixtures.sound_settings import SoundSettings
    from cavmae.datasets.mixtures.speech_bank import load_or_build_bank
    from cavmae.finetune.separation.evaluation import evaluate_lists
    from cavmae.finetune.separation.model import SoundSeparator
    from cavmae.finetune.separation.run import held_out_mixers
    from cavmae.pretrain.factory import load_hub

    device = device_of(settings.device)
    remedy = "make one with `cavmae finetune separator`"
    model = load_hub(SoundSeparator, options.model, remedy).to(device)
    cache = Path(settings.cache)
    banks = [load_or_build_bank([Path(folder)], cache) for folder in settings.speech]
    mixers = held_out_mixers(settings.speech, banks, SoundSettings())
    metrics = evaluate_lists(model, mixers, settings.mixtures, device)
    names = [key.removesuffix("_si_sdr") for key in metrics if key.endswith("_si_sdr")]
    rows = [[name, *list_cells(metrics, name)] for name in names]
    sys.stdout.write(f"{markdown_table(['list', *METRICS.values()], rows)}\n")
    if settings.out is not None:
        with write_atomically(Path(settings.out)) as file:
            file.write(json_bytes(metrics, indent=1))
    return 0


if __name__ == "__main__":
    module_main(main)
