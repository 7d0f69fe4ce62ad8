"""`cavmae separate VIDEO... [--out OUT]`: voices and masks of the people in videos."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from cavmae.common.cli import fill, module_main, parse, parser
from cavmae.common.errors import UsageError
from cavmae.finetune.inference.settings import SeparateSettings, Thresholds
from cavmae.finetune.inference.target import Target
from cavmae.finetune.models.box import default_speaker_model

log = logging.getLogger("cavmae")


def main(words: Sequence[str]) -> int:
    """Separates recordings; see :func:`~cavmae.tools.separation.separate_recordings`."""
    cli = parser("separate", "Voices and masks of the people in videos.")
    cli.add_argument(
        "videos", nargs="+", type=str, metavar="VIDEO",
        help="Video file or URL; folder (searched for videos); .txt list; .csv table with the "
        "column path.",
    )  # fmt: skip
    cli.add_argument(
        "--model", default=None, type=str,
        help="Checkpoint of `finetune speakers`, or a name in the box (`cavmae models`) or on the "
        "hub; without it, the speaker model in the box.",
    )  # fmt: skip
    cli.add_argument(
        "--out", default="separated", type=str, help="Folder for a result folder of each video."
    )
    cli.add_argument("--device", default="auto", type=str, help="`auto`: a GPU if there is one.")
    cli.add_argument("--precision", default="fp32", type=str, help="`fp32`, `bf16` or `fp16`.")
    cli.add_class_arguments(SeparateSettings)
    cli.add_class_arguments(Target, "target")
    cli.add_class_arguments(Thresholds, "thresholds")
    options = parse(cli, bracketed(words))
    settings, target = fill(SeparateSettings, options), Target(**options.target.as_dict())
    thresholds = Thresholds(**options.thresholds.as_dict())
    if options.precision not in ("fp32", "bf16", "fp16"):
        raise UsageError(f"--precision {options.precision} is none of fp32, bf16 and fp16.")
    name = options.model or default_speaker_model()
    from cavmae.finetune.inference.separator import Separator
    from cavmae.tools.separation import separate_recordings

    def load() -> Separator:
        separator = Separator.from_pretrained(name, options.device, options.precision, thresholds)
        if (sentence := separator.about.sentence(name)) is not None:
            log.info("%s", sentence)
        return separator

    return separate_recordings(options.videos, Path(options.out), load, settings, target)


def bracketed(words: Sequence[str]) -> list[str]:
    """Put brackets around the numbers of a box or a point, ``120,40,300,400``, for the parser."""
    result = list(words)
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name not in ("--target.box", "--target.point"):
            continue
        if equals and _begins_number(value):
            result[number] = f"{name}=[{value}]"
        elif not equals and number + 1 < len(words) and _begins_number(words[number + 1]):
            result[number + 1] = f"[{words[number + 1]}]"
    return result


def _begins_number(text: str) -> bool:
    return re.match(r"[-+]?\.?\d", text) is not None


if __name__ == "__main__":
    module_main(main)
