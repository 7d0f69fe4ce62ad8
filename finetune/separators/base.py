"""Interface of separators.

An entry of the registry says what it takes of a mixture (a spectrum of its own resolution, or the
waveform) and what it gives for each voice (complex masks, spectra or waveforms). The speaker model
and its losses see voices in the standard STFT only: what the entry gives is brought there here.

Shapes: N mixtures, K voices, S samples, B bins and T' frames of the separator's STFT, T = S / 640
frames of 40 ms, D width of a voice's embedding.
"""

import abc
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cavmae.finetune.separators.layers import at_frame_rate
from cavmae.finetune.separators.stft import (
    STANDARD,
    STFT,
    bounded,
    compressed,
    masked_voices,
    spectrum,
    wave,
    with_last,
)


class MixtureFeatures(NamedTuple):
    """Speaker-independent features of a mixture.

    Attributes:
        latent: [N, T, latent_width], input of the voice decoder.
        map: input of the separator's own estimation, a tensor [N, ...] or several.
    """

    latent: Tensor
    map: Any


class VoiceSeparator(nn.Module, abc.ABC):
    """Separation network: features of the mixture, and an estimate for the embedding of each voice.

    The constructor takes the options of the entry, and D.

    Attributes:
        stft: resolution of the spectra that it takes or gives.
        takes: ``spectrum``: compressed real and imaginary parts [N, 2, B, T'] of mixtures;
            ``waveform``: [N, S]. Mixtures have an RMS of 1.
        gives: for each voice ``masks``: unbounded complex masks [N, K, 2, B, T']; ``spectra``: real
            and imaginary parts [N, K, 2, B, T'], not compressed; ``waveforms``: [N, K, S].
        latent_width: channels of :attr:`MixtureFeatures.latent`.
        least_samples: smallest S.
    """

    stft: ClassVar[STFT] = STANDARD
    takes: ClassVar[Literal["spectrum", "waveform"]] = "spectrum"
    gives: ClassVar[Literal["masks", "spectra", "waveforms"]] = "masks"
    least_samples: ClassVar[int] = 640
    latent_width: int

    @abc.abstractmethod
    def encode_mixture(self, mixture: Tensor) -> MixtureFeatures:
        """Speaker-independent features of mixtures, in the form that the separator ``takes``."""

    @abc.abstractmethod
    def estimate(
        self, features: MixtureFeatures, voices: Tensor, visible: Tensor | None = None
    ) -> Tensor:
        """Estimate of each voice, in the form that the separator ``gives``.

        Args:
            features: of :meth:`encode_mixture`.
            voices: [N, K, T, D], embedding of each voice, 25 times a second. The estimate of a
                voice does not depend on the other voices.
            visible: bool [N, K, T], frames of the embedding that may be attended to; None: all.
                Separators and fusions without attention take the embedding as it is.
        """

    def features(self, mixture: Tensor) -> MixtureFeatures:
        """Features of mixtures [N, S] with an RMS of 1."""
        if self.takes == "waveform":
            return self.encode_mixture(mixture)
        return self.encode_mixture(compressed(spectrum(mixture, self.stft)[:, :-1, :-1]))

    def separate(
        self,
        mixture: Tensor,
        features: MixtureFeatures,
        voices: Tensor,
        activity: Tensor,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Spectra of voices and of the residual in the standard STFT; their sum is the mixture's.

        Args:
            mixture: [N, S] with an RMS of 1.
            features: of :meth:`features`.
            voices: see :meth:`estimate`.
            activity: [N, K + 1, T], at least 0, the residual last. It gates the voices, and shares
                out what they leave of the mixture: see :func:`masked_voices`.
            visible: see :meth:`estimate`.

        Returns:
            complex64 [N, K + 1, 257, S / 160 + 1], the residual last.
        """
        estimate = self.estimate(features, voices, visible)
        with torch.autocast(estimate.device.type, enabled=False):
            mixture, estimate = mixture.float(), estimate.float()
            if self.gives == "masks":
                gates = _at_rate(activity, estimate.shape[-1])
                masks = bounded(estimate) * gates[:, :-1, None, None]
                spectra = masked_voices(spectrum(mixture, self.stft), masks, gates)
                if self.stft == STANDARD:
                    return spectra
                return spectrum(wave(spectra, mixture.shape[-1], self.stft))
            if self.gives == "spectra":
                parts = with_last(estimate)
                complex_spectra = torch.complex(parts[:, :, 0], parts[:, :, 1])
                estimate = wave(complex_spectra, mixture.shape[-1], self.stft)
            gates = _at_rate(activity, mixture.shape[-1])
            estimate = estimate * gates[:, :-1]
            left = mixture[:, None] - estimate.sum(1, keepdim=True)
            estimate = estimate + gates[:, :-1] / gates.sum(1, keepdim=True) * left
            residual = mixture[:, None] - estimate.sum(1, keepdim=True)
            return spectrum(torch.cat([estimate, residual], dim=1))


def _at_rate(activity: Tensor, frames: int) -> Tensor:
    """Activity at another frame rate: [N, Q, T] -> [N, Q, frames]."""
    return at_frame_rate(activity[..., None], frames)[:, :, 0]
