"""Boxes of masks."""

import numpy as np

from cavmae.common.boxes import mask_box, pixel_box


def test_a_box_spans_exactly_the_pixels_of_a_mask() -> None:
    mask = np.zeros((6, 9), dtype=bool)
    assert pixel_box(mask) is None
    mask[2, 3] = mask[4, 7] = True
    assert pixel_box(mask) == (3, 2, 8, 5)
    left, top, right, bottom = (3, 2, 8, 5)
    assert mask[top:bottom, left:right].sum() == mask.sum()
    mask[:] = True
    assert pixel_box(mask) == (0, 0, 9, 6)


def test_a_box_as_fractions_is_that_of_the_pixels() -> None:
    mask = np.zeros((4, 8), dtype=bool)
    assert mask_box(mask) is None
    mask[1, 2:6] = True
    assert mask_box(mask) == (0.25, 0.25, 0.75, 0.5)
