"""Construction of the speaker model of a run, from scratch or from checkpoints."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.datasets.format.weighted_sets import WeightedSet
from cavmae.datasets.stream.features import FBANK_RATE
from cavmae.datasets.stream.transforms import Statistics
from cavmae.finetune.encoder_weights import encoder_weights
from cavmae.finetune.initial_weights import report_unused_settings
from cavmae.finetune.models.box import model_source
from cavmae.finetune.separation.config import SoundSeparatorConfig
from cavmae.finetune.separation.weights import load_sound
from cavmae.finetune.speaker.config import SpeakerConfig
from cavmae.finetune.speaker.model import SpeakerModel
from cavmae.finetune.speaker.settings import (
    EncoderSettings,
    SpeakerModelSettings,
    SpeakerSoundSettings,
)
from cavmae.pretrain.config import EncoderConfig, as_base_config
from cavmae.pretrain.engine.model_files import PREPROCESSING
from cavmae.pretrain.engine.settings import LoopSettings
from cavmae.pretrain.factory import compile_blocks, load_hub, read_preprocessing
from cavmae.pretrain.weights import check_temporal, load_weights, move_positions

log = logging.getLogger("cavmae")
# What `model.lips_from` replaces: fields of the configuration, and parts of the model.
LIPS_FIELDS = ("motion_height", "motion_width", "motion_pool", "head_size", "head_motion")
LIPS_PARTS = ("motion_reader.", "articulation_head.")
REMEDY = "make one with `cavmae finetune speakers`, or name one that `cavmae models` lists"


def speaker_config(
    settings: SpeakerModelSettings,
    image: tuple[int, int],
    frames: int,
    pretrained: EncoderConfig | None = None,
    sound: SoundSeparatorConfig | None = None,
) -> SpeakerConfig:
    """Configuration of the speaker model of a run.

    Args:
        settings: of the model.
        image: (height, width) of the scenes in pixels.
        frames: fbank frames of a scene.
        pretrained: configuration of the encoder whose weights are taken; None: from scratch.
        sound: configuration of the sound separator whose weights are taken; None: from scratch.

    Raises:
        UsageError: the settings are not valid, or not those of the scenes or the weights.
    """
    chosen, default = settings.encoder, EncoderSettings()
    source = as_base_config(pretrained or chosen, EncoderConfig)
    source = dataclasses.replace(source, temporal=chosen.temporal)
    try:
        encoder = dataclasses.replace(
            source,
            image_height=image[0],
            image_width=image[1],
            audio_frames=frames,
            frames=settings.key_frames,
        )
        for field in dataclasses.fields(EncoderConfig):
            value, actual = getattr(chosen, field.name), getattr(encoder, field.name)
            if field.name == "size" and value != default.size:
                value = as_base_config(chosen, EncoderConfig).size  # with other numbers: custom
            if value not in (getattr(default, field.name), actual):
                raise UsageError(
                    f"model.encoder.{field.name} {value}: the scenes (compose) or the weights "
                    f"(model.encoder_from) have {actual}; leave it out."
                )
        if encoder.patch != 16:
            raise UsageError(
                f"The encoder has patches of {encoder.patch}; the speaker model needs 16."
            )
        own_sound = as_base_config(settings.sound, SoundSeparatorConfig)
        # A recipe has a separator of its own, which the weights replace.
        named = settings.sound != SpeakerSoundSettings()
        if sound is not None and named and own_sound != sound:
            log.info(
                "The sound separator is that of model.sound_from (%s): model.sound does not count.",
                sound.separator.name,
            )
        return dataclasses.replace(
            as_base_config(settings, SpeakerConfig),
            encoder=encoder,
            sound=sound or own_sound,
        )
    except ValueError as error:
        raise UsageError(f"model: {error}") from error


def build_speaker(
    settings: SpeakerModelSettings, image: tuple[int, int], frames: int, seed: int
) -> SpeakerModel:
    """Speaker model with its initial weights, which a seed makes equal in every process.

    Args:
        settings: of the model.
        image: (height, width) of the scenes in pixels.
        frames: fbank frames of a scene.
        seed: of the random initialisation.

    Raises:
        UsageError: the settings are not valid, or do not fit the scenes.
        CavmaeError: weights are missing, damaged, or not of a CAV-MAE.
    """
    torch.manual_seed(seed)
    model = _build(settings, image, frames)
    return model if settings.lips_from is None else _replace_lips(model, settings.lips_from)


def _build(settings: SpeakerModelSettings, image: tuple[int, int], frames: int) -> SpeakerModel:
    if settings.init_from is not None:
        model = _load_initial(settings.init_from, image, frames)
        report_unused_settings(settings, model.config)
        if settings.sound_from is not None:
            _replace_sound(model, settings)
        if settings.add_classes:
            _add_classes(model, settings)
        return model
    sound = None if settings.sound_from is None else load_sound(settings.sound_from)
    sound_config = None if sound is None else sound.config
    if settings.encoder_from is None:
        if settings.train_encoder == "frozen" and settings.freeze != "masks":  # which needs none
            raise UsageError(
                "An encoder from scratch has to learn: set model.train_encoder to all, or give a "
                "pretrained encoder with --model.encoder-from."
            )
        model = _create(speaker_config(settings, image, frames, sound=sound_config))
    else:
        source, weights = encoder_weights(settings.encoder_from)
        model = _create(speaker_config(settings, image, frames, source, sound_config))
        _load_encoder(model, settings.encoder_from, source, weights)
    if sound is None:
        model.sound.separator.load_pretrained()
    else:
        model.sound.load_state_dict(sound.state_dict())
    return model


def _replace_sound(model: SpeakerModel, settings: SpeakerModelSettings) -> None:
    """Put the weights of ``model.sound_from`` in place of those of ``model.init_from``.

    Raises:
        UsageError: it is another separator.
    """
    assert settings.sound_from is not None
    sound = load_sound(settings.sound_from)
    if sound.config != model.config.sound:
        names = sound.config.separator.name, model.config.sound.separator.name
        raise UsageError(
            f"model.sound_from {settings.sound_from} ({names[0]}) differs in its configuration "
            f"from the separator of model.init_from ({names[1]}): train a new model from it."
        )
    model.sound.load_state_dict(sound.state_dict())


def _replace_lips(model: SpeakerModel, name: str) -> SpeakerModel:
    """Model with the reader of articulation cues of ``model.lips_from`` and its configuration.

    Raises:
        UsageError: the reader is of whole frames, or of another embedding width.
    """
    lips, _ = load_speaker(name)
    if lips.config.head_size == 0:
        raise UsageError(
            f"model.lips_from {name} reads lips from whole frames, with its masks: name a "
            "checkpoint that was trained with model.head_size."
        )
    if lips.config.width != model.config.width:
        raise UsageError(
            f"model.lips_from {name} has the width {lips.config.width}, the model "
            f"{model.config.width}: train it with the same configuration."
        )
    chosen = {field: getattr(lips.config, field) for field in LIPS_FIELDS}
    replaced = _create(dataclasses.replace(model.config, **chosen))
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith(LIPS_PARTS)}
    weights |= {k: v for k, v in lips.state_dict().items() if k.startswith(LIPS_PARTS)}
    replaced.load_state_dict(weights)
    frozen = {k for k, parameter in model.named_parameters() if not parameter.requires_grad}
    for key, parameter in replaced.named_parameters():
        parameter.requires_grad_(key not in frozen)
    return replaced


def _load_encoder(
    model: SpeakerModel, name: str, source: EncoderConfig, weights: dict[str, Tensor]
) -> None:
    origin = f"model.encoder_from {name}"
    check_temporal(origin, source, model.config.encoder, "model.encoder.temporal")
    expected = model.encoder.state_dict()
    moved = move_positions(weights, source, model.config.encoder)
    try:
        load_weights(model.encoder, {k: v for k, v in moved.items() if k in expected})
    except CavmaeError as error:
        raise CavmaeError(f"{name}: {error}") from error


def configure_compute(model: SpeakerModel, settings: LoopSettings) -> None:
    """Set compilation and activation checkpointing of the encoder's blocks.

    Raises:
        UsageError: there is no such compiler backend.
    """
    model.encoder.checkpoint_activations = settings.checkpoint_activations
    if settings.compile != "off":
        compile_blocks(model.encoder, settings.compile)


def _load_initial(name: str, image: tuple[int, int], frames: int) -> SpeakerModel:
    """Fine-tuned model of ``model.init_from``, which must fit the scenes."""
    model, _ = load_speaker(name)
    encoder = model.config.encoder
    if (tuple(encoder.image_size), encoder.audio_size[1]) != (image, frames):
        raise UsageError(
            f"{name} is made for scenes of {encoder.image_size} pixels and "
            f"{encoder.audio_size[1] / FBANK_RATE} s, not {image} and {frames / FBANK_RATE} s: set "
            "compose.height, compose.width and compose.seconds to those."
        )
    return model


def _add_classes(model: SpeakerModel, settings: SpeakerModelSettings) -> None:
    """Append ``model.add_classes``; with ``model.freeze`` trunk, only their embeddings learn.

    Raises:
        UsageError: the model has one of them already.
    """
    if existing := sorted({*model.config.classes} & {*settings.add_classes}):
        raise UsageError(
            f"model.add_classes: {settings.init_from} has the class {existing[0]!r} already: leave "
            "it out."
        )
    model.add_classes(settings.add_classes)
    if settings.freeze == "trunk":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name == "hint_embed.added")


def _create(shape: SpeakerConfig) -> SpeakerModel:
    try:
        return SpeakerModel(shape)
    except ValueError as error:
        raise UsageError(f"model: {error}") from error


def statistics_for(settings: SpeakerModelSettings, sets: Sequence[WeightedSet]) -> Statistics:
    """Statistics for normalising fbanks: of the initial weights, else of the data sets."""
    if settings.init_from is not None:
        return _statistics(settings.init_from, model_source(settings.init_from))
    preprocessing: dict[str, Any] | None = None
    if settings.encoder_from is not None:
        preprocessing = read_preprocessing(model_source(settings.encoder_from))
    if preprocessing is None:
        return Statistics.of_mixture(sets)
    return Statistics(preprocessing["fbank_mean"], preprocessing["fbank_std"])


def load_speaker(name: str) -> tuple[SpeakerModel, Statistics]:
    """Load a fine-tuned model and the statistics of its fbanks.

    Args:
        name: folder of a checkpoint, or a model in the box or on the hub.

    Raises:
        CavmaeError: the checkpoint is missing, damaged, or of another kind of model.
    """
    source = model_source(name)
    return load_hub(SpeakerModel, source, REMEDY), _statistics(name, source)


def _statistics(name: str, source: str) -> Statistics:
    """Statistics of the fbanks of a model.

    Raises:
        CavmaeError: they are missing or damaged.
    """
    preprocessing = read_preprocessing(source)
    if preprocessing is None:
        raise CavmaeError(
            f"{name} has no {PREPROCESSING} with the statistics of its fbanks: copy it again."
        )
    return Statistics(preprocessing["fbank_mean"], preprocessing["fbank_std"])
