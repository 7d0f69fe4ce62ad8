"""Which slots of a window are somebody, and which of them are one person.

Shapes: Q' slots without the residual, F key frames of h x w.
"""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

THERE = 0.5  # how surely somebody is there who counts
LEAST = 0.002  # share of the picture that a person covers at least, on average
SAME = 0.6  # IoU of two slots' masks from which on they are one person
# How near to each other, in shares of the picture along both axes, slots' pixels vote that their
# person's middle is where that is one person. Of 119 pairs of composed people 5 were nearer; of 10
# slots beside the one that was right (a face apart from its hair) 8 were.
NEAR = 0.05
SPECK = 0.1  # share of a mask's largest piece below which a piece does not belong to it


def people_of(masks: Tensor, votes: Tensor, there: Tensor, cued: bool) -> list[list[int]]:
    """Slots of each person, the surest person and slot first.

    Slots are one person where their masks are the same pixels, or where their pixels vote for the
    same middle (:mod:`cavmae.finetune.anchors`), as parts of one person do.

    Args:
        masks: [Q', F, h, w], 0 to 1.
        votes: [2, F, h, w], shares of the picture, across and down.
        there: [Q'], probabilities.
        cued: slot 0 comes first: it is whom a cue means.
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
    middles = [(votes * m).flatten(1).sum(1) / m.sum() for m in (mask, other)]
    return bool(((middles[0] - middles[1]).abs() < NEAR).all())


def without_specks(masks: Tensor) -> Tensor:
    """Masks [F, h, w], 0 to 1, each without the pieces that are small beside its largest."""
    found = masks.clone()
    for mask in found:
        pieces, count = ndimage.label((mask > 0.5).numpy())
        if count > 1:
            sizes = np.bincount(pieces.ravel())
            sizes[0] = 0
            small = (sizes < SPECK * sizes.max())[pieces] & (pieces > 0)
            mask[torch.from_numpy(small)] = 0.0
    return found
