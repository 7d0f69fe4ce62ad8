"""Which slots of a window are somebody, and which of them are one person.

Shapes: Q' slots without the residual, F key frames of h x w.
"""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

MIN_PRESENCE = 0.5  # how surely somebody is there who counts
MIN_AREA = 0.002  # share of the picture that a person covers at least, on average
SAME_IOU = 0.6  # IoU of two slots' masks from which on they are one person
MAX_VOTE_DISTANCE = 0.05  # shares of the picture, along both axes, between middles that are one
MIN_TOUCHING = 0.75  # share of the key frames that show both in which parts of one person touch
MAX_SPECK = 0.1  # share of a mask's largest piece below which a piece may not belong to it
NEIGHBORS = np.ones((3, 3))  # a pixel's neighbours: corners, too


def merge_slots(masks: Tensor, votes: Tensor, presence_prob: Tensor, cued: bool) -> list[list[int]]:
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
    binary = masks > 0.5
    order = presence_prob.argsort(descending=True).tolist()
    if cued:
        order.sort(key=lambda slot: slot != 0)
    people: list[list[int]] = []
    for slot in order:
        if presence_prob[slot] < MIN_PRESENCE or binary[slot].float().mean() < MIN_AREA:
            continue
        for person in people:
            if _same_person(binary[slot], binary[person].any(0), votes):
                person.append(slot)
                break
        else:
            people.append([slot])
    return people


def _same_person(mask: Tensor, other: Tensor, votes: Tensor) -> bool:
    """Whether pixels bool [F, h, w], neither of them none, are one person's."""
    if float((mask & other).sum() / (mask | other).sum()) >= SAME_IOU:
        return True
    both = mask.flatten(1).any(1) & other.flatten(1).any(1)
    if not bool(both.any()):  # one after the other, as after a cut
        return False
    mask, other, votes = mask[both], other[both], votes[:, both]
    wider = functional.max_pool2d(mask.float(), 3, stride=1, padding=1) > 0
    touching = (wider & other).flatten(1).any(1).float().mean()
    distance = (_mean_vote(votes, mask) - _mean_vote(votes, other)).abs()
    return bool((distance < MAX_VOTE_DISTANCE).all()) and float(touching) >= MIN_TOUCHING


def _mean_vote(votes: Tensor, mask: Tensor) -> Tensor:
    """Mean [2] of votes [2, ...] under a mask bool [...]."""
    return votes[:, mask].mean(1)


def without_specks(masks: Tensor, votes: Tensor) -> Tensor:
    """Masks without pieces that are small beside the largest, and either tiny or somebody else's.

    A head that something in front of it cuts off stays: it votes for its person's middle.

    Args:
        masks: [F, h, w], 0 to 1.
        votes: [2, F, h, w], shares of the picture.
    """
    cleaned = masks.clone()
    for mask, frame_votes in zip(cleaned, votes.unbind(1), strict=True):
        pieces, count = ndimage.label((mask > 0.5).numpy(), NEIGHBORS)
        if count < 2:
            continue
        sizes = np.bincount(pieces.ravel())[1:]
        largest = int(sizes.argmax())
        center = _mean_vote(frame_votes, torch.from_numpy(pieces == largest + 1))
        for number in np.flatnonzero(sizes < MAX_SPECK * sizes[largest]):
            piece = torch.from_numpy(pieces == number + 1)
            elsewhere = bool(
                ((_mean_vote(frame_votes, piece) - center).abs() > MAX_VOTE_DISTANCE).any()
            )
            if sizes[number] < MIN_AREA * mask.numel() or elsewhere:
                mask[piece] = 0.0
    return cleaned
