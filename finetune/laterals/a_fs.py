"""Audio joins the concatenation of Fast and Slow (A->FS of arXiv 2001.08740).

Pixel decoders concatenate Slow (tokens of key frames) and Fast (key motion). Adding to the
concatenation is adding to both parts before it: the lateral has the channels of both and is split.
Differences: the paper joins after two stages of the network; here it joins once, before the pixel
decoder. Audio comes at 25 steps a second and is averaged over each key frame's time, as a stride of
64 steps with a kernel of 5 would pass most of it over.
"""

from torch import Tensor

from cavmae.finetune.laterals.audio_pathway import AudioLateral
from cavmae.finetune.laterals.base import (
    AUDIO_STEPS,
    AudioVisualLateral,
    FusedPathways,
    PathwayShape,
)
from cavmae.finetune.laterals.settings import AudioLateralOptions


class AudioToFastSlow(AudioVisualLateral):
    """A->FS; see :class:`Lateral` for the arguments. Articulation cues get motion without audio."""

    def __init__(self, options: AudioLateralOptions, shape: PathwayShape):
        super().__init__(options, shape)
        self.key_frames = shape.key_frames
        self.sizes = shape.token, self.key_channels
        self.audio_lateral = AudioLateral(self.audio.channels, sum(self.sizes), AUDIO_STEPS)

    def forward(
        self, motion: Tensor, tokens: Tensor, fbank: Tensor, gate: Tensor | None = None
    ) -> FusedPathways:
        """See :meth:`Lateral.forward`."""
        return self.join(motion, tokens, self.audio(fbank), gate)

    def join(
        self, motion: Tensor, tokens: Tensor, audio: Tensor, gate: Tensor | None
    ) -> FusedPathways:
        """Adds audio [N, C, 4 T] to the parts of the concatenation."""
        lateral = self.audio_lateral(audio, gate).unflatten(1, (self.key_frames, -1)).mean(2)
        slow, fast = lateral.split(self.sizes, dim=2)  # [N, F, E], [N, F, C']
        key_motion = self.fast_to_slow(motion) + fast[..., None, None]
        return FusedPathways(tokens + slow[:, :, None], key_motion, motion)
