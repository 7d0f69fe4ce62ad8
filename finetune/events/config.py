"""Configuration of the event classifier. Imports no PyTorch."""

import dataclasses

from cavmae.pretrain.config import EncoderConfig, check_bounds


@dataclasses.dataclass(frozen=True)
class EventConfig:
    """Configuration of an event classifier.

    Args:
        encoder: configuration of the encoder.
        classes: number of classes.

    Raises:
        ValueError: a number of classes that makes no model.
    """

    encoder: EncoderConfig
    classes: int

    def __post_init__(self) -> None:
        check_bounds(self, {"classes": (1, 65536)})
