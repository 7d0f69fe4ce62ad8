"""Configurations of the models: set by the user, saved as ``config.json``, and built from.

Imports no PyTorch, so that the command line lists the options at once.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from cavmae.common.registry import Options
from cavmae.pretrain.temporal.settings import PER_FRAME, TemporalOptions

Size = Literal["tiny", "small", "base", "large", "custom"]
Config = TypeVar("Config")

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 192, "heads": 3, "depth": 5, "decoder_width": 128, "decoder_heads": 4,
             "decoder_depth": 2},
    "small": {"width": 384, "heads": 6, "depth": 11, "decoder_width": 256, "decoder_heads": 8,
              "decoder_depth": 4},
    "base": {"width": 768, "heads": 12, "depth": 11, "decoder_width": 512, "decoder_heads": 16,
             "decoder_depth": 8},
    "large": {"width": 1024, "heads": 16, "depth": 23, "decoder_width": 512, "decoder_heads": 16,
              "decoder_depth": 8},
}  # fmt: skip

# (least, most) of numbers of a configuration: a damaged one fills no memory.
BOUNDS: dict[str, tuple[int, int]] = {
    "patch": (1, 256), "width": (4, 8192), "heads": (1, 256), "depth": (1, 256),
    "joint_depth": (0, 256), "mlp_ratio": (0, 64), "decoder_width": (4, 8192),
    "decoder_heads": (1, 256), "decoder_depth": (1, 256), "contrast_width": (0, 8192),
    "image_height": (1, 4096), "image_width": (1, 4096), "mel_bins": (1, 65536),
    "audio_frames": (1, 65536), "frames": (1, 1024),
}  # fmt: skip
MOST_POSITIONS = 1 << 27  # values of the embeddings of positions


def check_bounds(config: Any, bounds: Mapping[str, tuple[int, int]]) -> None:
    """Checks the bounds of numbers of a configuration. Raises ValueError naming the field."""
    for name, (least, most) in bounds.items():
        value = getattr(config, name)
        if not all(least <= v <= most for v in (value if isinstance(value, tuple) else (value,))):
            entry = f"{config.name}: " if isinstance(config, Options) else ""
            raise ValueError(f"{entry}{name} {value} is not from {least} to {most}.")


def as_base_config(config: Any, kind: type[Config]) -> Config:
    """Configuration of a base class with the values of a derived one.

    Args:
        config: dataclass that has all fields of ``kind``.
        kind: dataclass, as a rule a base of that of ``config``.
    """
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: getattr(config, name) for name in names})


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Configuration of the encoder; the defaults are those of the published base model.

    A number of the size that is 0 becomes the size's. ``size`` then names the size with these
    numbers, or is ``custom``.

    Args:
        size: ``tiny``, ``small``, ``base``, ``large``: width, heads and depth of encoder and
            decoder; ``custom``: all of them are given.
        image_height: of a frame in pixels, a multiple of ``patch``.
        image_width: of a frame in pixels, a multiple of ``patch``.
        mel_bins: of an fbank, a multiple of ``patch``.
        audio_frames: fbank frames heard (10 ms each), a multiple of ``patch``.
        patch: side of a patch in pixels, mel bins and fbank frames.
        width: of a token; 0: the size's.
        heads: of the attention; 0: the size's.
        depth: blocks of each modality's own branch; 0: the size's.
        joint_depth: blocks shared by audio and frame.
        mlp_ratio: width of an MLP over that of a token.
        temporal: attention among the tokens of several frames.
        frames: of a clip that the model takes at once. With more than one, ``temporal`` attention
            other than ``per-frame`` gets learned positions of the frames, and pretraining masks and
            reconstructs all frames of a clip; they are in order of time. Of a speaker model these
            are the key frames.

    Raises:
        ValueError: numbers that make no model; the message names the field.
    """

    size: Size = "base"
    image_height: int = 224
    image_width: int = 224
    mel_bins: int = 128
    audio_frames: int = 1024
    patch: int = 16
    width: int = 0
    heads: int = 0
    depth: int = 0
    joint_depth: int = 1
    mlp_ratio: float = 4.0
    temporal: TemporalOptions = PER_FRAME
    frames: int = 1

    def __post_init__(self) -> None:
        self._resolve_size()
        names = [field.name for field in dataclasses.fields(self)]
        check_bounds(self, {name: BOUNDS[name] for name in names if name in BOUNDS})
        for name in ("image_height", "image_width", "mel_bins", "audio_frames"):
            side = getattr(self, name)
            if side % self.patch:
                raise ValueError(f"{name} {side} is not made of patches of {self.patch}.")
        self._check_tokens("width", "heads")

    def _resolve_size(self) -> None:
        if self.size not in (*SIZES, "custom"):
            raise ValueError(f"There is no size {self.size!r}; there are {', '.join(SIZES)}.")
        names = [f.name for f in dataclasses.fields(self) if f.name in SIZES["base"]]
        for name in names:
            if getattr(self, name) == 0:
                if self.size == "custom":
                    raise ValueError(f"{name} is 0: size custom needs {', '.join(names)}.")
                object.__setattr__(self, name, SIZES[self.size][name])
        numbers = {name: getattr(self, name) for name in names}
        equal = (size for size, values in SIZES.items() if numbers.items() <= values.items())
        object.__setattr__(self, "size", next(equal, "custom"))

    def _check_tokens(self, width_name: str, heads_name: str) -> None:
        """Checks the width of tokens, which have positions and are divided among heads."""
        width, heads = getattr(self, width_name), getattr(self, heads_name)
        for name, (rows, columns) in (("image", self.image_grid), ("audio", self.audio_grid)):
            if rows * columns * width > MOST_POSITIONS:
                raise ValueError(
                    f"{name} of {rows * columns} patches of {width_name} {width}: too many."
                )
        if width % heads or width % 4:
            raise ValueError(f"{width_name} {width} is not a multiple of 4 and of {heads} heads.")

    @property
    def mixes_frames(self) -> bool:
        """Whether frames of a clip mix in the encoder, which then knows their times."""
        return self.frames > 1 and self.temporal != PER_FRAME

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of a frame in pixels."""
        return self.image_height, self.image_width

    @property
    def audio_size(self) -> tuple[int, int]:
        """(mel bins, fbank frames)."""
        return self.mel_bins, self.audio_frames

    @property
    def image_grid(self) -> tuple[int, int]:
        """Rows and columns of image patches."""
        return self.image_height // self.patch, self.image_width // self.patch

    @property
    def audio_grid(self) -> tuple[int, int]:
        """Rows (mel) and columns (time) of audio patches."""
        return self.mel_bins // self.patch, self.audio_frames // self.patch


@dataclasses.dataclass(frozen=True)
class CAVMAEConfig(EncoderConfig):
    """Configuration of CAV-MAE: encoder, decoder of masked patches, frame contrast.

    Args:
        decoder_width: of a decoder's token; 0: the size's.
        decoder_heads: of the decoder's attention; 0: the size's.
        decoder_depth: blocks of the decoder; 0: the size's.
        decoder: ``self``: attention among all tokens, as published; ``cross``: from masked to
            visible tokens only, about half the work of a training step.
        contrast_width: of the embeddings of the frame contrast; 0: none.
    """

    decoder_width: int = 0
    decoder_heads: int = 0
    decoder_depth: int = 0
    decoder: Literal["self", "cross"] = "self"
    contrast_width: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder not in ("self", "cross"):
            raise ValueError(f"decoder {self.decoder!r} is neither 'self' nor 'cross'.")
        self._check_tokens("decoder_width", "decoder_heads")
