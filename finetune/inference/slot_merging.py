"""Which slots of a window are somebody, and which of them are one person.

Shapes: Q' slots without the residual, F key frames of h x w.
"""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

THERE = 0.5  # how surely somebody is there who counts
LEAST = 0.002  # share of the picture that a person covers at least, on average
SAME = 0.6  # IoU of two slots' masks from which on they are one person
NEAR = 0.05  # shares of the picture, along both axes, between middles that are one
TOUCHING = 0.75  # share of the key frames that show both in which parts of one person touch
SPECK = 0.1  # share of a mask's largest piece below which a piece may not belong to it
AROUND = np.ones((3, 3))  # a pixel's neighbours: corners, too


def merge_slots(masks: Tensor, votes: Tensor, there: Tensor, cued: bool) -> list[list[int]]:
    """Slots of each person, the surest person and slot first.

    Slots are one person where their masks are the same pixels; or where they touch, and their
    pixels vote for the same center (:mod:`cavmae.finetune.speaker.center_voting`), as parts of one
    person do.

    Args:
        masks: [Q', F, h, w], 0 to 1.
        votes: [2, F, h, w], shares of the picture, across and down.
        there: [Q'], probabilities.
        cued: slot 0 comes first, however sure it is: it is whom a cue means.
    """
    shown = masks > 0.5
    order = there.argsort(descending=True).tolist()
    if cued:
        order.sort(key=lambda slot: slot != 0)
    people: list[list[int]] = []
    for slot in order:
        if there[slot] < THERE or shown[slot].float().mean() < LEAST:
            continue
        for person in people:
            if _one(shown[slot], shown[person].any(0), votes):
                person.append(slot)
                break
        else:
            people.append([slot])
    return people


def _one(mask: Tensor, other: Tensor, votes: Tensor) -> bool:
    """Whether pixels bool [F, h, w], neither of them none, are one person's."""
    if float((mask & other).sum() / (mask | other).sum()) >= SAME:
        return True
    both = mask.flatten(1).any(1) & other.flatten(1).any(1)
    if not bool(both.any()):  # one after the other, as after a cut
        return False
    mask, other, votes = mask[both], other[both], votes[:, both]
    wider = functional.max_pool2d(mask.float(), 3, stride=1, padding=1) > 0
    touching = (wider & other).flatten(1).any(1).float().mean()
    apart = (_middle(votes, mask) - _middle(votes, other)).abs()
    return bool((apart < NEAR).all()) and float(touching) >= TOUCHING


def _middle(votes: Tensor, mask: Tensor) -> Tensor:
    """Mean [2] of votes [2, ...] under a mask bool [...]."""
    return votes[:, mask].mean(1)


def without_specks(masks: Tensor, votes: Tensor) -> Tensor:
    """Masks without pieces that are small beside the largest, and either tiny or somebody else's.

    A head that something in front of it cuts off stays: it votes for its person's middle.

    Args:
        masks: [F, h, w], 0 to 1.
        votes: [2, F, h, w], shares of the picture.
    """
    found = masks.clone()
    for mask, voted in zip(found, votes.unbind(1), strict=True):
        pieces, count = ndimage.label((mask > 0.5).numpy(), AROUND)
        if count < 2:
            continue
        sizes = np.bincount(pieces.ravel())[1:]
        largest = int(sizes.argmax())
        middle = _middle(voted, torch.from_numpy(pieces == largest + 1))
        for number in np.flatnonzero(sizes < SPECK * sizes[largest]):
            piece = torch.from_numpy(pieces == number + 1)
            elsewhere = bool(((_middle(voted, piece) - middle).abs() > NEAR).any())
            if sizes[number] < LEAST * mask.numel() or elsewhere:
                mask[piece] = 0.0
    return found
