"""Registry of motion pathways, and the options of each. Imports no PyTorch.

An entry is a class derived from :class:`cavmae.finetune.motion.base.MotionPathway`, which
is built from its options.
"""

import dataclasses
from typing import ClassVar

from cavmae.common.registry import Options, Registry
from cavmae.pretrain.config import check_bounds


@dataclasses.dataclass(frozen=True)
class MotionOptions(Options):
    """Options of a motion pathway.

    Attributes:
        growing: numeric options that cost more as they rise, each an axis of `cavmae expand`.
        shrinking: likewise, those that cost more as they fall.
    """

    growing: ClassVar[tuple[str, ...]] = ()
    shrinking: ClassVar[tuple[str, ...]] = ()


MOTION = Registry("motion pathway", MotionOptions)


@MOTION.register("conv", "cavmae.finetune.motion.conv:ConvPathway")
@dataclasses.dataclass(frozen=True)
class ConvMotionOptions(MotionOptions):
    """Convolutions over time and space in turns.

    Args:
        width: channels.
        depth: residual blocks.
    """

    growing: ClassVar[tuple[str, ...]] = ("width", "depth")

    width: int = 64
    depth: int = 4

    def __post_init__(self) -> None:
        check_bounds(self, {"width": (1, 4096), "depth": (0, 256)})


@MOTION.register("x3d", "cavmae.finetune.motion.x3d:X3DPathway")
@dataclasses.dataclass(frozen=True)
class X3DOptions(MotionOptions):
    """Stem and first stage of X3D (Feichtenhofer, CVPR 2020), the axes of its expansion as options.

    The other axes are the size of the grey frames (``motion_height``, ``motion_width``) and the
    length of a clip.

    Args:
        width: channels (X3D-S and M: 24).
        bottleneck: channels within a block as a multiple of ``width``, rounded to a multiple of 8.
        depth: residual blocks (X3D-S and M: 3); the first halves the resolution.
        frame_stride: distance of the grey frames that are computed; the others repeat them.
    """

    growing: ClassVar[tuple[str, ...]] = ("width", "bottleneck", "depth")
    shrinking: ClassVar[tuple[str, ...]] = ("frame_stride",)

    width: int = 24
    bottleneck: float = 2.25
    depth: int = 3
    frame_stride: int = 1

    def __post_init__(self) -> None:
        bounds = {"width": (1, 4096), "depth": (1, 256), "frame_stride": (1, 64)}
        check_bounds(self, bounds | {"bottleneck": (1, 16)})
