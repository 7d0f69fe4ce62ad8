"""Registry of lateral connections, and the options of each; imports no PyTorch.

`cavmae finetune speakers --model.lateral NAME --model.lateral.OPTION VALUE` trains an entry.
"""

import dataclasses

from cavmae.common.registry import Options, Registry


@dataclasses.dataclass(frozen=True)
class LateralOptions(Options):
    """Options of lateral connections between the Slow, Fast and Audio pathways."""


LATERALS = Registry("lateral", LateralOptions)


@LATERALS.register("none", "cavmae.finetune.laterals.base:NoLateral")
@dataclasses.dataclass(frozen=True)
class NoLateralOptions(LateralOptions):
    """No audio pathway; Fast joins Slow by its mean around each key frame."""


@dataclasses.dataclass(frozen=True)
class AudioLateralOptions(LateralOptions):
    """Options that all laterals with an audio pathway share.

    Args:
        audio_width: channels of the first layer of the audio pathway, which has four times as many
            in its last; 0: half of the first layer of the pixel decoder, as in the
            paper; in an event classifier, half of the motion channels.
        kernel: frames that the convolution from Fast to Slow covers: 5 or 7.
        drop_prob: probability that a training step has no lateral from audio (DropPathway).
    """

    audio_width: int = 0
    kernel: int = 5
    drop_prob: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.audio_width <= 1024:
            raise ValueError(f"{self.name}: audio_width {self.audio_width} is not from 0 to 1024.")
        if self.kernel not in (5, 7):
            raise ValueError(f"{self.name}: kernel {self.kernel} is neither 5 nor 7.")
        if not 0 <= self.drop_prob <= 1:
            raise ValueError(f"{self.name}: drop_prob {self.drop_prob} is not from 0 to 1.")


@LATERALS.register("a-f-s", "cavmae.finetune.laterals.a_f_s:AudioFastSlow")
@dataclasses.dataclass(frozen=True)
class AudioFastSlowOptions(AudioLateralOptions):
    """Audio joins Fast, then Fast joins Slow.

    Args:
        audio_in_cue: whether articulation cues are read from Fast with audio, too. The cue of a
            voice then depends on the mixture, and no longer on pixels alone.
    """

    audio_in_cue: bool = False


@LATERALS.register("a-fs", "cavmae.finetune.laterals.a_fs:AudioToFastSlow")
@dataclasses.dataclass(frozen=True)
class AudioToFastSlowOptions(AudioLateralOptions):
    """Audio joins the concatenation of Fast and Slow."""


@LATERALS.register("av-nonlocal", "cavmae.finetune.laterals.av_nonlocal:AudioVisualNonLocal")
@dataclasses.dataclass(frozen=True)
class AudioVisualNonLocalOptions(AudioLateralOptions):
    """As ``a-fs``, with cross-modal attention of locations to audio."""
