"""Masks of a person at every frame, from the masks of key frames of overlapping windows."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from cavmae.common.boxes import Box
from cavmae.finetune.inference.first_pass import FirstPass, Sighting
from cavmae.finetune.inference.overlap_add import CrossfadeWeights
from cavmae.finetune.inference.tracker import interpolate_masks


class MaskRegion(NamedTuple):
    """Mask of a person in a region of a frame.

    Attributes:
        rows, columns: region of the frame.
        mask: float32 [rows, columns], 0 to 1.
    """

    rows: slice
    columns: slice
    mask: np.ndarray


class MaskTrack:
    """Masks of a person at every frame, as the weighted mean over windows.

    Args:
        recording: result of the first pass.
        sightings: the person in each window.
    """

    def __init__(self, recording: FirstPass, sightings: Sequence[Sighting]):
        self._recording = recording
        self._sightings = {sighting.window: sighting for sighting in sightings}
        self._weights = CrossfadeWeights(recording.starts, recording.length)
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # masks and weights of windows

    def at(self, frame: int, size: tuple[int, int]) -> np.ndarray | None:
        """Binary mask of a frame; frames are read in ascending order.

        Args:
            frame: on the grid of 25 Hz.
            size: (height, width) of the mask.

        Returns:
            bool [height, width]; None: no window at this frame has the person.
        """
        starts, length = self._recording.starts, self._recording.length
        first = int(np.searchsorted(starts, frame - length, side="right"))
        last = int(np.searchsorted(starts, frame, side="right"))
        windows = [w for w in range(first, last) if w in self._sightings]
        self._cache = {w: m for w, m in self._cache.items() if w >= first}
        if not windows:
            return None
        total = np.zeros(size, dtype=np.float32)
        for window in windows:
            region = self._region(window, frame, size)
            total[region.rows, region.columns] += region.mask
        binary: np.ndarray = total > 0.5
        return binary

    def _region(self, window: int, frame: int, size: tuple[int, int]) -> MaskRegion:
        """Weighted mask of a frame in one window."""
        sighting = self._sightings[window]
        if window not in self._cache:
            self._cache[window] = self._recording.masks(sighting), self._weights.of(window)
        masks, weights = self._cache[window]
        offset = frame - self._recording.starts[window]
        value = interpolate_masks(masks, np.array([offset]), self._recording.keys)[0]
        return _place_mask(value * weights[offset], sighting.box, size)


def _place_mask(mask: np.ndarray, box: Box, size: tuple[int, int]) -> MaskRegion:
    """Resize the mask of a box to its region of a frame."""
    top, bottom = round(box[1] * size[0]), max(round(box[3] * size[0]), round(box[1] * size[0]) + 1)
    left, right = round(box[0] * size[1]), max(round(box[2] * size[1]), round(box[0] * size[1]) + 1)
    large = functional.interpolate(
        torch.from_numpy(mask)[None, None], (bottom - top, right - left), mode="bilinear"
    )[0, 0].numpy()
    rows, columns = slice(top, min(bottom, size[0])), slice(left, min(right, size[1]))
    return MaskRegion(rows, columns, large[: rows.stop - top, : columns.stop - left])
