"""Registry of pixel decoders, and the options of each. Imports no PyTorch.

An entry is a class derived from :class:`cavmae.finetune.speaker.pixel_decoders.base.PixelDecoder`,
which is built from its options, the width of a token, the channels of the motion map and of the
output, and the grid of tokens.
"""

import dataclasses

from cavmae.common.registry import Options, Registry
from cavmae.pretrain.config import check_bounds


@dataclasses.dataclass(frozen=True)
class PixelDecoderOptions(Options):
    """Options of a pixel decoder."""


PIXEL_DECODERS = Registry("pixel decoder", PixelDecoderOptions)


@PIXEL_DECODERS.register("pyramid", "cavmae.finetune.speaker.pixel_decoders.pyramid:PyramidDecoder")
@dataclasses.dataclass(frozen=True)
class PyramidOptions(PixelDecoderOptions):
    """Options of the pyramid of convolutions: none."""


@PIXEL_DECODERS.register("pooling", "cavmae.finetune.speaker.pixel_decoders.pooling:PoolingDecoder")
@dataclasses.dataclass(frozen=True)
class PoolingOptions(PixelDecoderOptions):
    """Pyramid of pooling attention (MViT: Fan et al., ICCV 2021; v2: Li et al., CVPR 2022).

    Args:
        depth: blocks at the coarsest level.
        residual_query: whether the pooled query is added to the output of an attention (v2).
    """

    depth: int = 2
    residual_query: bool = True

    def __post_init__(self) -> None:
        check_bounds(self, {"depth": (0, 256)})
