"""Construction of the event classifier of a run, from scratch or from weights."""

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.registry import to_json_value
from cavmae.datasets.stream.transforms import Statistics
from cavmae.finetune.encoder_weights import encoder_weights
from cavmae.finetune.events.config import EventConfig
from cavmae.finetune.events.labels import ClassList
from cavmae.finetune.events.model import EventClassifier
from cavmae.finetune.events.settings import EventEncoderSettings, EventModelSettings
from cavmae.finetune.models.box import model_source
from cavmae.finetune.motion.base import MotionPathway
from cavmae.pretrain.config import EncoderConfig, as_base_config
from cavmae.pretrain.factory import (
    load_hub,
    read_preprocessing,
    type_of_model,
)
from cavmae.pretrain.weights import check_temporal, load_weights, move_positions

REMEDY = "make one with `cavmae finetune events` or `cavmae convert`"
# Of the encoder's configuration: what may differ from that of its weights.
ADJUSTABLE = "image_height", "image_width", "audio_frames", "temporal", "frames"

# Settings that a classifier of `model.init_from` has already.
CLASSIFIER_FIELDS = (
    "pooling", "modalities", "multi_label", "motion_height", "motion_width", "motion", "lateral",
)  # fmt: skip

Padding = Literal["zero", "silence"]


def load_events(name: str) -> EventClassifier:
    """Classifier of a folder, or of a name in the box or on the hub.

    Raises:
        CavmaeError: there is none, or it is damaged, or of another kind.
    """
    return load_hub(EventClassifier, model_source(name), REMEDY)


def preprocessing_of(name: str, padding: Padding) -> tuple[Statistics, Padding]:
    """Statistics of fbanks, and padding, that weights were trained with.

    Published weights say neither: they have the statistics of AudioSet.

    Args:
        name: of the weights: a folder, or a name on the hub.
        padding: where the weights say none.

    Raises:
        CavmaeError: the file beside the weights is damaged.
    """
    record = read_preprocessing(name)
    if record is None:
        return Statistics(), padding
    own = record.get("padding", padding)
    if own not in ("zero", "silence"):
        raise CavmaeError(f"The preprocessing of {name} has padding {own!r}: copy it again.")
    return Statistics(record["fbank_mean"], record["fbank_std"]), own


def build_events(
    settings: EventModelSettings, classes: ClassList, initial: EventClassifier | None, seed: int
) -> EventClassifier:
    """Classifier with its initial weights, which a seed makes equal in every process.

    Args:
        settings: of the model.
        classes: of the data.
        initial: classifier of ``init_from``; None: the head is new.
        seed: of the random initialisation.

    Raises:
        UsageError: settings that make no model, or not that of the weights.
        CavmaeError: weights are missing, damaged, or not of a CAV-MAE.
    """
    torch.manual_seed(seed)
    source: EncoderConfig | None = None
    weights: dict[str, Tensor] = {}
    if initial is not None:
        source, weights = initial.config.encoder, dict(initial.state_dict())
    elif settings.encoder_from is not None:
        source, weights = encoder_weights(settings.encoder_from)
    try:
        encoder = encoder_config(settings.encoder, source)
        if initial is None:
            config = EventConfig(
                encoder, classes.names,
                **{name: getattr(settings, name) for name in CLASSIFIER_FIELDS},
            )  # fmt: skip
        else:
            _check_unchanged(settings, initial.config)
            config = dataclasses.replace(initial.config, encoder=encoder, classes=classes.names)
        model = EventClassifier(config)
    except ValueError as error:
        raise UsageError(f"model: {error}") from error
    if settings.motion_from is not None:
        _load_motion(model, settings.motion_from)
    if source is not None:
        if settings.train_encoder == "frozen" and source.temporal.name != encoder.temporal.name:
            raise UsageError(
                f"model.train_encoder frozen: attention {encoder.temporal.name} is new to these "
                "weights and has to learn: set model.train_encoder to all, or "
                f"model.encoder.temporal to {source.temporal.name}."
            )
        origin = settings.init_from or settings.encoder_from or ""
        check_temporal(origin, source, encoder, "model.encoder.temporal")
        _load(model, move_positions(weights, source, encoder), origin, whole=initial is not None)
    return model


def _check_unchanged(settings: EventModelSettings, config: EventConfig) -> None:
    """Checks that settings do not ask for another classifier than that of ``init_from``.

    Raises:
        UsageError: they do.
    """
    default = EventModelSettings()
    for name in CLASSIFIER_FIELDS:
        wanted, own = getattr(settings, name), getattr(config, name)
        if wanted not in (getattr(default, name), own):
            raise UsageError(
                f"model.{name} {to_json_value(wanted)}: the classifier of model.init_from has "
                f"{to_json_value(own)}; leave it out, or start from its encoder with "
                "model.encoder_from."
            )


def _load_motion(model: EventClassifier, name: str) -> None:
    """Loads the weights of a motion pathway of another model, and of where it looks.

    Raises:
        UsageError: the model has no such pathway.
        CavmaeError: it is missing or damaged.
    """
    # They take a second, and few runs need them.
    from cavmae.finetune.speaker.head_reader import HeadReader
    from cavmae.finetune.speaker.model import SpeakerModel
    from cavmae.finetune.speaker.motion_reader import MotionReader

    pathway: MotionPathway | None
    reader: MotionReader | None
    source = model_source(name)
    if type_of_model(source) == EventClassifier.model_type:
        events = load_events(name)
        options, branch = events.config.motion, events.motion_branch
        pathway = None if branch is None else branch.pathway
        reader = None if branch is None else branch.tokens.reader
    else:
        speaker = load_hub(SpeakerModel, source, "make one with `cavmae finetune speakers`")
        options, pathway = speaker.config.motion, speaker.motion
        if isinstance(speaker.motion_reader, HeadReader):  # which has learned to read lips
            options, pathway = speaker.config.head_motion, speaker.motion_reader.pathway
            reader = speaker.motion_reader.reader
        else:
            reader = speaker.motion_reader
    assert model.motion_branch is not None
    if pathway is None:
        raise UsageError(f"model.motion_from {name} has no motion pathway: name another model.")
    if options != model.config.motion:
        raise UsageError(
            f"model.motion_from {name} has the pathway {to_json_value(options)}: set model.motion "
            "to it."
        )
    model.motion_branch.pathway.load_state_dict(pathway.state_dict())
    assert reader is not None
    # Where to look, by what moves there: at lips.
    model.motion_branch.tokens.reader.score.load_state_dict(reader.score.state_dict())


def encoder_config(settings: EventEncoderSettings, source: EncoderConfig | None) -> EncoderConfig:
    """Configuration of an encoder.

    Args:
        settings: of the run.
        source: configuration of the weights; None: from scratch.

    Raises:
        UsageError: the settings contradict the weights.
        ValueError: the settings make no encoder.
    """
    own = settings.completed()
    if source is None:
        return own
    default = EventEncoderSettings()
    for field in dataclasses.fields(EncoderConfig):
        name = field.name
        if name in ADJUSTABLE or getattr(settings, name) == getattr(default, name):
            continue
        if getattr(own, name) != getattr(source, name):
            raise UsageError(
                f"model.encoder.{name} {getattr(own, name)}: the weights have "
                f"{getattr(source, name)}; leave it out, or set it to {getattr(default, name)}."
            )
    adjusted: dict[str, Any] = {
        name: getattr(settings, name) or getattr(source, name) for name in ADJUSTABLE
    }
    return dataclasses.replace(as_base_config(source, EncoderConfig), **adjusted)


def _load(model: EventClassifier, weights: dict[str, Tensor], name: str, whole: bool) -> None:
    """Loads weights into a classifier, or, unless ``whole``, into its encoder."""
    heads = {id(parameter) for parameter in model.head_parameters()}
    own = {key for key, value in model.named_parameters() if whole or id(value) not in heads}
    fresh = {key: value for key, value in model.state_dict().items() if key not in own}
    try:
        load_weights(model, {k: v for k, v in weights.items() if k in own} | fresh)
    except CavmaeError as error:
        raise CavmaeError(f"{name}: {error}") from error
