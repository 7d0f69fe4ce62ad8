"""Inputs and predictions of the speaker model, and the states of its slots.

The legend of shapes is that of :mod:`cavmae.finetune.speaker.model`.
"""

from typing import NamedTuple

from torch import Tensor

from cavmae.finetune.separators.base import MixtureFeatures
from cavmae.finetune.separators.stft import wave
from cavmae.finetune.speaker.cues import Cues

STATES = ("speaking", "silent", "off-screen", "none")
SPEAKING, SILENT, OFF_SCREEN, NONE = range(4)
MASK_STRIDE = 4  # pixels of a key frame for one of the masks
QUIETEST = 1e-4  # RMS below which a mixture is not normalised to 1


class MixtureEncoding(NamedTuple):
    """Encoding of mixtures, which does not depend on the video.

    Attributes:
        tokens: [N, La, E] of audio.
        features: of the sound separator.
    """

    tokens: Tensor
    features: MixtureFeatures


class Inputs(NamedTuple):
    """Inputs of the model.

    Attributes:
        mixture: float32 [N, S].
        fbank: [N, 4 T, mel], of the mixture, normalised as in pretraining.
        frames: uint8 [N, F, H, W, 3], key frames.
        motion: uint8 [N, T, h, w], grey frames.
        cues: one cue for each clip; its kind may be ``none``.
        hint: int64 [N], class number; 0: none.
        encoding: of the mixture and its fbank, by :meth:`SpeakerModel.encode_mixture`; None: it is
            computed.
        frame_tokens: [N, F, L, E], of :meth:`SpeakerModel.encode_frames`; None: they are computed.
    """

    mixture: Tensor
    fbank: Tensor
    frames: Tensor
    motion: Tensor
    cues: Cues
    hint: Tensor
    encoding: MixtureEncoding | None = None
    frame_tokens: Tensor | None = None


class SlotPredictions(NamedTuple):
    """Masks and states of the slots, before their voices are decoded.

    Attributes:
        slots: [N, Q, D].
        voice_cue: [N, D], embedding of the reference voice of slot 0; 0 without one.
        states: list of [N, Q, 4], logits after each layer; of the residual: off-screen (noise or
            an off-screen voice is audible) or none.
        masks: list of [N, Q - 1, F, H / 4, W / 4], logits after each layer.
        votes: [N, 2, F, H / 4, W / 4], x and y of the person's center that each pixel votes for.
        mixed: [N, F, H / 4, W / 4], channel mean of the cross-modal mixer's output: mask logits of
            all audible people.
        motion: [N, T, C, h / 4, w / 4], which articulation cues are read from.
        visual_motion: the same, without audio that a lateral may have added.
    """

    slots: Tensor
    voice_cue: Tensor
    states: list[Tensor]
    masks: list[Tensor]
    votes: Tensor
    mixed: Tensor
    motion: Tensor
    visual_motion: Tensor


class VoicePredictions(NamedTuple):
    """Voices of the slots.

    Attributes:
        spectra: complex64 [N, Q, bins, frames] of the mixture at an RMS of 1; their sum is the
            mixture.
        states: [N, Q, 4], logits, refined by motion and audio.
        activity_logits: [N, Q, T], whether the slot is audible in each video frame.
        articulation: [N, Q - 1, T, 4], articulation cue read from the motion of each slot.
        scale: [N, 1, 1], factor from an RMS of 1 to the mixture's level.
    """

    spectra: Tensor
    states: Tensor
    activity_logits: Tensor
    articulation: Tensor
    scale: Tensor

    def waves(self, samples: int) -> Tensor:
        """Waveforms float32 [N, Q, samples]; their sum is the mixture."""
        return wave(self.spectra, samples) * self.scale
