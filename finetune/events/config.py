"""Configuration of the event classifier. Imports no PyTorch."""

import dataclasses
from typing import Literal

from cavmae.pretrain.config import EncoderConfig

Modalities = Literal["multimodal", "audio_only", "video_only"]
Mode = Literal["multimodal", "audio_only", "video_only", "missing_audio", "missing_video"]
MOST_CLASSES = 65536


@dataclasses.dataclass(frozen=True)
class EventConfig:
    """Configuration of an event classifier.

    Args:
        encoder: configuration of the encoder.
        classes: names of the classes, in the order of the logits. Published weights hold no names:
            `cavmae convert` numbers their classes from 0, unless it gets a file of labels.
        pooling: of the encoder's tokens: their ``mean``, or ``attention`` of a learned query.
        modalities: that the classifier was fine-tuned on.
        multi_label: whether a clip may have several classes: sigmoid instead of softmax.

    Raises:
        ValueError: classes that make no model.
    """

    encoder: EncoderConfig
    classes: tuple[str, ...]
    pooling: Literal["mean", "attention"] = "mean"
    modalities: Modalities = "multimodal"
    multi_label: bool = True

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= MOST_CLASSES:
            raise ValueError(f"classes: {len(self.classes)}, not from 1 to {MOST_CLASSES}.")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes: a name occurs twice.")


def numbered_classes(count: int) -> tuple[str, ...]:
    """Names of classes of which only the number is known."""
    return tuple(map(str, range(count)))
