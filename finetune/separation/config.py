"""Configuration of the sound separator; imports no PyTorch."""

import dataclasses

from cavmae.finetune.separators.settings import BandSplitOptions, SeparatorOptions
from cavmae.pretrain.config import check_bounds

BOUNDS: dict[str, tuple[int, int]] = {
    "cue_channels": (1, 4096), "width": (4, 4096), "cue_layers": (0, 64),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SoundSeparatorConfig:
    """Configuration of a separator told by articulation cues.

    Args:
        separator: network that separates the voices.
        width: of the embedding of a voice, 25 times a second.
        cue_layers: dilated convolutions over a cue.
        cue_channels: of a cue: opening, spread, teeth and tongue.

    Raises:
        ValueError: numbers that make no model; the message names the field.
    """

    separator: SeparatorOptions = BandSplitOptions()
    width: int = 128
    cue_layers: int = 5
    cue_channels: int = 4

    def __post_init__(self) -> None:
        check_bounds(self, BOUNDS)
