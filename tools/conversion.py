"""Conversion of published CAV-MAE weights to a model folder, and back."""

import shutil
import uuid
from pathlib import Path

import torch

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import read_json, typed
from cavmae.finetune.events.config import EventConfig, numbered_classes
from cavmae.finetune.events.labels import read_class_list
from cavmae.finetune.events.model import EventClassifier
from cavmae.pretrain.config import EncoderConfig, as_base_config
from cavmae.pretrain.engine.model_files import CONFIG, WEIGHTS, write_hashes
from cavmae.pretrain.model import CAVMAE
from cavmae.pretrain.temporal.settings import PER_FRAME
from cavmae.pretrain.weights import PREFIX, config_from, load_weights, read_weights
from cavmae.tools.convert import ConvertSettings


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
        names = _class_names(len(weights["mlp_head.1.weight"]), settings.labels)
        encoder = as_base_config(config, EncoderConfig)
        model = EventClassifier(EventConfig(encoder, names, multi_label=settings.multi_label))
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


def _class_names(count: int, labels: str | None) -> tuple[str, ...]:
    """Names of the classes of a fine-tuned file. Raises CavmaeError: the list has others."""
    if labels is None:
        return numbered_classes(count)
    names = read_class_list(Path(labels)).names
    if len(names) != count:
        raise CavmaeError(
            f"{labels} has {len(names)} classes, the weights {count}: name the list that they were "
            "trained with."
        )
    return names


def to_published(source: Path, out: Path) -> None:
    """Convert a model folder to a state dict as the authors publish it, keys with ``module.``.

    Raises:
        CavmaeError: the folder is not a model folder, or damaged.
        UsageError: the model has what published models do not: attention over time, several frames,
            a motion pathway.
    """
    if out.suffix not in (".pth", ".pt"):
        raise UsageError(f"--out {out}: the name of a published file ends with .pth.")
    try:
        config = read_json(source / CONFIG)
    except FileNotFoundError as error:
        raise CavmaeError(f"{source} is not a folder of weights: {CONFIG} is missing.") from error
    try:
        encoder = typed(config, "encoder", dict) if "encoder" in config else config
        attention = typed(typed(encoder, "temporal", dict), "name", str)
        frames = typed(encoder, "frames", int)
        motion = typed(config, "motion_height", int) if "motion_height" in config else 0
    except (ValueError, TypeError) as error:
        raise CavmaeError(f"{source / CONFIG} is damaged ({error}): copy it again.") from error
    if attention != PER_FRAME.name or frames > 1:
        raise UsageError(
            f"{source} has temporal attention {attention} of {frames} frames, which the published "
            "format does not know: use the folder as it is."
        )
    if motion:
        raise UsageError(
            f"{source} has a motion pathway, which the published format does not know: use the "
            "folder as it is."
        )
    weights = read_weights(source / WEIGHTS)
    out.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(out) as file:
        torch.save({PREFIX + key: value for key, value in weights.items()}, file)
