"""Boxes: left, top, right and bottom edges; the right and bottom ones are exclusive."""

import numpy as np

Box = tuple[float, float, float, float]  # in pixels, or in fractions of a frame
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)  # the whole frame, in fractions


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Bounding box of a mask in pixels.

    Args:
        mask: bool [h, w].

    Returns:
        left, top, right, bottom; None for an empty mask.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
