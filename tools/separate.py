"""`cavmae separate VIDEO... --model DIR --out OUT`: voices and masks of the people in videos."""

from collections.abc import Sequence
from pathlib import Path

from cavmae.common.cli import fill, module_main, parse, parser
from cavmae.common.errors import UsageError
from cavmae.finetune.inference.settings import SeparateSettings, Thresholds
from cavmae.finetune.inference.target import Target


def main(words: Sequence[str]) -> int:
    """Separates recordings; see :func:`~cavmae.tools.separation.separate_recordings`."""
    cli = parser("separate", "Voices and masks of the people in videos.")
    cli.add_argument(
        "videos", nargs="+", type=str, metavar="VIDEO",
        help="Video file or URL; folder (searched for videos); .txt list; .csv table with the "
        "column path.",
    )  # fmt: skip
    cli.add_argument("--model", required=True, type=str, help="Checkpoint of `finetune speakers`.")
    cli.add_argument(
        "--out", required=True, type=str, help="Folder for a result folder of each video."
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
    from cavmae.finetune.inference.separator import Separator
    from cavmae.tools.separation import separate_recordings

    def load() -> Separator:
        return Separator.from_pretrained(
            options.model, options.device, options.precision, thresholds
        )

    return separate_recordings(options.videos, Path(options.out), load, settings, target)


def bracketed(words: Sequence[str]) -> list[str]:
    """Put brackets around the numbers of a box or a point, ``120,40,300,400``, for the parser."""
    result = list(words)
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name not in ("--target.box", "--target.point"):
            continue
        if equals and value[:1].isdigit():
            result[number] = f"{name}=[{value}]"
        elif not equals and number + 1 < len(words) and words[number + 1][:1].isdigit():
            result[number + 1] = f"[{words[number + 1]}]"
    return result


if __name__ == "__main__":
    module_main(main)
