"""Registry of temporal attentions, and the options of each. Imports no PyTorch.

An entry is a class derived from :class:`cavmae.pretrain.temporal.base.TemporalAttention`, which is
built from its options, the width of a token and the number of heads.
"""

import dataclasses

from cavmae.common.registry import Options, Registry


@dataclasses.dataclass(frozen=True)
class TemporalOptions(Options):
    """Options of a temporal attention."""


TEMPORAL = Registry("temporal attention", TemporalOptions)


@TEMPORAL.register("per-frame", "cavmae.pretrain.temporal.per_frame:PerFrameAttention")
@dataclasses.dataclass(frozen=True)
class PerFrameOptions(TemporalOptions):
    """Options of attention within each frame: none."""


PER_FRAME = PerFrameOptions()
