"""Registry of temporal attentions, and the options of each. Imports no PyTorch.

An entry is a class derived from :class:`cavmae.pretrain.temporal.base.TemporalAttention`, which is
built from its options, the width of a token and the number of heads.
"""

import dataclasses
from typing import ClassVar

from cavmae.common.registry import Options, Registry

MOST_PROTOTYPES = 65536


@dataclasses.dataclass(frozen=True)
class TemporalOptions(Options):
    """Options of a temporal attention.

    Attributes:
        pairs_tokens: tokens of the same number in their frames are taken for the same patch, so
            that all frames of a clip need the same mask.
    """

    pairs_tokens: ClassVar[bool] = True


TEMPORAL = Registry("temporal attention", TemporalOptions)


@TEMPORAL.register("per-frame", "cavmae.pretrain.temporal.per_frame:PerFrameAttention")
@dataclasses.dataclass(frozen=True)
class PerFrameOptions(TemporalOptions):
    """Options of attention within each frame: none."""

    pairs_tokens = False


@TEMPORAL.register("joint", "cavmae.pretrain.temporal.joint:JointAttention")
@dataclasses.dataclass(frozen=True)
class JointOptions(TemporalOptions):
    """Options of attention among all tokens of all frames: none."""

    pairs_tokens = False


@TEMPORAL.register("divided", "cavmae.pretrain.temporal.divided:DividedAttention")
@dataclasses.dataclass(frozen=True)
class DividedOptions(TemporalOptions):
    """Options of attention over time, then within each frame (TimeSformer): none."""


@TEMPORAL.register("trajectory", "cavmae.pretrain.temporal.trajectory:TrajectoryAttention")
@dataclasses.dataclass(frozen=True)
class TrajectoryOptions(TemporalOptions):
    """Trajectory attention (Motionformer).

    Args:
        project_values: the values of the attention over time are projected; false, as in most
            released weights: they are the outputs of the attention to each frame.
    """

    project_values: bool = False
    pairs_tokens = False


@TEMPORAL.register("orthoformer", "cavmae.pretrain.temporal.orthoformer:OrthoformerAttention")
@dataclasses.dataclass(frozen=True)
class OrthoformerOptions(TrajectoryOptions):
    """Trajectory attention by prototypes (Orthoformer): less work and memory for many frames.

    Args:
        project_values: the values of the attention over time are projected; false, as in most
            released weights: they are the outputs of the attention to each frame.
        prototypes: number of queries that stand for all of a clip.
    """

    prototypes: int = 128

    def __post_init__(self) -> None:
        if not 1 <= self.prototypes <= MOST_PROTOTYPES:
            raise ValueError(
                f"{self.name}: prototypes {self.prototypes} is not from 1 to {MOST_PROTOTYPES}."
            )


PER_FRAME = PerFrameOptions()
