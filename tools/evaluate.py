"""`cavmae evaluate SHARDS --list FILE --model CHECKPOINT`: metrics of a speaker model."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from cavmae.common.cli import module_main, parse_settings, parser
from cavmae.common.errors import UsageError
from cavmae.common.settings import DeviceSettings, LoaderSettings


@dataclasses.dataclass(frozen=True)
class EvaluateSettings(LoaderSettings, DeviceSettings):
    """Options of the metrics.

    Args:
        list: file of the scenes, written by `cavmae make-scenes`.
        model: checkpoint of `cavmae finetune speakers`.
        out: folder for ``measures.json``, ``table.md``, plots, and ``examples.png`` (the first
            scenes); None: the table is only printed.
        cue: give the model a cue of this kind for slot 0, and measure the cued person only.
        hints: give the model the class of the cued person (``model.classes`` of training).
        references: also measure with blank, still or wrong video, and an oracle ratio mask.
        people: CSV file with columns ``speaker`` and ``sex``, for separate metrics of pairs of the
            same and of different sex.
    """

    list: str = ""
    model: str = ""
    out: str | None = None
    cue: Literal["none", "box", "point", "mask", "voice"] = "none"
    hints: bool = False
    references: bool = True
    people: str | None = None


def main(words: Sequence[str]) -> int:
    """Prints the metrics of a model on a fixed list of scenes.

    Raises:
        UsageError: an option is missing, or does not go with the others.
        CavmaeError: the model, the list or the shards cannot be used.
    """
    cli = parser("evaluate", "Metrics of a speaker model on a fixed list of scenes.")
    cli.add_argument("shards", type=str, help="Folder or URL of the data set of the scenes.")
    settings, options = parse_settings(cli, EvaluateSettings, words)
    if not settings.list:
        raise UsageError("Name the list of scenes: --list FILE; `cavmae make-scenes` draws one.")
    if not settings.model:
        raise UsageError("Name the model to be measured: --model FOLDER.")
    from cavmae.tools.evaluating.measure import measure

    return measure(options.shards, settings)


if __name__ == "__main__":
    module_main(main)
