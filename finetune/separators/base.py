"""What a separator is: the seam at which one takes another's place.

Shapes: N mixtures, K voices, B = 256 bins, T frames of 10 ms, T' = T / 4 frames of 40 ms, D width
of a voice's embedding.
"""

import abc
from typing import NamedTuple

from torch import Tensor, nn

STEP = 4  # spectral frames to a frame of video, at 25 a second


class MixtureFeatures(NamedTuple):
    """What a separator makes of a mixture before it is told of any voice.

    Attributes:
        latent: [N, T', latent_width], for those who have yet to find out who is to be heard.
        features: [N, ...], its own.
    """

    latent: Tensor
    features: Tensor


class MaskEstimator(nn.Module, abc.ABC):
    """A trunk with its fusion.

    With ``query`` fusion a voice's embedding is multiplied with a map of the mixture that knows of
    no voice; a trunk that has to be told whom to extract gets the embedding beside its features
    (``concat``).

    Attributes:
        latent_width: channels of :attr:`Heard.latent`.
        fusion: how it is told of a voice.
        least_frames: T that it needs at least.
    """

    latent_width: int
    fusion: str
    least_frames: int = STEP

    @abc.abstractmethod
    def encode_mixture(self, spectrum: Tensor) -> MixtureFeatures:
        """The mixture alone.

        Args:
            spectrum: float [N, 2, B, T], real and imaginary parts, compressed
                (:func:`cavmae.finetune.speaker.stft.compressed`); T a multiple of 4.
        """

    @abc.abstractmethod
    def estimate_masks(self, heard: MixtureFeatures, voices: Tensor) -> Tensor:
        """Complex masks, not yet bounded: [N, K, 2, B, T].

        Args:
            voices: [N, K, T', D], what is known of each voice, 25 times a second. What comes out
                for one does not depend on the others.
        """

    def forward(self, spectrum: Tensor, voices: Tensor) -> Tensor:
        """Both in one."""
        return self.estimate_masks(self.encode_mixture(spectrum), voices)


def at_spectrum_rate(voices: Tensor, frames: int) -> Tensor:
    """Embeddings at the spectrum's rate: [N, K, T', D] -> [N, K, D, T], by linear interpolation."""
    flat = voices.flatten(0, 1).transpose(1, 2)
    found = nn.functional.interpolate(flat, frames, mode="linear", align_corners=False)
    return found.unflatten(0, voices.shape[:2])
