"""Masks of a person at every frame, from the masks of key frames of overlapping windows."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from cavmae.common.boxes import Box
from cavmae.common.interpolation import linear_weights
from cavmae.finetune.inference.first_pass import FirstPass, Sighting, by_window
from cavmae.finetune.inference.overlap_add import CrossfadeWeights
from cavmae.finetune.inference.shots import interpolate_masks

THRESHOLD = 0.5  # of the weighted mean over windows, above which a pixel is the person's


@dataclasses.dataclass(frozen=True)
class MaskRegion:
    """Mask of a person in the part of a frame outside of which they have no pixel.

    Attributes:
        top, left: first row and column of the part.
        values: float32 [h, w], weighted mean of the masks of the windows, 0 to 1.
    """

    top: int
    left: int
    values: np.ndarray

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """Binary mask of the part: bool [h, w]."""
        mask: np.ndarray = self.values > THRESHOLD
        return mask

    @property
    def place(self) -> tuple[slice, slice]:
        """Rows and columns of the part."""
        height, width = self.values.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


class MaskTrack:
    """Masks of a person at every frame, as the weighted mean over windows.

    Args:
        recording: result of the first pass.
        sightings: the person in all windows.
    """

    def __init__(self, recording: FirstPass, sightings: Sequence[Sighting]):
        self._recording = recording
        self._sightings = by_window(sightings)
        self._starts = np.array(recording.starts)  # a list would be copied for every frame
        self._weights = CrossfadeWeights(recording.starts, recording.length)
        # Masks of the sightings in windows, and the weights of those.
        self._cache: dict[int, tuple[list[np.ndarray], np.ndarray]] = {}

    def at(self, frame: int, size: tuple[int, int]) -> MaskRegion | None:
        """Mask of a frame; frames are read in ascending order.

        Args:
            frame: on the grid of 25 Hz.
            size: (height, width) of the frame in pixels.

        Returns:
            None: the person has no pixel in this frame.
        """
        length = self._recording.length
        first = int(np.searchsorted(self._starts, frame - length, side="right"))
        last = int(np.searchsorted(self._starts, frame, side="right"))
        self._cache = {w: m for w, m in self._cache.items() if w >= first}
        # Largest value and weighted sum of the masks of a box.
        placed: dict[tuple[Box, tuple[int, ...]], tuple[np.ndarray, np.ndarray]] = {}
        for window in range(first, last):
            for sighting, value, weight in self._window_masks(window, frame):
                key = sighting.box, value.shape
                largest, total = placed.get(key, (value, np.zeros_like(value)))
                placed[key] = np.maximum(largest, value), total + value * weight
        # A mean can only exceed the threshold near a value that does.
        parts = [_support(largest, box, size) for (box, _), (largest, _) in placed.items()]
        bounds = [part for part in parts if part is not None]
        if not bounds:
            return None
        top, left = min(b[0] for b in bounds), min(b[1] for b in bounds)
        bottom, right = max(b[2] for b in bounds), max(b[3] for b in bounds)
        values = np.zeros((bottom - top, right - left), dtype=np.float32)
        for (box, _), (_, total) in placed.items():
            _add_resized(values, (top, left), total, box, size)
        return MaskRegion(top, left, values)

    def _window_masks(
        self, window: int, frame: int
    ) -> Iterator[tuple[Sighting, np.ndarray, float]]:
        """Yield each sighting in a window, its mask [h, w] of a frame, 0 to 1, and its weight."""
        sightings = self._sightings.get(window, [])
        if not sightings:
            return
        if window not in self._cache:
            masks = [self._recording.masks(sighting) for sighting in sightings]
            self._cache[window] = masks, self._weights.of(window)
        masks, weights = self._cache[window]
        offset = frame - self._recording.starts[window]
        cuts = self._recording.cuts[window]
        for sighting, values in zip(sightings, masks, strict=True):
            value = interpolate_masks(values, np.array([offset]), self._recording.keys, cuts)[0]
            yield sighting, value, float(weights[offset])


def _extent(first: float, last: float, size: int) -> tuple[int, int]:
    """First pixel of a side of a box, and the one behind its last."""
    start = round(first * size)
    return start, max(round(last * size), start + 1)


@functools.lru_cache(maxsize=256)
def _resampling(length: int, count: int) -> np.ndarray:
    """Matrix [count, length] that interpolates ``length`` values at ``count`` positions."""
    weights: np.ndarray = linear_weights(length, count).T.contiguous().numpy()
    return weights


def _support(
    values: np.ndarray, box: Box, size: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """Part of the frame outside of which a resized mask cannot exceed the threshold.

    Returns:
        Top, left, bottom and right in pixels; None: the mask exceeds it nowhere.
    """
    above = values > THRESHOLD
    edges = []
    for axis, (begin, end) in enumerate(((box[1], box[3]), (box[0], box[2]))):
        first, last = _extent(begin, end, size[axis])
        taken = np.flatnonzero(above.any(1 - axis))
        weights = _resampling(values.shape[axis], last - first)
        touched = np.flatnonzero(weights[:, taken].any(1)) if len(taken) else taken
        touched = touched[(touched + first >= 0) & (touched + first < size[axis])]
        if not len(touched):
            return None
        edges.append((first + int(touched[0]), first + int(touched[-1]) + 1))
    (top, bottom), (left, right) = edges
    return top, left, bottom, right


def _add_resized(
    values: np.ndarray, origin: tuple[int, int], mask: np.ndarray, box: Box, size: tuple[int, int]
) -> None:
    """Add the mask of a box of the frame, resized bilinearly, to a part of the frame.

    Args:
        values: float32 [h, w], the part.
        origin: top and left of the part in pixels of the frame.
        mask: [h', w'] of the box.
        size: (height, width) of the frame.
    """
    matrices, parts = [], []
    for axis, (begin, end) in enumerate(((box[1], box[3]), (box[0], box[2]))):
        first, last = _extent(begin, end, size[axis])
        start = max(first, origin[axis])
        stop = min(last, origin[axis] + values.shape[axis])
        if stop <= start:
            return
        matrices.append(_resampling(mask.shape[axis], last - first)[start - first : stop - first])
        parts.append(slice(start - origin[axis], stop - origin[axis]))
    values[parts[0], parts[1]] += matrices[0] @ mask @ matrices[1].T
