"""Second look: the model again on crops around people who are small in the frame."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cavmae.common.boxes import WHOLE, Box, mask_box
from cavmae.finetune.inference.detections import DetectedPerson
from cavmae.finetune.inference.predictor import Cue, WindowPredictor
from cavmae.finetune.inference.tracker import masks_at, soft_iou


class SecondLook(NamedTuple):
    """A second look that is due.

    Attributes:
        person: of the first look.
        box: region of the frames that the model is to see.
        zoom: magnification relative to the whole frame.
        cue: the person's mask in a key frame.
        key: index of that key frame.
    """

    person: DetectedPerson
    box: Box
    zoom: float
    cue: Cue
    key: int


def second_looks(
    predictor: WindowPredictor, frame_size: tuple[int, int], people: Sequence[DetectedPerson]
) -> list[SecondLook]:
    """Second looks at those who are small in the frame.

    Args:
        predictor: the model.
        frame_size: (height, width) of the frames in pixels.
        people: prediction for the whole frame.
    """
    second = []
    thresholds = predictor.thresholds
    for person in people:
        box, zoom = zoom_box(
            person.masks, frame_size, predictor.sizes.image, thresholds.zoom_margin_fraction
        )
        if zoom < thresholds.min_zoom:
            continue
        key = int((person.masks > 127).reshape(len(person.masks), -1).sum(1).argmax())
        mask = person.masks[key] > 127
        cue = Cue("mask", box=mask_box(mask) or WHOLE, mask=mask)
        second.append(SecondLook(person, box, zoom, cue, key))
    return second


def refine_people(
    predictor: WindowPredictor,
    people: Sequence[DetectedPerson],
    second: Sequence[SecondLook],
    predictions: Sequence[Sequence[DetectedPerson]],
) -> tuple[list[DetectedPerson], dict[int, float]]:
    """Replace people by what second looks show of them.

    Args:
        predictor: the model.
        people: prediction for the whole frame.
        second: second looks at some of them.
        predictions: of each.

    Returns:
        people, and the magnification of each second look by slot.
    """
    refined, zooms = {person.slot: person for person in people}, {}
    for crop, detected in zip(second, predictions, strict=True):
        detail = next((p for p in detected if p.slot == 0), None)
        if detail is None or not is_same_person(
            detail, crop.person, people, predictor.keys,
            predictor.thresholds.min_second_look_iou,
        ):  # fmt: skip
            continue
        slot = crop.person.slot
        # The cue of the second look biases the presence probability, so the first one stays.
        refined[slot] = detail._replace(
            slot=slot, presence_prob=crop.person.presence_prob, movement=crop.person.movement
        )
        zooms[slot] = crop.zoom
    return list(refined.values()), zooms


def is_same_person(
    detail: DetectedPerson,
    person: DetectedPerson,
    people: Sequence[DetectedPerson],
    keys: np.ndarray,
    min_iou: float,
) -> bool:
    """Whether a second look shows the intended person and not a neighbor.

    Args:
        detail: prediction of the second look.
        person: the intended person.
        people: all people of the window.
        keys: key frames, counted from the start of the window.
        min_iou: IoU of the masks of both looks.
    """
    mask = masks_at(detail, keys, keys) > 0.5
    ious = {p.slot: soft_iou(mask, masks_at(p, keys, keys) > 0.5) for p in people}
    return ious[person.slot] >= min_iou and ious[person.slot] == max(ious.values())


def zoom_box(
    masks: np.ndarray, frame_size: tuple[int, int], model_size: tuple[int, int], margin: float
) -> tuple[Box, float]:
    """Crop around a person, and its magnification relative to the whole frame.

    Args:
        masks: uint8 [F, h, w], of the whole frame.
        frame_size: (height, width) of the frame in pixels.
        model_size: (height, width) of the model's input in pixels.
        margin: around the person, as a fraction of their size.
    """
    left, top, right, bottom = mask_box((masks > 127).max(0)) or WHOLE
    height, width = (bottom - top) * frame_size[0], (right - left) * frame_size[1]
    height, width = height * (1 + 2 * margin), width * (1 + 2 * margin)
    # The crop fills the model's input, but is not upsampled and does not exceed the frame.
    scale = min(model_size[0] / height, model_size[1] / width, 1.0)
    height, width = (
        min(model_size[0] / scale, frame_size[0]),
        min(model_size[1] / scale, frame_size[1]),
    )
    whole = min(model_size[0] / frame_size[0], model_size[1] / frame_size[1])
    zoom = min(model_size[0] / height, model_size[1] / width) / whole
    y, x = (top + bottom) / 2 * frame_size[0], (left + right) / 2 * frame_size[1]
    y = min(max(y - height / 2, 0), frame_size[0] - height)
    x = min(max(x - width / 2, 0), frame_size[1] - width)
    box = (
        x / frame_size[1],
        y / frame_size[0],
        (x + width) / frame_size[1],
        (y + height) / frame_size[0],
    )
    return box, zoom
