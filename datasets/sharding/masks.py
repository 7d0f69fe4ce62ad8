"""Label masks of a video: a folder of PNGs, and the meaning of their values."""

import io
import os
import re
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from cavmae.common.files import read_bytes
from cavmae.datasets.format.sample import MEMBER_LIMITS
from cavmae.datasets.media import MediaError
from cavmae.datasets.media.geometry import Geometry

PEOPLE = 32  # in a video at most; larger values are shades of grey, not labels
WHITE = 255  # of a plain foreground mask, as most tools write them


class MaskFolder:
    """Mask PNGs of a video, named by frame number from 0.

    Args:
        folder: path.
        display, coded: (height, width) of frames as displayed and as coded: masks have either.

    Raises:
        MediaError: ``no_masks``, or ``bad_mask`` for two masks of one frame.
    """

    def __init__(self, folder: str, display: tuple[int, int], coded: tuple[int, int]):
        self._sizes = {display, coded}
        self._display = display
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            raise MediaError("no_masks", f"mask folder {folder!r}: {error.strerror}") from error
        self._files: dict[int, Path] = {}
        for name in names:
            if match := re.fullmatch(r"(\d{1,9})\.png", name, re.IGNORECASE):
                path = self._files.setdefault(int(match[1]), Path(folder) / name)
                if path.name != name:
                    raise MediaError(
                        "bad_mask",
                        f"{path} and {name} in the same folder are of one frame: remove one",
                    )
        if not self._files:
            raise MediaError("no_masks", f"mask folder {folder!r} has no files like 0000.png")

    def read(self, number: int, shape: Geometry) -> np.ndarray | None:
        """Read the mask of frame ``number``, uint8 [height, width]; None if the folder has none.

        Raises:
            MediaError: ``bad_mask``.
        """
        path = self._files.get(number)
        if path is None:
            return None
        try:
            data = read_bytes(str(path), MEMBER_LIMITS["png"])
            if len(data) > MEMBER_LIMITS["png"]:
                raise MediaError("bad_mask", f"mask {path} has more than 32 MB")
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                if image.mode not in ("L", "P", "1"):
                    raise MediaError("bad_mask", f"mask {path} is {image.mode}, not labels")
                if (image.height, image.width) not in self._sizes:
                    raise MediaError(
                        "bad_mask",
                        f"mask {path} has {image.width}x{image.height} pixels, "
                        f"the video {self._display[1]}x{self._display[0]}",
                    )
                return shape.mask(image, self._display)
        except UnidentifiedImageError as error:
            raise MediaError("bad_mask", f"mask {path} is not a PNG") from error
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise MediaError("bad_mask", f"mask {path}: {error}") from error


def label_values(masks: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Label masks of a clip; plain foreground masks (0 and 255) become masks of a body.

    Raises:
        MediaError: ``bad_mask`` for values that are neither.
    """
    if max(int(mask.max()) for mask in masks.values()) <= 2 * PEOPLE:
        return masks
    values = sorted({int(v) for mask in masks.values() for v in np.unique(mask)} - {0})
    if values == [WHITE]:
        return {number: (mask == WHITE).astype(np.uint8) for number, mask in masks.items()}
    raise MediaError(
        "bad_mask",
        f"masks have the value {values[-1]}, of {len(values)}: 0 is the background, 2k - 1 the "
        f"body and 2k the face of person k (up to {PEOPLE}); foreground masks have 0 and 255 only",
    )


def mask_value_names(values: set[int]) -> dict[str, str]:
    """Names of mask values: 2k - 1 is the body, 2k the face of person k; 0 has none."""
    return {
        str(value): f"person {(value + 1) // 2} {'body' if value % 2 else 'face'}"
        for value in sorted(values - {0})
    }
