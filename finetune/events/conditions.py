"""Conditions of figures of an event classifier, without which they cannot be reproduced."""

from typing import NamedTuple

from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.finetune.events.config import EventConfig, Mode
from cavmae.finetune.events.model import uses_video

NOT_AVERAGED = "not averaged"  # of weights


class Conditions(NamedTuple):
    """Conditions of a figure.

    Attributes:
        mode: modalities that were used.
        frames: of a clip, and their averaging.
        weights: and their averaging window.
    """

    mode: Mode
    frames: str
    weights: str


def frames_text(mode: Mode, frames: int, config: EventConfig) -> str:
    """Frames of a clip, and how a model uses them."""
    if not uses_video(mode):
        return "none"
    motion = "" if config.motion_size is None else f"; {VIDEO_RATE} grey ones a second"
    if config.encoder.frames > 1:
        return f"{frames} in one pass, {config.encoder.temporal.name}{motion}"
    return f"1, the middle{motion}" if frames == 1 else f"{frames}, averaged{motion}"
