"""Detections of people in a window, and their movement."""

from typing import NamedTuple

import numpy as np

from cavmae.common.boxes import Box


class Movement(NamedTuple):
    """Mean movement within 0.2 s, as a fraction of a person's height.

    Attributes:
        own: of the person, or of the upper part of their body, whichever is more.
        rest: of the rest of the picture.
    """

    own: float
    rest: float


class DetectedPerson(NamedTuple):
    """A person in a window.

    Attributes:
        slot: index of the slot; of merged slots the one with the highest presence probability, or
            that of a cue.
        presence_prob: probability that the slot holds a person.
        activity_prob: float32 [T], probability that the voice is active, every 40 ms.
        box: region of the frame that the masks cover.
        masks: uint8 [F, h, w], 0 to 255, of the key frames.
        voice: float32 [samples].
        colors: of :func:`~cavmae.finetune.inference.appearance.appearance`, in the key frames.
        openings: float32 [T], opening of the mouth in each frame, about 0 to 1.
        movement: over the window; None: not measured.
    """

    slot: int
    presence_prob: float
    activity_prob: np.ndarray
    box: Box
    masks: np.ndarray
    voice: np.ndarray
    colors: np.ndarray
    openings: np.ndarray
    movement: Movement | None = None
