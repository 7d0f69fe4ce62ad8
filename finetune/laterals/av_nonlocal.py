"""Audio-visual non-local connection (AV non-local of arXiv 2001.08740): A->FS with attention.

Locations of key motion are the queries, audio steps of 40 ms the keys and values. Differences: the
attention reaches all locations but only the time of its own key frame, so that audio of another
time cannot move a mask; a location selects audio instead of audio selecting locations, as a mask
needs a result for each location.

Shapes: see :mod:`cavmae.finetune.laterals.base`; R = T / F frames of a key frame.
"""

from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.laterals.a_fs import AudioToFastSlow
from cavmae.finetune.laterals.audio_pathway import gated
from cavmae.finetune.laterals.base import AUDIO_STEPS, FusedPathways, PathwayShape
from cavmae.finetune.laterals.settings import AudioVisualNonLocalOptions


class AudioVisualNonLocal(AudioToFastSlow):
    """A->FS, then attention of locations to audio; see :class:`Lateral` for the arguments."""

    def __init__(self, options: AudioVisualNonLocalOptions, shape: PathwayShape):
        super().__init__(options, shape)
        # Half of the channels in between, as in non-local networks (Wang et al., CVPR 2018).
        width = self.key_channels // 2
        self.q = nn.Linear(self.key_channels, width)
        self.k = nn.Linear(self.audio.channels, width)
        self.v = nn.Linear(self.audio.channels, width)
        self.proj = nn.Linear(width, self.key_channels)

    def forward(
        self, motion: Tensor, tokens: Tensor, fbank: Tensor, gate: Tensor | None = None
    ) -> FusedPathways:
        """See :meth:`Lateral.forward`."""
        audio = self.audio(fbank)  # [N, C, 4 T]
        fused = self.join(motion, tokens, audio, gate)
        steps = functional.avg_pool1d(audio, AUDIO_STEPS).transpose(1, 2)  # [N, T, C]
        steps = steps.unflatten(1, (self.key_frames, -1))  # [N, F, R, C]
        locations = fused.key_motion.flatten(3).mT  # [N, F, h w, C']
        attended = functional.scaled_dot_product_attention(
            self.q(locations), self.k(steps), self.v(steps)
        )
        update = gated(self.proj(attended), gate).mT.unflatten(3, motion.shape[-2:])
        return fused._replace(key_motion=fused.key_motion + update)
