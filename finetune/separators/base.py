"""Interface of separators.

Shapes: N mixtures, K voices, B = 256 bins, T frames of 10 ms, T' = T / 4 frames of 40 ms, D width
of a voice's embedding.
"""

import abc
from typing import NamedTuple

from torch import Tensor, nn

STEP = 4  # STFT frames in a video frame of 40 ms


class MixtureFeatures(NamedTuple):
    """Speaker-independent features of a mixture.

    Attributes:
        latent: [N, T', latent_width], input of the voice decoder.
        features: [N, ...], input of the separator's own mask estimation.
    """

    latent: Tensor
    features: Tensor


class MaskEstimator(nn.Module, abc.ABC):
    """Separation network: a trunk on the mixture, and the fusion of its features with a voice.

    With ``query`` fusion a voice's embedding is multiplied with a speaker-independent feature map.
    With ``concat`` fusion the embedding is an input of the trunk, beside its features.

    Attributes:
        latent_width: channels of :attr:`MixtureFeatures.latent`.
        fusion: how the voice's embedding enters: ``query`` or ``concat``.
        least_frames: smallest T.
    """

    latent_width: int
    fusion: str
    least_frames: int = STEP

    @abc.abstractmethod
    def encode_mixture(self, spectrum: Tensor) -> MixtureFeatures:
        """Speaker-independent features of mixtures.

        Args:
            spectrum: float [N, 2, B, T], real and imaginary parts, compressed
                (:func:`cavmae.finetune.speaker.stft.compressed`); T a multiple of 4.
        """

    @abc.abstractmethod
    def estimate_masks(self, features: MixtureFeatures, voices: Tensor) -> Tensor:
        """Complex masks, unbounded: [N, K, 2, B, T].

        Args:
            features: of :meth:`encode_mixture`.
            voices: [N, K, T', D], embedding of each voice, 25 times a second. The mask of a voice
                does not depend on the other voices.
        """

    def forward(self, spectrum: Tensor, voices: Tensor) -> Tensor:
        """Masks [N, K, 2, B, T] of :meth:`estimate_masks` from a spectrum [N, 2, B, T]."""
        return self.estimate_masks(self.encode_mixture(spectrum), voices)


def at_spectrum_rate(voices: Tensor, frames: int) -> Tensor:
    """Embeddings interpolated to the STFT's frame rate: [N, K, T', D] -> [N, K, D, T]."""
    flat = voices.flatten(0, 1).transpose(1, 2)
    resampled = nn.functional.interpolate(flat, frames, mode="linear", align_corners=False)
    return resampled.unflatten(0, voices.shape[:2])
