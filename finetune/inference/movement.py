"""Movement of detected people, which tells them from furniture and posters.

Movement is the normal flow: the mean change of the pixels under a mask within 0.2 s over their mean
gradient. A chair that was taken for a person moves 0.0004 of its height, eleven real people 0.0018
and more (docs/benchmarks/box-model.md). Grain and compression change pixels, too, so that what
stands still in a picture of low contrast counts as moving rather than the other way round.

Shapes: T frames, F key frames.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cavmae.finetune.inference.detections import Movement
from cavmae.finetune.inference.shots import interpolate_masks, shots_of
from cavmae.finetune.inference.views import Letterbox

FRAME_STEP = 5  # frames between those that are compared, 0.2 s
MIN_REST = 0.0008  # movement of the rest of a picture in which somebody stands still
MIN_REST_RATIO = 2.0  # movement of the rest of a picture over theirs
MAX_WINDOW_RATIO = 3.0  # movement in the liveliest window, over the limit of the mean
UPPER_FRACTION = 0.4  # of a person's height, in which their head is


def measure_movements(
    grey: Tensor,
    letterbox: Letterbox,
    masks: Sequence[np.ndarray],
    keys: np.ndarray,
    cuts: Sequence[int] = (),
) -> list[Movement | None]:
    """Movement of each person of a window; None where it cannot be measured.

    That is where a person or the rest of the picture is not visible for 0.2 s, or without contrast,
    where every compared frame repeats the one before it, and where the picture has less than 4
    pixels of height or width. Frames that are repeated say nothing of anybody.

    Args:
        grey: uint8 [T, h', w'], frames with black bars.
        letterbox: place of the picture in them.
        masks: uint8 [F, h, w] of each person, of the picture.
        keys: key frames, counted from the start of the window.
        cuts: frames that begin a shot, likewise; they are no movement.
    """
    if not masks:
        return []
    frames = np.arange(0, len(grey), FRAME_STEP)
    place = letterbox.place_in((grey.shape[1], grey.shape[2]))
    picture = grey[::FRAME_STEP][:, *place].float()
    if min(picture.shape[1:]) < 4:  # very wide or high
        return [None] * len(masks)
    # Means of 2x2 pixels: the noise of one is large beside what moves by a fraction of one.
    smooth = functional.avg_pool2d(picture[:, None], 2)[:, 0]
    size = masks[0].shape[1:]
    down, across = torch.gradient(smooth, dim=(1, 2))
    shots = shots_of(frames, cuts)
    is_within = torch.from_numpy(shots[1:] == shots[:-1])
    difference = (smooth[1:] - smooth[:-1]).abs()
    is_within &= difference.flatten(1).any(1)  # else a frame that is repeated
    change = functional.adaptive_avg_pool2d(difference, size)[is_within]
    gradient = functional.adaptive_avg_pool2d(torch.hypot(down, across)[1:], size)[is_within]

    def flow(chosen: Tensor) -> float | None:
        steepness = float(gradient[chosen].sum())
        return float(change[chosen].sum()) / steepness if steepness > 0 else None

    measured: list[Movement | None] = []
    for person in masks:
        mask = torch.from_numpy(interpolate_masks(person, frames, keys, cuts)) > 0.5
        rows = mask.any(2)
        heights = rows.sum(1)
        is_upper = rows.cumsum(1) <= UPPER_FRACTION * heights[:, None]
        upper = mask & is_upper[..., None]
        parts = [flow((part[1:] & part[:-1])[is_within]) for part in (mask, upper)]
        own = max((part for part in parts if part is not None), default=None)
        rest = flow(~(mask[1:] | mask[:-1])[is_within])
        if own is None or rest is None:
            measured.append(None)
            continue
        height = float(heights[heights > 0].float().mean()) * smooth.shape[1] / size[0]
        measured.append(Movement(own / height, rest / height))
    return measured


def stands_still(movements: Sequence[Movement | None], min_movement_fraction: float) -> bool:
    """Whether somebody hardly moves over a recording whose pictures do.

    Nobody does who moves :data:`MAX_WINDOW_RATIO` times the limit in one window: who listens for
    long may speak once. Where whole pictures stand still, nothing is said of people. A camera that
    moves moves everybody.

    Args:
        movements: in each window; None: not measured.
        min_movement_fraction: least mean movement of a person, as a fraction of their height.
    """
    measured = np.array([movement for movement in movements if movement is not None])
    if not len(measured):
        return False
    own, rest = measured.mean(0)
    return bool(
        own < min_movement_fraction
        and measured[:, 0].max() < MAX_WINDOW_RATIO * min_movement_fraction
        and rest > max(MIN_REST, MIN_REST_RATIO * own)
    )
