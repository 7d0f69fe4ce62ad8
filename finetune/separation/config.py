"""Configuration of the sound separator; imports no PyTorch."""

import dataclasses
from typing import Literal

from cavmae.finetune.separators.settings import FiLMUNetOptions, SeparatorOptions
from cavmae.pretrain.config import check_bounds

BOUNDS: dict[str, tuple[int, int]] = {
    "cue_channels": (1, 4096), "width": (4, 4096), "cue_layers": (0, 64),
    "queries": (2, 64),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SoundSeparatorConfig:
    """Configuration of a separator whose voices belong to articulation cues.

    Args:
        separator: network that separates the voices.
        width: of the embedding of a voice, 25 times a second.
        cue_layers: dilated convolutions over a cue or a query.
        cue_channels: of a cue: opening, spread, teeth and tongue.
        conditioning: of the separator: ``cue``: each voice is extracted by its cue; ``binding``:
            learned queries give voices in any order, which are bound to cues afterwards.
        queries: voices of a mixture under ``binding``; those that no cue binds are the residual.

    Raises:
        ValueError: numbers that make no model; the message names the field.
    """

    separator: SeparatorOptions = FiLMUNetOptions()
    width: int = 128
    cue_layers: int = 5
    cue_channels: int = 4
    conditioning: Literal["cue", "binding"] = "cue"
    queries: int = 3

    def __post_init__(self) -> None:
        if self.conditioning not in ("cue", "binding"):
            raise ValueError(f"conditioning {self.conditioning!r} is neither 'cue' nor 'binding'.")
        check_bounds(self, BOUNDS)
