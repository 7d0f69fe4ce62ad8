"""Areas and overlaps of true people and tracks in every frame, which all track metrics need.

Shapes: T frames, P people, K tracks.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

MIN_VISIBLE_FRACTION = 0.002  # of the frame: smaller masks, true or not, count as not visible


class MaskOverlaps(NamedTuple):
    """Areas and overlaps in pixels.

    Attributes:
        people: int64 [T, P], area of each person's mask; 0: not visible.
        tracks: int64 [T, K], likewise of the tracks.
        shared: int64 [T, P, K], pixels of both.
    """

    people: np.ndarray
    tracks: np.ndarray
    shared: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """IoU of every person with every track: float64 [T, P, K]; 0 where one is not visible."""
        either = self.people[:, :, None] + self.tracks[:, None, :] - self.shared
        iou: np.ndarray = self.shared / np.maximum(either, 1)
        return iou


def mask_overlaps(
    people: np.ndarray, count: int, tracks: Sequence[Iterable[np.ndarray]]
) -> MaskOverlaps:
    """Areas and overlaps of people and tracks; the tracks' masks are read one after another.

    Args:
        people: uint8 [T, height, width], number of the person whose pixel it is, from 1.
        count: P.
        tracks: masks of each track, bool [height, width] in the order of frames. Frames beyond T
            are ignored, and frames that are missing have no pixel of the track.

    Raises:
        ValueError: a mask has another size.
    """
    length, *size = people.shape
    least = MIN_VISIBLE_FRACTION * size[0] * size[1]
    true_areas = np.stack([np.bincount(frame.ravel(), minlength=count + 1)[1:] for frame in people])
    areas = np.zeros((length, len(tracks)), dtype=np.int64)
    shared = np.zeros((length, count, len(tracks)), dtype=np.int64)
    for number, masks in enumerate(tracks):
        for frame, mask in zip(range(length), masks, strict=False):
            if list(mask.shape) != size:
                raise ValueError(f"a mask is {list(mask.shape)}, the truth {size}")
            areas[frame, number] = mask.sum()
            shared[frame, :, number] = np.bincount(people[frame][mask], minlength=count + 1)[1:]
    true_areas[true_areas < least] = 0
    areas[areas < least] = 0
    shared *= (true_areas[:, :, None] > 0) & (areas[:, None, :] > 0)
    return MaskOverlaps(true_areas, areas, shared)
