"""`cavmae separate VIDEO... --model DIR --out OUT`: everybody's voice and pixels."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cavmae.datasets.commandline import fill, module_main, parse, parser, stop_on_signals
from cavmae.datasets.errors import CavmaeError, UsageError
from cavmae.datasets.storage import is_url
from cavmae.tools.separating.separator import RESULT, Result, Separator
from cavmae.tools.separating.settings import SeparateSettings
from cavmae.tools.separating.target import Target
from cavmae.tools.sharding.inputs import Input, collect
from cavmae.tools.sharding.sources import log_refused

log = logging.getLogger("cavmae")


def main(words: Sequence[str]) -> int:
    made = parser("separate", "Voices and masks of the people in videos.")
    made.add_argument(
        "videos", nargs="+", type=str, metavar="VIDEO",
        help="Video file or URL; folder (searched for videos); .txt list; .csv table with the "
        "column path.",
    )  # fmt: skip
    made.add_argument("--model", required=True, type=str, help="Checkpoint of `finetune speakers`.")
    made.add_argument("--out", required=True, type=str, help="Folder; one in it for each video.")
    made.add_argument("--device", default="auto", type=str, help="`auto`: a GPU if there is one.")
    made.add_argument("--precision", default="fp32", type=str, help="`fp32`, `bf16` or `fp16`.")
    made.add_class_arguments(SeparateSettings)
    made.add_class_arguments(Target, "target")
    options = parse(made, bracketed(words))
    settings, target = fill(SeparateSettings, options), Target(**options.target.as_dict())
    if options.precision not in ("fp32", "bf16", "fp16"):
        raise UsageError(f"--precision {options.precision} is none of fp32, bf16 and fp16.")
    target.check()
    items, _ = collect(options.videos)
    if not items:
        raise CavmaeError(f"No videos in {', '.join(map(repr, options.videos))}.")
    if any(item.start is not None or item.end is not None for item in items):
        raise UsageError("Recordings are taken apart whole: leave start and end out of the table.")
    if any(item.frames is not None for item in items):
        raise UsageError("Data files of CAV-MAE hold no recordings: name videos.")
    if any(item.labels or item.speaker or item.masks for item in items):
        log.info("Of a table only the column path is used.")
    log_refused(items)
    out = Path(options.out)
    with stop_on_signals():
        separator = Separator.from_pretrained(options.model, options.device, options.precision)
        failed = 0
        for item, folder in zip(items, folders(items, out), strict=True):
            try:
                if (folder / RESULT).exists():
                    _check_same(folder, separator.made_of(item.source, settings, target))
                    log.info("%s: %s is there already.", item.source, folder)
                else:
                    _tell(item, separator.separate(item.source, folder, settings, target))
            except CavmaeError as error:
                if isinstance(error, UsageError) and len(items) == 1:
                    raise
                log.error("cavmae: %s", error)
                failed += 1
    if failed:
        log.error("cavmae: %d of %d videos gave nothing.", failed, len(items))
    return 1 if failed else 0


def bracketed(words: Sequence[str]) -> list[str]:
    """Numbers of a box or a point may be written ``120,40,300,400``; the parser wants a list."""
    found = list(words)
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name not in ("--target.box", "--target.point"):
            continue
        if equals and value[:1].isdigit():
            found[number] = f"{name}=[{value}]"
        elif not equals and number + 1 < len(words) and words[number + 1][:1].isdigit():
            found[number + 1] = f"[{words[number + 1]}]"
    return found


def folders(items: Sequence[Input], out: Path) -> list[Path]:
    """A folder for each video, named as it is; where that is another's, with a part more."""
    found: list[Path] = []
    for item in items:
        name = re.sub(r"[^\w.-]+", "-", Path(item.source).stem).strip("-.") or "video"
        plain = out / name
        known = (plain / RESULT).exists()
        if plain in found or (known and not _same_file(Result.load(plain), item.source)):
            plain = out / f"{name}-{item.identity[:6]}"
        found.append(plain)
    return found


def _same_file(result: Result, source: str) -> bool:
    told = str(result.record["source"])
    return told == source or (
        not is_url(source) and os.path.realpath(told) == os.path.realpath(source)
    )


def _check_same(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Raises UsageError if what is there was made in another way."""
    record = Result.load(folder).record
    other = [name for name in wanted if name != "source" and record.get(name) != wanted[name]]
    if other:
        raise UsageError(
            f"{folder} was made with another {' and '.join(other)}: name another --out, or "
            "remove it."
        )


def _tell(item: Input, result: Result) -> None:
    people = ", ".join(
        f"{p.number} ({p.record['state']}, {p.record['level_db']} dB)" for p in result.people
    )
    log.info(
        "%s: %s, in %s.", item.source, f"people {people}" if people else "nobody", result.folder
    )


if __name__ == "__main__":
    module_main(main)
