"""Weights of an encoder that fine-tuning starts from (``model.encoder_from``)."""

from pathlib import Path

from torch import Tensor

from cavmae.finetune.models.box import model_source
from cavmae.pretrain.config import EncoderConfig
from cavmae.pretrain.factory import load_hub, load_named_weights, type_of_model

REMEDY = "name a model of `cavmae pretrain`, `cavmae finetune` or `cavmae convert`"


def encoder_weights(name: str) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """Configuration and weights of the encoder that a model has.

    Args:
        name: of a CAV-MAE, an event classifier or a speaker model: a folder, or a name in the box
            or on the hub; or a published file.

    Returns:
        the configuration, and weights by the names of a CAV-MAE, others beside those of the
        encoder.

    Raises:
        UsageError: the name is ambiguous, or near one in the box.
        CavmaeError: there is no such model, or it is damaged or of another kind.
    """
    # Their imports take a second, which a command that only needs settings would pay, too.
    from cavmae.finetune.events.model import EventClassifier
    from cavmae.finetune.speaker.model import SpeakerModel

    source = model_source(name)
    kind = None if Path(source).is_file() else type_of_model(source)
    if kind == SpeakerModel.model_type:
        speaker = load_hub(SpeakerModel, source, REMEDY)
        return speaker.config.encoder, dict(speaker.encoder.state_dict())
    if kind == EventClassifier.model_type:
        classifier = load_hub(EventClassifier, source, REMEDY)
        return classifier.config.encoder, dict(classifier.state_dict())
    return load_named_weights(source)
