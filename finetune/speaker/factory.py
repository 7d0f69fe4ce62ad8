"""The speaker model of a run, and what it starts from."""

import logging
from pathlib import Path
from typing import Any

import torch

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.json_files import read_json
from cavmae.datasets.stream.features import FRAME_RATE
from cavmae.datasets.stream.transforms import Statistics
from cavmae.finetune.speaker.model import SpeakerConfig, SpeakerModel
from cavmae.finetune.speaker.settings import SpeakerModelSettings
from cavmae.pretrain.encoder import CAVMAEConfig, config_for_size
from cavmae.pretrain.engine.checkpoints import CONFIG, PREPROCESSING
from cavmae.pretrain.factory import compile_blocks, load_hub, load_named_weights, read_preprocessing
from cavmae.pretrain.settings import LoopSettings
from cavmae.pretrain.weights import load_weights, move_positions

log = logging.getLogger("cavmae")


def speaker_config(
    settings: SpeakerModelSettings, encoder: CAVMAEConfig, image: tuple[int, int], frames: int
) -> SpeakerConfig:
    """The shape of the model.

    Args:
        encoder: as it was pretrained; it is moved to the scenes' grid.
        image: (height, width) of the scenes.
        frames: fbank frames of a scene.

    Raises:
        UsageError: settings that make no model.
    """
    parts = {
        name: getattr(encoder, name)
        for name in ("patch", "width", "heads", "depth", "joint_depth", "mlp_ratio")
    }
    if encoder.patch != 16:
        raise UsageError(f"The encoder has patches of {encoder.patch}; the speaker model needs 16.")
    try:
        return SpeakerConfig(
            encoder=CAVMAEConfig(image_size=image, audio_size=(128, frames), **parts),
            slots=settings.slots,
            width=settings.width,
            heads=settings.heads,
            query_layers=settings.query_layers,
            slot_layers=settings.slot_layers,
            voice_layers=settings.voice_layers,
            mask_width=settings.mask_width,
            key_frames=settings.key_frames,
            motion_size=(settings.motion_height, settings.motion_width),
            motion_channels=settings.motion_channels,
            motion_blocks=settings.motion_blocks,
            separator=settings.separator,
            separator_width=settings.separator_width,
            classes=settings.classes,
        )
    except ValueError as error:
        raise UsageError(f"model: {error}") from error


def build_speaker(
    settings: SpeakerModelSettings, image: tuple[int, int], frames: int, seed: int
) -> SpeakerModel:
    """The model, its encoder as it was pretrained; the same in every process.

    Raises:
        CavmaeError: weights are missing, damaged, or not of a CAV-MAE.
    """
    torch.manual_seed(seed)
    if settings.init_from is not None:
        return _started(settings.init_from, image, frames)
    if settings.encoder is None:
        if settings.train_encoder == "frozen":
            raise UsageError(
                "An encoder from scratch has to learn: set model.train_encoder all, or give a "
                "pretrained one with --model.encoder."
            )
        source = config_for_size(settings.encoder_size)
        return _made(speaker_config(settings, source, image, frames))
    source, weights = load_named_weights(settings.encoder)
    model = _made(speaker_config(settings, source, image, frames))
    own = model.encoder.state_dict()
    moved = move_positions(weights, source, model.config.encoder)
    try:
        load_weights(model.encoder, {k: v for k, v in moved.items() if k in own})
    except CavmaeError as error:
        raise CavmaeError(f"{settings.encoder}: {error}") from error
    return model


def configure_compute(model: SpeakerModel, how: LoopSettings) -> None:
    """Sets how a run computes the encoder: its blocks compiled, their activations kept or not.

    Raises:
        UsageError: no such backend of the compiler.
    """
    model.encoder.checkpoint_activations = how.checkpoint_activations
    if how.compile != "off":
        compile_blocks(model.encoder, how.compile)


def _started(name: str, image: tuple[int, int], frames: int) -> SpeakerModel:
    """A fine-tuned model that goes on."""
    model, _ = load_speaker(name)
    own = model.config.encoder
    if (tuple(own.image_size), own.audio_size[1]) != (image, frames):
        raise UsageError(
            f"{name} is made for scenes of {own.image_size} pixels and "
            f"{own.audio_size[1] / FRAME_RATE} s, not {image} and {frames / FRAME_RATE} s: set "
            "compose.height, compose.width and compose.seconds to those."
        )
    return model


def _made(shape: SpeakerConfig) -> SpeakerModel:
    try:
        return SpeakerModel(shape)
    except ValueError as error:
        raise UsageError(f"model: {error}") from error


def statistics_for(settings: SpeakerModelSettings, data_set: str) -> Statistics:
    """What fbanks are normalised by: what the model was trained with, else the data set's own."""
    if settings.init_from is not None:
        return load_speaker(settings.init_from)[1]
    told: dict[str, Any] | None = None
    if settings.encoder is not None:
        told = read_preprocessing(settings.encoder)
    if told is None:
        return Statistics.load(data_set)
    return Statistics(told["fbank_mean"], told["fbank_std"])


def load_speaker(name: str) -> tuple[SpeakerModel, Statistics]:
    """A fine-tuned model, and what its fbanks are normalised by.

    Args:
        name: folder of a checkpoint, or a name on the hub.

    Raises:
        CavmaeError: there is none, it is damaged, or it is of another kind.
    """
    config = Path(name) / CONFIG
    if config.is_file() and not _is_speaker(read_json(config)):
        raise CavmaeError(
            f"{name} is a model of another kind (a pretrained encoder?): fine-tune it first with "
            "`cavmae finetune speakers --model.encoder`."
        )
    model = load_hub(SpeakerModel, name, "make one with `cavmae finetune speakers`")
    told = read_preprocessing(name)
    if told is None:
        raise CavmaeError(
            f"{name} does not say how sound was normalised: {PREPROCESSING} is missing."
        )
    return model, Statistics(told["fbank_mean"], told["fbank_std"])


def _is_speaker(config: Any) -> bool:
    """Whether a configuration is one of a speaker model."""
    shape = config.get("shape") if isinstance(config, dict) else None
    return isinstance(shape, dict) and "slots" in shape
