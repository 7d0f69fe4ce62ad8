"""Import of weights: published files, checkpoints, other grids, an ImageNet MAE.

A published file is a flat state dict whose keys may start with ``module.``. Ours is a folder with
``model.safetensors`` and ``config.json``, as ``from_pretrained`` and ``push_to_hub`` of
:class:`huggingface_hub.PyTorchModelHubMixin` read and write it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.pretrain.config import CAVMAEConfig, EncoderConfig
from cavmae.pretrain.encoder import Encoder
from cavmae.pretrain.engine.model_files import WEIGHTS, verify_model
from cavmae.pretrain.engine.tensor_files import read_tensors
from cavmae.pretrain.positions import (
    Grid,
    interpolate_positions,
    interpolate_times,
    sin_cos_positions,
)
from cavmae.pretrain.temporal.base import temporal_parameters
from cavmae.pretrain.temporal.settings import PER_FRAME

PREFIX = "module."
MEL_BINS = 128
HEAD_WIDTH = 64  # of an attention head in every published model of this family
DECODER_HEADS = 16
SHOWN = 6  # names in a message; the rest are counted

Weights = dict[str, Tensor]


def read_weights(path: Path) -> Weights:
    """State dict of a published file, without the prefix ``module.`` of its names.

    A file out of a folder of ours is verified where a ``COMPLETE`` lies beside it.

    Raises:
        CavmaeError: the file was altered, or see
            :func:`~cavmae.pretrain.engine.tensor_files.read_tensors`.
    """
    if path.name == WEIGHTS:
        verify_model(path.parent)
    tensors = read_tensors(path, "fetch a sound copy of it")
    return {name.removeprefix(PREFIX): value for name, value in tensors.items()}


def _blocks(weights: Mapping[str, Tensor], name: str) -> int:
    numbers = [int(m[1]) for key in weights if (m := re.match(rf"{name}\.(\d+)\.", key))]
    return max(numbers, default=-1) + 1


def config_from(
    weights: Mapping[str, Tensor],
    heads: int | None = None,
    decoder_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> CAVMAEConfig:
    """Configuration of the model of a published state dict.

    Args:
        heads, decoder_heads: cannot be read off the weights; None: 64 values a head in the encoder
            and 16 heads in the decoder, as published.
        image_size: (height, width) in pixels; None: a square.

    Raises:
        CavmaeError: the weights are not those of a CAV-MAE.
    """
    try:
        width, _, patch, _ = weights["patch_embed_v.proj.weight"].shape
        columns = weights["pos_embed_a"].shape[1] // (MEL_BINS // patch)
        if image_size is None:
            side = round(weights["pos_embed_v"].shape[1] ** 0.5)
            image_size = (side * patch, side * patch)
        decoder: dict[str, Any] = {}
        if "decoder_embed.weight" in weights:
            decoder = {
                "decoder_width": weights["decoder_embed.weight"].shape[0],
                "decoder_depth": _blocks(weights, "decoder_blocks"),
                "decoder_heads": decoder_heads or DECODER_HEADS,
            }
        return CAVMAEConfig(
            image_height=image_size[0],
            image_width=image_size[1],
            mel_bins=MEL_BINS,
            audio_frames=columns * patch,
            patch=patch,
            width=width,
            heads=heads or max(1, width // HEAD_WIDTH),
            depth=_blocks(weights, "blocks_a"),
            joint_depth=_blocks(weights, "blocks_u"),
            mlp_ratio=weights["blocks_u.0.mlp.fc1.bias"].shape[0] / width,
            **decoder,
        )
    except KeyError as error:
        raise CavmaeError(f"These are not the weights of a CAV-MAE: {error} is missing.") from error
    except ValueError as error:
        raise CavmaeError(
            f"The shape of the model cannot be read off its weights ({error}); give heads, "
            "decoder heads or the image size."
        ) from error


def move_positions(weights: Weights, source: EncoderConfig, target: EncoderConfig) -> Weights:
    """Weights for a model of another image size, audio length or number of frames.

    Sin-cos positions are made for the new grid; learned ones are interpolated. Positions of frames
    are left out where the target has one frame.
    """
    grids = {"a": (source.audio_grid, target.audio_grid),
             "v": (source.image_grid, target.image_grid)}  # fmt: skip
    moved = dict(weights)
    for key, value in weights.items():
        if re.fullmatch(r"(decoder_)?pos_embed_[av]", key):
            moved[key] = _moved(value, *grids[key[-1]])
        elif re.fullmatch(r"(decoder_)?pos_embed_t", key):
            if target.frames == 1:
                del moved[key]
            else:
                moved[key] = interpolate_times(value, target.frames)
    return moved


def check_temporal(origin: str, source: EncoderConfig, target: EncoderConfig, option: str) -> None:
    """Checks that weights fit the temporal attention of a model.

    Those of ``per-frame`` attention start every other one; weights that were trained with another
    one only serve the same.

    Args:
        origin: of the weights, for the message.
        source, target: configurations of the weights and of the model.
        option: that sets the model's attention, for the message.

    Raises:
        UsageError: they do not fit.
    """
    names = source.temporal.name, target.temporal.name
    if names[0] not in (PER_FRAME.name, names[1]):
        raise UsageError(
            f"{origin} has temporal attention {names[0]}, the model {names[1]}: set {option} "
            f"{names[0]}, or start from weights of {PER_FRAME.name} attention."
        )


def _moved(positions: Tensor, grid: Grid, target: Grid) -> Tensor:
    if grid == target:
        return positions
    width = positions.shape[2]
    fixed = sin_cos_positions(width, grid)
    # Half precision rounds values up to 1 by 2.5e-4.
    if fixed.shape == positions.shape and torch.allclose(fixed, positions.float(), atol=1e-3):
        return sin_cos_positions(width, target).to(positions.dtype)
    return interpolate_positions(positions, grid, target)


def load_weights(
    model: nn.Module, weights: Mapping[str, Tensor], partial: bool = False
) -> list[str]:
    """Loads weights into a model, completely or not at all.

    Weights of a model without a temporal attention of its own start every other one, and those of a
    model of one frame one of several: what only serves several frames then keeps its initial
    values.

    Args:
        partial: load what fits, and say what did not.

    Returns:
        what was left: empty unless ``partial``.

    Raises:
        CavmaeError: a key is missing, left over, or of the wrong shape, and ``partial`` is False;
            or nothing fits at all.
    """
    own = model.state_dict()
    temporal = temporal_parameters(model).keys()
    optional = frame_positions(model) | (set() if temporal & weights.keys() else {*temporal})
    own = {key: value for key, value in own.items() if key in weights or key not in optional}
    wrong = [k for k in own if k in weights and own[k].shape != weights[k].shape]
    left = [f"{key} is missing" for key in own if key not in weights]
    left += [f"{key} is left over" for key in weights if key not in own]
    left += [f"{k} is {tuple(weights[k].shape)}, not {tuple(own[k].shape)}" for k in wrong]
    if left and not partial:
        more = f", and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
        raise CavmaeError(
            f"The weights do not fit the model: {'; '.join(left[:SHOWN])}{more}. Load them "
            "partially if that is meant."
        )
    fitting = {k: v for k, v in weights.items() if k in own and k not in wrong}
    if not fitting:
        raise CavmaeError("None of the weights fits the model; is it another kind of file?")
    model.load_state_dict(fitting, strict=False)
    return left


def frame_positions(model: nn.Module) -> set[str]:
    """Names of the learned positions of frames of a model and its encoders."""
    return {
        f"{place}.{name}" if place else name
        for place, module in model.named_modules()
        if isinstance(module, Encoder)
        for name in module.frame_positions()
    }


def initialise_from_mae(model: Encoder, weights: Mapping[str, Tensor]) -> None:
    """Initializes branches and joint blocks from an ImageNet MAE, by the reference's recipe.

    Block i goes to block i of both branches, the blocks after those to the joint ones (and their
    norms to the norms of both modalities); the patch embedding of audio is the sum over RGB.
    Positions stay the model's own.

    Args:
        weights: of timm's ``vit_base_patch16_224.mae``, or of a ViT of the model's width.

    Raises:
        CavmaeError: a weight is missing or of the wrong shape; the model is unchanged.
    """
    depth, joint = model.encoder_config.depth, model.encoder_config.joint_depth
    temporal = temporal_parameters(model)
    taken: Weights = {}

    def take(name: str) -> Tensor:
        if name not in weights:
            raise CavmaeError(f"The MAE's weights lack {name}; a ViT as timm names it is needed.")
        return weights[name]

    kernel = take("patch_embed.proj.weight")
    taken["patch_embed_v.proj.weight"] = kernel
    taken["patch_embed_a.proj.weight"] = kernel.sum(dim=1, keepdim=True)
    for modality in ("a", "v"):
        taken[f"patch_embed_{modality}.proj.bias"] = take("patch_embed.proj.bias")
    own = model.state_dict()
    for branch, count, first in (("a", depth, 0), ("v", depth, 0), ("u", joint, depth)):
        for number in range(count):
            for key in own:
                place = f"blocks_{branch}.{number}."
                if key.startswith(place) and key not in temporal:
                    inner = re.sub(r"^(norm[12])_[av]\.", r"\1.", key.removeprefix(place))
                    taken[key] = take(f"blocks.{first + number}.{inner}")
    for norm in ("norm", "norm_a", "norm_v"):
        for kind in ("weight", "bias"):
            if f"norm.{kind}" in weights:
                taken[f"{norm}.{kind}"] = weights[f"norm.{kind}"]
    for key, value in taken.items():
        if own[key].shape != value.shape:
            raise CavmaeError(
                f"The MAE's weights do not fit: {key} is {tuple(value.shape)}, the model's is "
                f"{tuple(own[key].shape)}."
            )
    model.load_state_dict(taken, strict=False)
