"""`cavmae report RUN... --out report.html`: runs, evaluations and results of videos as HTML."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from cavmae.common.cli import module_main, parse_settings, parser
from cavmae.common.errors import UsageError
from cavmae.common.files import open_regular, write_atomically

log = logging.getLogger("cavmae")
GENERATOR = b'<meta name="generator" content="cavmae report">'  # as in page.html.j2


@dataclasses.dataclass(frozen=True)
class ReportSettings:
    """Options of `cavmae report`.

    Args:
        out: HTML file; an earlier report of that name is replaced.
        title: of the page.
    """

    out: str = "report.html"
    title: str = "cavmae report"


def main(words: Sequence[str]) -> int:
    """Write the page.

    Raises:
        UsageError: ``--out`` is a folder or another file, or no command of ours wrote a folder that
            is named.
        CavmaeError: a folder is damaged.
    """
    arguments = parser("report", "Runs, evaluations and results of videos on one HTML page.")
    arguments.add_argument(
        "folders", nargs="+", type=str, metavar="RUN",
        help="Folder of a training run, an evaluation, separated recordings or predicted events "
        "(of one recording or several), or shards; folders of the same kind are shown side by "
        "side.",
    )  # fmt: skip
    settings, options = parse_settings(arguments, ReportSettings, words)
    out = Path(settings.out)
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder: name a file, as in {out / 'report.html'}.")
    if out.exists() and not _is_report(out):
        raise UsageError(
            f"--out {out} is there already, and no report of this version: name another file, or "
            "remove it."
        )
    from cavmae.tools.reporting.fields import Faults
    from cavmae.tools.reporting.page import page
    from cavmae.tools.reporting.sources import sources_of

    faults = Faults()
    text = page(sources_of(options.folders, faults), settings.title, faults)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(out) as file:
            file.write(text.encode())
    except OSError as error:
        raise UsageError(
            f"--out {out} cannot be written ({error.strerror}): name another file."
        ) from error
    log.info("Wrote %s (%.1f MB).", out, len(text) / 1e6)
    return 0


def _is_report(path: Path) -> bool:
    try:
        with open_regular(str(path)) as file:
            beginning = file.read(1000)
    except OSError:
        return False
    return not beginning or GENERATOR in beginning


if __name__ == "__main__":
    module_main(main)
