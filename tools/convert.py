"""`cavmae convert WEIGHTS --out PATH`: published CAV-MAE weights to a model folder, and back."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from cavmae.common.cli import module_main, parse_settings, parser
from cavmae.common.errors import UsageError

log = logging.getLogger("cavmae")


@dataclasses.dataclass(frozen=True)
class ConvertSettings:
    """Hyperparameters that a published file does not contain.

    Args:
        heads: attention heads of the encoder; 0: one for every 64 values of a token.
        decoder_heads: attention heads of the decoder; 0: 16.
        image_height: height of the frames in pixels; 0: frames are square.
        image_width: width of the frames in pixels; 0: frames are square.
        labels: CSV file with the names of a fine-tuned file's classes, such as AudioSet's
            class_labels_indices.csv; None: they are numbered.
        multi_label: clips may have several classes (AudioSet), or one only (VGGSound:
            ``--no-multi-label``).
        partial: load the weights that fit the model, and list the others.
    """

    heads: int = 0
    decoder_heads: int = 0
    image_height: int = 0
    image_width: int = 0
    labels: str | None = None
    multi_label: bool = True
    partial: bool = False


def main(words: Sequence[str]) -> int:
    """Converts a file or a folder.

    Raises:
        UsageError: ``--out`` exists.
        CavmaeError: the weights cannot be used.
    """
    cli = parser(
        "convert",
        "Published CAV-MAE weights to a model folder, and back. Published weights are trained on "
        "the first audio channel: shard with --downmix first for them, since fbanks of a stereo "
        "mix differ.",
    )
    cli.add_argument(
        "weights", type=str, help="Published file (.pth, .pt, .safetensors), or a model folder."
    )
    cli.add_argument(
        "--out",
        required=True,
        type=str,
        help="Model folder to write for a published file; or .pth file for a model folder.",
    )
    settings, options = parse_settings(cli, ConvertSettings, words)
    source, out = Path(options.weights), Path(options.out)
    if out.exists():
        raise UsageError(f"--out {out} is there already: name another, or remove it.")
    from cavmae.tools.conversion import to_ours, to_published

    if source.is_dir():
        to_published(source, out)
    else:
        for line in to_ours(source, out, settings):
            log.warning("Not loaded: %s.", line)
    log.info("Wrote %s.", out)
    return 0


if __name__ == "__main__":
    module_main(main)
