"""Boxes as fractions of a frame, and the bounding boxes of masks."""

import numpy as np

Box = tuple[float, float, float, float]  # left, top, right, bottom as fractions of a frame
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def pixel_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Bounding box of a mask: left, top, right and bottom in pixels, the last two exclusive.

    ``torchvision.ops.masks_to_boxes`` has inclusive ends and a box for an empty mask, and takes 30
    times as long on a frame of 1280x720 (2.7 ms against 0.09 ms).

    Args:
        mask: bool [h, w].

    Returns:
        the box; None: the mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def mask_box(mask: np.ndarray) -> Box | None:
    """Bounding box of a mask bool [h, w] as fractions of its size; None: the mask is empty."""
    box = pixel_box(mask)
    if box is None:
        return None
    height, width = mask.shape
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height
