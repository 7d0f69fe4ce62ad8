"""`cavmae export CHECKPOINT --out DIR`: model folder with weights and a model card."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cavmae.common.cli import module_main, parse_settings, parser
from cavmae.common.errors import UsageError
from cavmae.finetune.models.box import model_source

log = logging.getLogger("cavmae")


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    """Options of the model card and the upload.

    Args:
        name: name of the model in its card, and on the hub for ``push``.
        measures: folder of `cavmae evaluate --out`; its table goes into the card.
        license: identifier of the license of the weights on the hub; None: that of an exported
            model, else apache-2.0.
        trained_on: training data, as a phrase that follows "was trained on"; `cavmae separate`
            prints it, and the card has it. None: that of an exported model.
        expect: results that users can expect, and their limits, as a phrase that follows "expect";
            likewise.
        notes: Markdown file that is appended to the model card: sources of the training data and
            their terms, measurements, failures.
        precision: of matrices and kernels in the file, which are restored to float32 when they are
            loaded: ``fp16`` for half of the size; ``int8``, with a scale for each row, for a
            quarter. Vectors (biases, norms) stay as they are.
        push: also upload to the hub, under ``name``.
    """

    name: str | None = None
    measures: str | None = None
    license: str | None = None
    trained_on: str | None = None
    expect: str | None = None
    notes: str | None = None
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    push: bool = False

    def __post_init__(self) -> None:
        for option, text in (("trained-on", self.trained_on), ("expect", self.expect)):
            if text is not None and (not text.strip() or len(text) > 300 or not text.isprintable()):
                raise UsageError(f"--{option}: give a phrase of up to 300 characters on one line.")


def main(words: Sequence[str]) -> int:
    """Writes the folder, and uploads it if asked to.

    Raises:
        UsageError: options that do not go together, or ``--out`` exists.
        CavmaeError: the checkpoint cannot be used, or the hub refuses it.
    """
    cli = parser("export", "Model folder with weights and a model card.")
    cli.add_argument(
        "checkpoint",
        type=str,
        help="Folder of a checkpoint, or a name in the box (`cavmae models`).",
    )
    cli.add_argument("--out", required=True, type=str, help="Folder to write.")
    settings, options = parse_settings(cli, ExportSettings, words)
    if settings.push and settings.name is None:
        raise UsageError("--push needs the --name of the model on the hub.")
    from cavmae.tools.publishing import export, push

    out = Path(options.out)
    export(Path(model_source(options.checkpoint)), out, settings)
    log.info("Wrote %s.", out)
    if settings.push and settings.name is not None:
        push(out, settings.name)
    return 0


if __name__ == "__main__":
    module_main(main)
