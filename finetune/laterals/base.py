"""Interface of lateral connections, and the entry without an audio pathway.

Key frames are the Slow pathway, with a feature vector for each patch; the motion pathway at 25
frames a second is Fast; fbanks at 100 steps a second are Audio. Pixel decoders concatenate Slow and
Fast: they take tokens and, as key motion, what Fast has around each key frame.

Shapes: N clips, T grey frames, C channels of motion, F key frames, L tokens of a key frame, E width
of a token, C' channels of key motion, h x w pixels of motion, B mel bins.
"""

import abc
import dataclasses
from typing import NamedTuple

from torch import Tensor, nn

from cavmae.finetune.laterals.audio_pathway import AudioPathway
from cavmae.finetune.laterals.fast_to_slow import FastToSlow
from cavmae.finetune.laterals.settings import AudioLateralOptions, NoLateralOptions

AUDIO_STEPS = 4  # of 10 ms, in a frame of 40 ms


@dataclasses.dataclass(frozen=True)
class PathwayShape:
    """Sizes of the pathways that a lateral connects.

    Args:
        motion: C.
        token: E.
        frames: T.
        key_frames: F, a divisor of T.
        audio: default channels of the audio pathway's first layer.
    """

    motion: int
    token: int
    frames: int
    key_frames: int
    audio: int


class FusedPathways(NamedTuple):
    """Pathways after their lateral connections.

    Attributes:
        tokens: [N, F, L, E], for the pixel decoder.
        key_motion: [N, F, C', h, w], for the pixel decoder.
        cue_motion: [N, T, C, h, w], for articulation cues.
    """

    tokens: Tensor
    key_motion: Tensor
    cue_motion: Tensor


class Lateral(nn.Module, abc.ABC):
    """Lateral connections between the Slow, Fast and Audio pathways.

    The constructor takes the options of the entry and a :class:`PathwayShape`.

    Attributes:
        key_channels: C'.
        audio: pathway whose features join; None: there is none.
        drop_prob: probability of DropPathway in a training step.
    """

    key_channels: int
    audio: AudioPathway | None
    drop_prob: float

    @abc.abstractmethod
    def forward(
        self, motion: Tensor, tokens: Tensor, fbank: Tensor, gate: Tensor | None = None
    ) -> FusedPathways:
        """Connects the pathways.

        Args:
            motion: [N, T, C, h, w].
            tokens: [N, F, L, E].
            fbank: [N, 4 T, B], normalised.
            gate: float [N], factors of what comes from audio; None: 1. See
                :func:`cavmae.finetune.laterals.audio_pathway.drop_pathway`.
        """


class NoLateral(Lateral):
    """No audio pathway: key motion is the mean of the frames that belong to a key frame."""

    def __init__(self, options: NoLateralOptions, shape: PathwayShape):
        super().__init__()
        self.audio, self.drop_prob = None, 0.0
        self.key_channels = shape.motion
        self.key_frames = shape.key_frames

    def forward(
        self, motion: Tensor, tokens: Tensor, fbank: Tensor, gate: Tensor | None = None
    ) -> FusedPathways:
        """See :meth:`Lateral.forward`."""
        # T / F grey frames belong to each key frame, as many before it as after.
        key_motion = motion.unflatten(1, (self.key_frames, -1)).mean(2)  # [N, F, C, h, w]
        return FusedPathways(tokens, key_motion, motion)


class AudioVisualLateral(Lateral):
    """Base of laterals with an audio pathway and a convolution from Fast to Slow.

    Args:
        options: of the entry.
        shape: of the pathways.
    """

    audio: AudioPathway

    def __init__(self, options: AudioLateralOptions, shape: PathwayShape):
        super().__init__()
        self.drop_prob = options.drop_prob
        self.audio = AudioPathway(options.audio_width or shape.audio)
        self.fast_to_slow = FastToSlow(
            shape.motion, options.kernel, shape.frames // shape.key_frames
        )
        self.key_channels = self.fast_to_slow.channels
