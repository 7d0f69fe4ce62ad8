"""Construction of models: configuration, initial weights, compilation."""

import dataclasses
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from torch import Tensor, nn

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.json_files import read_json, typed
from cavmae.datasets.stream.features import MEL_BINS
from cavmae.pretrain.config import CAVMAEConfig, as_base_config
from cavmae.pretrain.engine.hub import HubWeights, model_folder, model_type_of
from cavmae.pretrain.engine.model_files import PREPROCESSING
from cavmae.pretrain.masking import num_visible
from cavmae.pretrain.model import CAVMAE
from cavmae.pretrain.settings import ModelSettings, ObjectiveSettings
from cavmae.pretrain.weights import (
    check_temporal,
    config_from,
    initialise_from_mae,
    load_weights,
    move_positions,
    read_weights,
)

log = logging.getLogger("cavmae")
Model = TypeVar("Model", bound=HubWeights)
IMAGENET_MAE = "vit_base_patch16_224.mae"


def model_config(settings: ModelSettings, objective: ObjectiveSettings) -> CAVMAEConfig:
    """Configuration of the model of a run.

    Raises:
        UsageError: settings that make no model.
    """
    if objective.decode_fraction < 1 and settings.decoder != "cross":
        raise UsageError("objective.decode_fraction below 1 needs model.decoder cross.")
    if settings.mel_bins != MEL_BINS:
        raise UsageError(
            f"model.mel_bins {settings.mel_bins}: shards have {MEL_BINS} mel bins; leave it out."
        )
    independent = objective.frame_masks == "independent"
    if independent and settings.frames > 1 and settings.temporal.pairs_tokens:
        raise UsageError(
            f"objective.frame_masks independent: temporal attention {settings.temporal.name} "
            "attends to the same patch in all frames and needs tube masks; leave it out."
        )
    config = as_base_config(settings, CAVMAEConfig)
    if not objective.aligned_weight:
        config = dataclasses.replace(config, contrast_width=0)
    try:
        num_visible(math.prod(config.audio_grid), objective.mask_ratio_audio)
        num_visible(math.prod(config.image_grid), objective.mask_ratio_image)
    except ValueError as error:
        raise UsageError(f"model: {error}") from error
    return config


def build_model(settings: ModelSettings, objective: ObjectiveSettings, seed: int) -> CAVMAE:
    """Model with its initial weights, the same in every process.

    Raises:
        CavmaeError: weights are missing, damaged, or of another model.
    """
    if settings.weights and settings.mae:
        raise UsageError("Start from model.weights or from model.mae, not from both.")
    torch.manual_seed(seed)
    model = CAVMAE(model_config(settings, objective))
    if settings.mae:
        initialise_from_mae(model, imagenet_mae(settings.mae))
    if settings.weights:
        source, weights = load_named_weights(settings.weights)
        if not settings.partial:
            origin = f"model.weights {settings.weights}"
            check_temporal(origin, source, model.config, "model.temporal")
        moved = move_positions(weights, source, model.config)
        for line in load_weights(model, moved, settings.partial):
            log.warning("Left: %s.", line)
    return model


def imagenet_mae(name: str) -> dict[str, Tensor]:
    """Weights of timm's MAE: from a file, or fetched with the name ``timm``.

    Raises:
        CavmaeError: they cannot be had.
    """
    if name != "timm":
        return read_weights(Path(name))
    try:
        import timm  # takes seconds, and few runs need it

        model = timm.create_model(IMAGENET_MAE, pretrained=True, num_classes=0)
    except (OSError, RuntimeError) as error:
        raise CavmaeError(
            f"{IMAGENET_MAE} could not be fetched ({error}); give its file with --model.mae."
        ) from error
    return dict(model.state_dict())


def load_named_weights(name: str) -> tuple[CAVMAEConfig, dict[str, Tensor]]:
    """Configuration and weights of a folder, a published file, or a name on the hub."""
    if Path(name).is_file():
        weights = read_weights(Path(name))
        return config_from(weights), weights
    model = load_model(name)
    return model.config, dict(model.state_dict())


def load_model(name: str) -> CAVMAE:
    """Model of a checkpoint folder or of a name on the hub.

    Raises:
        CavmaeError: there is none, or it is damaged.
    """
    return load_hub(CAVMAE, name, "make one with `cavmae convert`")


def load_hub(kind: type[Model], name: str, remedy: str) -> Model:
    """Model of a class; see :func:`load_model`."""
    try:
        return kind.from_pretrained(name)
    except RuntimeError as error:
        found_out = " ".join(str(error).split("\n\t")[:2])
        raise CavmaeError(
            f"{name} holds weights that are not those of its configuration, since they are of "
            f"another version of cavmae or of another kind ({found_out}): {remedy}."
        ) from error
    except (OSError, ValueError, TypeError, HfHubHTTPError, HFValidationError) as error:
        raise CavmaeError(
            f"{name} is no folder of weights, nor a model on the hub "
            f"({str(error).splitlines()[0]}): {remedy}."
        ) from error


def type_of_model(name: str) -> str:
    """Type of the model in a folder or of a name on the hub, the ``model_type`` of its class.

    Raises:
        CavmaeError: there is no model, or its configuration is damaged.
    """
    try:
        return model_type_of(model_folder(name), f"fetch a sound copy of {name}")
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        raise CavmaeError(
            f"{name} is no folder of weights, nor a model on the hub "
            f"({str(error).splitlines()[0]}): name a checkpoint."
        ) from error


def read_preprocessing(name: str) -> dict[str, Any] | None:
    """Preprocessing saved beside weights; None: there is none.

    Args:
        name: folder or file, or a name on the hub.

    Raises:
        CavmaeError: it is damaged.
    """
    path = Path(name) / PREPROCESSING
    if not Path(name).exists():
        fetched = _from_hub(name)
        if fetched is None:
            return None
        path = fetched
    if not path.is_file():
        return None
    try:
        record = read_json(path, remedy="give --statistics data")
        mean, std = typed(record, "fbank_mean", float), typed(record, "fbank_std", float)
        if std <= 0:
            raise ValueError(f"fbank_std is {std}")
        return {**record, "fbank_mean": mean, "fbank_std": std}
    except (OSError, ValueError) as error:
        raise CavmaeError(f"{path} is damaged ({error}); give --statistics data.") from error


def _from_hub(name: str) -> Path | None:
    """Preprocessing file of a model on the hub; None: no such file or model."""
    try:
        return Path(hf_hub_download(name, PREPROCESSING))
    except LocalEntryNotFoundError as error:  # the network, not the model, is at fault
        raise CavmaeError(
            f"{PREPROCESSING} of {name} could not be fetched from the hub "
            f"({str(error).splitlines()[0]}); try again, or name a folder."
        ) from error
    except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError):
        return None
    except (OSError, HfHubHTTPError) as error:
        raise CavmaeError(f"{PREPROCESSING} of {name} could not be fetched: {error}") from error


def compile_blocks(model: nn.Module, backend: str) -> None:
    """Compiles a model's repeated parts in place: few, small graphs, the same names of weights.

    Those are the members of its outermost lists of modules that have parts of their own.

    Raises:
        UsageError: no such backend, or a model without such parts.
    """
    if backend not in torch._dynamo.list_backends(exclude_tags=()):
        known = ", ".join(torch._dynamo.list_backends())
        raise UsageError(f"loop.compile {backend}: there is no such backend; there are {known}.")
    # A block is compiled for each kind of norm, width and number of tokens that it meets.
    torch._dynamo.config.recompile_limit = 64
    blocks = [part for part in _listed_parts(model) if next(part.children(), None) is not None]
    if not blocks:
        raise UsageError(
            f"loop.compile: {type(model).__name__} has no repeated blocks to compile; leave it off."
        )
    for block in blocks:
        block.compile(backend=backend)


def _listed_parts(model: nn.Module) -> Iterator[nn.Module]:
    """Members of the outermost lists of modules."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _listed_parts(child)
