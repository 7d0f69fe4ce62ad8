"""Second look: the model again on crops around people who are small in the frame."""

from collections.abc import Sequence

import numpy as np

from cavmae.common.boxes import WHOLE, Box, mask_box
from cavmae.finetune.inference.predictor import (
    Cue,
    DetectedPerson,
    PreparedMixture,
    WindowPredictor,
)
from cavmae.finetune.inference.tracker import masks_at, soft_iou


def refine_small_people(
    predictor: WindowPredictor,
    frames: Sequence[np.ndarray],
    mixture: PreparedMixture,
    people: list[DetectedPerson],
    hint: int = 0,
) -> tuple[list[DetectedPerson], dict[int, float]]:
    """Run the model again on crops around small people.

    Args:
        predictor: the model.
        frames: uint8 [h, w, 3] each, T of a window.
        mixture: the same as in the prediction for the whole frame.
        people: prediction for the whole frame.
        hint: class number of the people; 0: none.

    Returns:
        people, and the magnification of each second look by slot.
    """
    refined, zooms = [], {}
    frame_size = frames[0].shape[0], frames[0].shape[1]
    thresholds = predictor.thresholds
    for person in people:
        box, zoom = zoom_box(
            person.masks, frame_size, predictor.config.encoder.image_size,
            thresholds.zoom_margin_fraction,
        )  # fmt: skip
        closer_view = None
        if zoom >= thresholds.min_zoom:
            key = int((person.masks > 127).reshape(len(person.masks), -1).sum(1).argmax())
            mask = person.masks[key] > 127
            cue = Cue("mask", box=mask_box(mask) or WHOLE, mask=mask)
            detected = predictor.predict(frames, mixture, box, cue, key, hint)
            closer_view = next((p for p in detected if p.slot == 0), None)
        if closer_view is None or not is_same_person(
            closer_view, person, people, predictor.keys, thresholds.min_second_look_iou
        ):
            refined.append(person)
        else:
            # The cue of the second look biases the presence probability, so the first one stays.
            refined.append(
                closer_view._replace(slot=person.slot, presence_prob=person.presence_prob)
            )
            zooms[person.slot] = zoom
    return refined, zooms


def is_same_person(
    closer_view: DetectedPerson,
    person: DetectedPerson,
    people: list[DetectedPerson],
    keys: np.ndarray,
    min_iou: float,
) -> bool:
    """Whether a second look shows the intended person and not a neighbor.

    Args:
        closer_view: prediction of the second look.
        person: the intended person.
        people: all people of the window.
        keys: key frames, counted from the start of the window.
        min_iou: IoU of the masks of both looks.
    """
    mask = masks_at(closer_view, keys, keys) > 0.5
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
