"""`cavmae export CHECKPOINT --out DIR`: model folder with weights and a model card."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from cavmae.common.cli import module_main, parse_settings, parser
from cavmae.common.errors import UsageError

log = logging.getLogger("cavmae")


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    """Options of the model card and the upload.

    Args:
        name: name of the model in its card, and on the hub for ``push``.
        measures: folder of `cavmae evaluate --out`; its table goes into the card.
        license: identifier of the license of the weights on the hub.
        push: also upload to the hub, under ``name``.
    """

    name: str | None = None
    measures: str | None = None
    license: str = "apache-2.0"
    push: bool = False


def main(words: Sequence[str]) -> int:
    """Writes the folder, and uploads it if asked to.

    Raises:
        UsageError: options that do not go together, or ``--out`` exists.
        CavmaeError: the checkpoint cannot be used, or the hub refuses it.
    """
    cli = parser("export", "Model folder with weights and a model card.")
    cli.add_argument("checkpoint", type=str, help="Folder of a checkpoint.")
    cli.add_argument("--out", required=True, type=str, help="Folder to write.")
    settings, options = parse_settings(cli, ExportSettings, words)
    if settings.push and settings.name is None:
        raise UsageError("--push needs the --name of the model on the hub.")
    from cavmae.tools.publishing import export, push

    out = Path(options.out)
    export(Path(options.checkpoint), out, settings)
    log.info("Wrote %s.", out)
    if settings.push and settings.name is not None:
        push(out, settings.name)
    return 0


if __name__ == "__main__":
    module_main(main)
