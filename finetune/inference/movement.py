"""Movement of people, by which furniture and pictures that look like people are told from them.

Movement is the normal flow: the mean change of the pixels under a mask within 0.2 s over their mean
gradient. Of seven real recordings with people and one with a chair that was taken for a person, the
chair moves 0.0004 of its height, people 0.0015 and more (docs/benchmarks/box-model.md). Grain and
compression change pixels, too, so that what stands still in a picture of low contrast counts as
moving rather than the other way round.

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

STEP = 5  # frames between those that are compared, 0.2 s
LIVELIER = 2.0  # movement of the rest of a picture, over that of what stands still in it


def measure_movements(
    grey: Tensor,
    letterbox: Letterbox,
    masks: Sequence[np.ndarray],
    keys: np.ndarray,
    cuts: Sequence[int] = (),
) -> list[Movement | None]:
    """Movement of each person of a window; None where it cannot be measured.

    That is where a person or the rest of the picture is not visible for 0.2 s, or without contrast.

    Args:
        grey: uint8 [T, h', w'], frames with black bars.
        letterbox: place of the picture in them.
        masks: uint8 [F, h, w] of each person, of the picture.
        keys: key frames, counted from the start of the window.
        cuts: frames that begin a shot, likewise; they are no movement.
    """
    if not masks:
        return []
    frames = np.arange(0, len(grey), STEP)
    picture = _cropped(grey[::STEP].float(), letterbox)
    if min(picture.shape[1:]) < 4:  # very wide or high
        return [None] * len(masks)
    # Means of 2x2 pixels: the noise of one is large beside what moves by a fraction of one.
    smooth = functional.avg_pool2d(picture[:, None], 2)[:, 0]
    size = masks[0].shape[1:]
    down, across = torch.gradient(smooth, dim=(1, 2))
    shots = shots_of(frames, cuts)
    is_within = torch.from_numpy(shots[1:] == shots[:-1])
    change = functional.adaptive_avg_pool2d((smooth[1:] - smooth[:-1]).abs(), size)[is_within]
    gradient = functional.adaptive_avg_pool2d(torch.hypot(down, across)[1:], size)[is_within]

    def flow(chosen: Tensor) -> float | None:
        steepness = float(gradient[chosen].sum())
        return float(change[chosen].sum()) / steepness if steepness > 0 else None

    measured: list[Movement | None] = []
    for person in masks:
        mask = torch.from_numpy(interpolate_masks(person, frames, keys, cuts)) > 0.5
        own = flow((mask[1:] & mask[:-1])[is_within])
        rest = flow(~(mask[1:] | mask[:-1])[is_within])
        rows = mask.any(2).sum(1)
        if own is None or rest is None:
            measured.append(None)
            continue
        height = float(rows[rows > 0].float().mean()) * smooth.shape[1] / size[0]
        measured.append(Movement(own / height, rest / height))
    return measured


def stands_still(movements: Sequence[Movement | None], least: float) -> bool:
    """Whether somebody hardly moves over a recording whose pictures do.

    Where whole pictures stand still, nothing is said of people. A camera that moves moves them.

    Args:
        movements: in each window; None: not measured.
        least: movement of a person, as a fraction of their height.
    """
    measured = [movement for movement in movements if movement is not None]
    if not measured:
        return False
    own, rest = np.mean(measured, axis=0)
    return bool(own < least and max(least, LIVELIER * own) < rest)


def _cropped(grey: Tensor, letterbox: Letterbox) -> Tensor:
    """Frames [N, h', w'] without their black bars."""
    top, left, height, width = letterbox.inner
    down, across = grey.shape[1] / letterbox.size[0], grey.shape[2] / letterbox.size[1]
    rows = slice(round(top * down), round((top + height) * down))
    return grey[:, rows, round(left * across) : round((left + width) * across)]
