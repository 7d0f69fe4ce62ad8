"""Motion pathway of the event classifier, whose features join the tokens of frames.

Audiovisual SlowFast networks (Xiao et al., arXiv 2001.08740) with the video branch of CAV-MAE as
the Slow pathway. Difference: Fast joins Slow by a sum at the end of the branch, before the joint
blocks, instead of a concatenation after each stage, so that weights of an encoder are taken over
and give the same output at first.

Shapes: N clips, F frames, L tokens of a frame, D width of a token, T grey frames, C channels of
motion, h x w pixels of motion, B mel bins.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.datasets.stream.features import MEL_BINS
from cavmae.finetune.events.config import EventConfig
from cavmae.finetune.laterals.base import Lateral, PathwayShape
from cavmae.finetune.laterals.settings import LATERALS
from cavmae.finetune.motion.base import MotionPathway
from cavmae.finetune.motion.settings import MOTION


class MotionBranch(nn.Module):
    """Motion pathway and its lateral connections.

    Args:
        config: of a classifier with a motion pathway.
    """

    def __init__(self, config: EventConfig):
        super().__init__()
        encoder = config.encoder
        self.frames, self.grid = encoder.frames, encoder.image_grid
        self.audio_frames = encoder.audio_frames
        self.pathway: MotionPathway = MOTION.build(config.motion)
        channels = self.pathway.channels
        shape = PathwayShape(
            channels, encoder.width, config.motion_frames, encoder.frames, max(8, channels // 2)
        )
        self.lateral: Lateral = LATERALS.build(config.lateral, shape)
        self.proj = nn.Linear(self.lateral.key_channels, encoder.width)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(
        self, tokens: Tensor, motion: Tensor, fbank: Tensor | None, gate: Tensor | None = None
    ) -> Tensor:
        """Tokens of the video branch with what motion and audio add: [N, F L, D].

        Args:
            tokens: [N, F L, D], frame after frame.
            motion: [N, T, C, h, w], output of ``pathway``.
            fbank: [N, 4 T, B], normalised; None: there is no audio, whose laterals add nothing.
            gate: float [N], factors of the laterals from audio in training; None: 1.
        """
        if fbank is None:
            fbank = motion.new_zeros(len(motion), self.audio_frames, MEL_BINS)
            gate = motion.new_zeros(len(motion))
        fused = self.lateral(motion, tokens.unflatten(1, (self.frames, -1)), fbank, gate)
        pooled = functional.adaptive_avg_pool2d(fused.key_motion.flatten(0, 1), self.grid)
        update = self.proj(pooled.flatten(2).mT)  # [N F, L, D]
        return (fused.tokens + update.unflatten(0, fused.tokens.shape[:2])).flatten(1, 2)

    def sync_features(self, motion: Tensor, fbank: Tensor) -> tuple[Tensor, Tensor]:
        """Features before their fusion, [N, T, C] of motion and [N, T, C'] of audio.

        Args:
            motion: [N, T, C, h, w], output of ``pathway``.
            fbank: [N, 4 T, B], normalised.
        """
        assert self.lateral.audio is not None
        audio = functional.adaptive_avg_pool1d(self.lateral.audio(fbank), motion.shape[1])
        return torch.mean(motion, dim=(3, 4)), audio.transpose(1, 2)
