"""Audio joins Fast, then Fast joins Slow (A->F->S of arXiv 2001.08740).

Differences: the paper joins within the network, after its third and fourth stage; here audio joins
the last map of the motion pathway, and the convolution from Fast to Slow follows, whose ReLU lets
motion and audio of the same frame interact before the mean over a key frame's time.
"""

from torch import Tensor

from cavmae.finetune.laterals.audio_pathway import AudioLateral
from cavmae.finetune.laterals.base import (
    AUDIO_STEPS,
    AudioVisualLateral,
    FusedPathways,
    PathwayShape,
)
from cavmae.finetune.laterals.settings import AudioFastSlowOptions


class AudioFastSlow(AudioVisualLateral):
    """A->F->S; see :class:`Lateral` for the arguments.

    Masks get motion with audio. Articulation cues get motion alone unless ``audio_in_cue`` is set:
    what audio adds is the same in every pixel, so that with it the cue of each slot could be read
    off the mixture, whoever speaks, and would no longer bind a voice to pixels.
    """

    def __init__(self, options: AudioFastSlowOptions, shape: PathwayShape):
        super().__init__(options, shape)
        self.audio_in_cue = options.audio_in_cue
        self.audio_lateral = AudioLateral(self.audio.channels, shape.motion, AUDIO_STEPS)

    def forward(
        self, motion: Tensor, tokens: Tensor, fbank: Tensor, gate: Tensor | None = None
    ) -> FusedPathways:
        """See :meth:`Lateral.forward`."""
        lateral = self.audio_lateral(self.audio(fbank), gate)  # [N, T, C]
        fast = motion + lateral[..., None, None]
        cue_motion = fast if self.audio_in_cue else motion
        return FusedPathways(tokens, self.fast_to_slow(fast), cue_motion)
