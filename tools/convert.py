"""`cavmae convert WEIGHTS --out PATH`: published CAV-MAE weights to a model folder, and back."""

import dataclasses
import logging
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch

from cavmae.common.cli import fill, module_main, parse, parser
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import read_json
from cavmae.finetune.events.config import EventConfig
from cavmae.finetune.events.model import EventClassifier
from cavmae.pretrain.config import EncoderConfig, narrowed
from cavmae.pretrain.engine.checkpoints import CONFIG, WEIGHTS, write_hashes
from cavmae.pretrain.model import CAVMAE
from cavmae.pretrain.weights import PREFIX, config_from, load_weights, read_weights

log = logging.getLogger("cavmae")


@dataclasses.dataclass(frozen=True)
class ConvertSettings:
    """Hyperparameters that a published file does not contain.

    Args:
        heads: attention heads of the encoder; 0: one for every 64 values of a token.
        decoder_heads: attention heads of the decoder; 0: 16.
        image_height: height of the frames in pixels; 0: frames are square.
        image_width: width of the frames in pixels; 0: frames are square.
        partial: load the weights that fit the model, and list the others.
    """

    heads: int = 0
    decoder_heads: int = 0
    image_height: int = 0
    image_width: int = 0
    partial: bool = False


def main(words: Sequence[str]) -> int:
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
    cli.add_class_arguments(ConvertSettings)
    options = parse(cli, words)
    source, out = Path(options.weights), Path(options.out)
    if out.exists():
        raise UsageError(f"--out {out} is there already: name another, or remove it.")
    if source.is_dir():
        to_published(source, out)
    else:
        for line in to_ours(source, out, fill(ConvertSettings, options)):
            log.warning("Not loaded: %s.", line)
    log.info("Wrote %s.", out)
    return 0


def to_ours(source: Path, out: Path, settings: ConvertSettings) -> list[str]:
    """Convert a published file to a folder that ``from_pretrained`` reads.

    Returns:
        names of weights that do not fit; empty unless ``partial`` is set.

    Raises:
        CavmaeError: the file is damaged, or not a complete CAV-MAE.
    """
    weights = read_weights(source)
    if bool(settings.image_height) != bool(settings.image_width):
        raise UsageError("Give both --image-height and --image-width, or neither.")
    size = (settings.image_height, settings.image_width) if settings.image_height else None
    config = config_from(weights, settings.heads or None, settings.decoder_heads or None, size)
    model: CAVMAE | EventClassifier
    if "mlp_head.1.weight" in weights:
        classes = weights["mlp_head.1.weight"].shape[0]
        model = EventClassifier(EventConfig(narrowed(config, EncoderConfig), classes))
    else:
        model = CAVMAE(config)
    left = load_weights(model, weights, settings.partial)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        model.save_pretrained(temporary)
        write_hashes(temporary)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return left


def to_published(source: Path, out: Path) -> None:
    """Convert a model folder to a state dict as the authors publish it, keys with ``module.``.

    Raises:
        CavmaeError: the folder is not a model folder, or damaged.
    """
    if out.suffix not in (".pth", ".pt"):
        raise UsageError(f"--out {out}: the name of a published file ends with .pth.")
    try:
        read_json(source / CONFIG)
    except FileNotFoundError as error:
        raise CavmaeError(f"{source} is not a folder of weights: {CONFIG} is missing.") from error
    weights = read_weights(source / WEIGHTS)
    out.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(out) as file:
        torch.save({PREFIX + key: value for key, value in weights.items()}, file)


if __name__ == "__main__":
    module_main(main)
