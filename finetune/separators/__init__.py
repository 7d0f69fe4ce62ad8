"""Separators by name: what turns a mixture and what is known of each voice into masks.

Add an entry, and `cavmae finetune speakers --model.separator NAME` trains it.
"""

from collections.abc import Callable

from cavmae.common.errors import UsageError
from cavmae.finetune.separators.base import MaskEstimator, MixtureFeatures
from cavmae.finetune.separators.looking_to_listen import LookingToListen
from cavmae.finetune.separators.unet import ComplexUNet

# Each is made of the width of a voice's embedding, and the width of the separator's own channels.
SEPARATORS: dict[str, Callable[[int, int], MaskEstimator]] = {
    "unet": ComplexUNet,
    "looking-to-listen": LookingToListen,
}

__all__ = ["SEPARATORS", "MaskEstimator", "MixtureFeatures", "build_separator"]


def build_separator(name: str, width: int, channels: int) -> MaskEstimator:
    """A separator of the table.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in SEPARATORS:
        raise UsageError(f"model.separator {name}: there are {', '.join(SEPARATORS)}.")
    return SEPARATORS[name](width, channels)
