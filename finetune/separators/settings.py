"""Registries of separators and fusions, with the options of each entry; imports no PyTorch.

`cavmae finetune separator --model.separator NAME --model.separator.OPTION VALUE` trains an entry.
"""

import dataclasses

from cavmae.common.registry import Options, Registry


def _check(options: Options, **least: int) -> None:
    """Raises ValueError for a number below its least value, or above what fits in memory."""
    for name, smallest in least.items():
        value = getattr(options, name)
        if not smallest <= value <= 4096:
            raise ValueError(f"{options.name}: {name} {value} is not from {smallest} to 4096.")


def _check_head_width(options: Options, width: int) -> None:
    """Raises ValueError for a width of a head that does not hold whole rotary positions."""
    if width % 4:
        raise ValueError(f"{options.name}: head_width {width} is not a multiple of 4.")


@dataclasses.dataclass(frozen=True)
class FusionOptions(Options):
    """Options of a fusion: how the embedding of a voice enters a separator."""


FUSIONS = Registry("fusion", FusionOptions)


@FUSIONS.register("query", "cavmae.finetune.separators.fusions.query:QueryFusion")
@dataclasses.dataclass(frozen=True)
class QueryOptions(FusionOptions):
    """Product of the map with a query for each frame (IQuery), and a gain of whole bands.

    Args:
        bands: frequency bands of the additive gain; 0: none.
    """

    bands: int = 32

    def __post_init__(self) -> None:
        _check(self, bands=0)


@FUSIONS.register("concat", "cavmae.finetune.separators.fusions.concat:ConcatFusion")
@dataclasses.dataclass(frozen=True)
class ConcatOptions(FusionOptions):
    """Concatenation of the map's channels with the embedding, and two layers for each bin.

    Args:
        width: channels of the embedding and of the layer between; 0: those of the map.
    """

    width: int = 0

    def __post_init__(self) -> None:
        _check(self, width=0)


@FUSIONS.register("film", "cavmae.finetune.separators.fusions.film:FiLMFusion")
@dataclasses.dataclass(frozen=True)
class FiLMOptions(FusionOptions):
    """Scale and offset of a layer's channels for each frame (FiLM), and a second layer.

    Args:
        width: channels of the layer; 0: those of the map.
    """

    width: int = 0

    def __post_init__(self) -> None:
        _check(self, width=0)


@FUSIONS.register("f2f", "cavmae.finetune.separators.fusions.f2f:F2FFusion")
@dataclasses.dataclass(frozen=True)
class F2FOptions(FusionOptions):
    """Attention of the map's frames to those of the embedding, with values for each sub-band.

    Args:
        heads: of the attention.
        head_width: channels of a head for each sub-band; a multiple of 4.
        bands: sub-bands, at most the bins of the map; as many: a value for every bin.
    """

    heads: int = 4
    head_width: int = 16
    bands: int = 16

    def __post_init__(self) -> None:
        _check(self, heads=1, head_width=4, bands=1)
        _check_head_width(self, self.head_width)


@FUSIONS.register("f2b", "cavmae.finetune.separators.fusions.f2b:F2BFusion")
@dataclasses.dataclass(frozen=True)
class F2BOptions(FusionOptions):
    """Attention of the map's time-frequency bins to the frames of the embedding.

    Args:
        heads: of the attention.
        head_width: channels of a head; a multiple of 4.
        stride: bins, and frames, of a query; 1: every bin is a query of its own.
    """

    heads: int = 2
    head_width: int = 32
    stride: int = 4

    def __post_init__(self) -> None:
        _check(self, heads=1, head_width=4, stride=1)
        _check_head_width(self, self.head_width)


@dataclasses.dataclass(frozen=True)
class SeparatorOptions(Options):
    """Options of a separator."""


SEPARATORS = Registry("separator", SeparatorOptions)


@SEPARATORS.register("unet", "cavmae.finetune.separators.unet:ComplexUNet")
@dataclasses.dataclass(frozen=True)
class UNetOptions(SeparatorOptions):
    """Complex U-Net, after IQuery (Chen et al., CVPR 2023).

    Args:
        width: channels of the first level.
        fusion: of the last map with the embedding of a voice.
    """

    width: int = 32
    fusion: FusionOptions = QueryOptions()

    def __post_init__(self) -> None:
        _check(self, width=1)


@SEPARATORS.register("film-unet", "cavmae.finetune.separators.film_unet:FiLMUNet")
@dataclasses.dataclass(frozen=True)
class FiLMUNetOptions(SeparatorOptions):
    """Complex U-Net with a decoder that is modulated by the embedding of each voice.

    Args:
        width: channels of the first level.
    """

    width: int = 24

    def __post_init__(self) -> None:
        _check(self, width=1)


@SEPARATORS.register(
    "looking-to-listen", "cavmae.finetune.separators.looking_to_listen:LookingToListen"
)
@dataclasses.dataclass(frozen=True)
class LookingToListenOptions(SeparatorOptions):
    """Looking to Listen (Ephrat et al., SIGGRAPH 2018), which concatenates before its LSTM.

    Args:
        width: channels of a convolution on the spectrum (paper: 96); the other widths scale with
            it (paper: 256 of the visual convolutions, 400 of the LSTM, 600 of the last layers).
    """

    width: int = 32

    def __post_init__(self) -> None:
        _check(self, width=1)


@SEPARATORS.register("band-split", "cavmae.finetune.separators.band_split:BandSplitSeparator")
@dataclasses.dataclass(frozen=True)
class BandSplitOptions(SeparatorOptions):
    """Band-split dual-path network of attention and gated convolutions (BS-RoFormer family).

    Args:
        width: channels of a band.
        heads: of each attention; a divisor of ``width``.
        shared_blocks: blocks that see the mixture only, computed once for all voices.
        blocks: blocks that are modulated by the embedding of a voice.
    """

    width: int = 64
    heads: int = 4
    shared_blocks: int = 2
    blocks: int = 4

    def __post_init__(self) -> None:
        _check(self, width=1, heads=1, shared_blocks=0, blocks=1)
        if self.width % self.heads:
            raise ValueError(
                f"band-split: width {self.width} is no multiple of {self.heads} heads."
            )


@SEPARATORS.register("tcn", "cavmae.finetune.separators.tcn:TCNSeparator")
@dataclasses.dataclass(frozen=True)
class TCNOptions(SeparatorOptions):
    """Dilated temporal convolution network on the spectrum (Conv-TasNet family).

    Args:
        width: channels of a frame.
        hidden: channels of a block's convolution.
        shared_blocks: blocks that see the mixture only, computed once for all voices.
        blocks: blocks that are modulated by the embedding of a voice.
        dilations: number of dilations 1, 2, 4, ... frames of 16 ms, which blocks have in turns.
    """

    width: int = 256
    hidden: int = 256
    shared_blocks: int = 8
    blocks: int = 16
    dilations: int = 8

    def __post_init__(self) -> None:
        _check(self, width=1, hidden=1, shared_blocks=0, blocks=1, dilations=1)
        if self.dilations > 12:
            raise ValueError(f"tcn: dilations {self.dilations} is above 12, a reach of a minute.")


@SEPARATORS.register("conv-tasnet", "cavmae.finetune.separators.conv_tasnet:ConvTasNet")
@dataclasses.dataclass(frozen=True)
class ConvTasNetOptions(SeparatorOptions):
    """Conv-TasNet (Luo and Mesgarani, TASLP 2019), on the waveform; the defaults are a quarter.

    Args:
        filters: of the learned filter bank (paper: 512).
        width: channels of residual and skip connections (paper: 128).
        hidden: channels of a block's convolution (paper: 512).
        dilations: blocks of a repeat, with dilations of 1, 2, 4, ... ms (paper: 8).
        repeats: of the blocks (paper: 3); the first sees the mixture only.
    """

    filters: int = 256
    width: int = 64
    hidden: int = 128
    dilations: int = 8
    repeats: int = 3

    def __post_init__(self) -> None:
        _check(self, filters=1, width=1, hidden=1, dilations=1, repeats=2)
        if self.dilations > 14:
            raise ValueError(f"conv-tasnet: dilations {self.dilations} is above 14.")
