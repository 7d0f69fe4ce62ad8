"""Registry of separators, which estimate masks from a mixture and an embedding of each voice.

With an entry in SEPARATORS, `cavmae finetune speakers --model.separator NAME` trains it.
"""

from collections.abc import Callable

from cavmae.common.errors import UsageError
from cavmae.finetune.separators.base import MaskEstimator, MixtureFeatures
from cavmae.finetune.separators.looking_to_listen import LookingToListen
from cavmae.finetune.separators.unet import ComplexUNet

# Arguments are the width of a voice's embedding and the channels of the separator.
SEPARATORS: dict[str, Callable[[int, int], MaskEstimator]] = {
    "unet": ComplexUNet,
    "looking-to-listen": LookingToListen,
}

__all__ = ["SEPARATORS", "MaskEstimator", "MixtureFeatures", "build_separator"]


def build_separator(name: str, width: int, channels: int) -> MaskEstimator:
    """Build a separator of the registry.

    Args:
        name: key of :data:`SEPARATORS`.
        width: of a voice's embedding.
        channels: of the separator.

    Raises:
        UsageError: there is no such separator.
    """
    if name not in SEPARATORS:
        raise UsageError(f"model.separator {name}: there are {', '.join(SEPARATORS)}.")
    return SEPARATORS[name](width, channels)
