"""`cavmae retrieve MODEL SHARDS`: audio-video retrieval; features of many clips."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cavmae.common.cli import module_main, parse_settings, parser
from cavmae.common.errors import UsageError
from cavmae.common.settings import DeviceSettings, LoaderSettings

StatisticsSource = Literal["auto", "data", "audioset"]


@dataclasses.dataclass(frozen=True)
class FbankStatisticsSettings:
    """Normalisation of fbanks.

    Args:
        statistics: fbank statistics: ``auto``, those of the model folder, else those of the data
            set; ``data``, those that `cavmae check` measured; ``audioset``, for published weights.
    """

    statistics: StatisticsSource = "auto"


@dataclasses.dataclass(frozen=True)
class RetrieveSettings(FbankStatisticsSettings, LoaderSettings, DeviceSettings):
    """Options of retrieval and of its output files.

    Args:
        frames: the ``middle`` frame of a clip, or ``all`` frames with averaged features; a model of
            several frames gets as many as it takes.
        json: also write the metrics to this file.
        features: also write the features to this file: .safetensors (``audio``, ``video``), or .npy
            (audio, then video); the keys go to a .keys.txt beside it.
    """

    frames: Literal["middle", "all"] = "middle"
    json: str | None = None
    features: str | None = None


def main(words: Sequence[str]) -> int:
    """Prints retrieval metrics of a model over the clips of a data set.

    Raises:
        UsageError: an option is out of range.
        CavmaeError: the model or the shards cannot be used.
    """
    cli = parser("retrieve", "Audio-video retrieval between the clips of a data set.")
    cli.add_argument("model", type=str, help="Folder of weights, or a name on the hub.")
    cli.add_argument("shards", type=str, help="Folder or URL of a data set.")
    settings, options = parse_settings(cli, RetrieveSettings, words)
    if settings.batch_size < 1 or settings.workers < 0:
        raise UsageError("--batch-size must be at least 1, --workers at least 0.")
    if settings.features and Path(settings.features).suffix not in (".npy", ".safetensors"):
        raise UsageError(f"--features {settings.features}: end the name with .npy or .safetensors.")
    from cavmae.tools.evaluating.retrieving import retrieve

    return retrieve(options.model, options.shards, settings)


if __name__ == "__main__":
    module_main(main)
