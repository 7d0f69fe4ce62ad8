"""Whether a target's mask is at the place that a cue names."""

from types import SimpleNamespace

import numpy as np
import pytest

from cavmae.common.boxes import WHOLE, Box
from cavmae.finetune.inference.predictor import Cue
from cavmae.finetune.inference.selection import is_at

KEYS = np.array([8, 24, 40, 56])


def recording(keys: list[int]) -> SimpleNamespace:
    """A mask of the lower right quarter, in some of four key frames of a window from frame 100."""
    masks = np.zeros((4, 20, 40), np.uint8)
    masks[keys, 10:, 20:] = 255
    return SimpleNamespace(starts=[100], keys=KEYS, masks=lambda sighting: masks)


def sighting(box: Box = WHOLE, cued: bool = True) -> SimpleNamespace:
    return SimpleNamespace(window=0, box=box, cued=cued)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0.7, 0.7, 0.7, 0.7), True),  # a point
        ((0.49, 0.6, 0.49, 0.6), True),  # one beside it
        ((0.4, 0.6, 0.4, 0.6), False),
        ((0.7, 0.3, 0.7, 0.3), False),
        ((0.1, 0.1, 0.6, 0.6), True),  # a box that holds a corner of the mask
        ((0.0, 0.0, 0.4, 0.4), False),
        ((0.0, 0.0, 1.0, 0.3), False),
    ],
)
def test_the_place_of_a_cue(box: Box, expected: bool) -> None:
    cue = Cue("box", time=5.0, box=box)  # frame 125, of the second key frame
    assert is_at(recording([0, 1, 2, 3]), [sighting()], cue) == expected
    assert not is_at(recording([0, 1, 2, 3]), [sighting(cued=False)], cue)


def test_masks_of_a_second_look_are_of_its_region() -> None:
    region = (0.5, 0.0, 1.0, 0.5)  # its lower right quarter: x from 0.75, y from 0.25 to 0.5
    for box, expected in (
        ((0.9, 0.4, 0.9, 0.4), True), ((0.6, 0.4, 0.6, 0.4), False), ((0.9, 0.7, 0.9, 0.7), False),
    ):  # fmt: skip
        cue = Cue("point", time=5.0, box=box)
        assert is_at(recording([0, 1, 2, 3]), [sighting(region)], cue) == expected


def test_who_was_there_long_before_is_not_there() -> None:
    cue = Cue("point", time=6.2, box=(0.7, 0.7, 0.7, 0.7))  # frame 155, of the last key frame
    assert is_at(recording([3]), [sighting()], cue)
    assert not is_at(recording([0, 1]), [sighting()], cue)
