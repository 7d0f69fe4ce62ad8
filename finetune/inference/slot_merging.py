"""Merging of the slots of a window into people.

Shapes: Q' slots without the residual, F key frames of h x w.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from cavmae.finetune.inference.settings import Thresholds
from cavmae.finetune.speaker.model_tensors import NONE, SlotPredictions

NEIGHBORS = np.ones((3, 3))  # of a pixel, with its corners
CERTAIN = 20.0  # logit of what is certain
MAX_COLUMN_DISTANCE = 0.1  # horizontal, of centers in one column, over the width of both parts


def merge_slots(
    masks: Tensor, votes: Tensor, presence_prob: Tensor, cued: bool, thresholds: Thresholds
) -> list[list[int]]:
    """Group slots into people, by descending presence probability.

    Two slots are one person if their masks overlap (IoU), or if the masks touch and their pixels
    vote for the same center (:mod:`cavmae.finetune.speaker.center_voting`), or for two in one
    column that are near, given the size of both together. The centers of two people, one
    right in front of the other, are mostly further apart than those of a head and its trunk
    (docs/benchmarks/box-model.md).

    Args:
        masks: [Q', F, h, w], 0 to 1.
        votes: [2, F, h, w], center votes (x, y) as fractions of the frame.
        presence_prob: [Q'].
        cued: slot 0, the cued person, comes first, whatever its presence probability.
        thresholds: of slots and parts.

    Returns:
        the slots of each person, both in that order.
    """
    binary = masks > 0.5
    order = presence_prob.argsort(descending=True).tolist()
    if cued:
        order.sort(key=lambda slot: slot != 0)
    people: list[list[int]] = []
    for slot in order:
        if (
            presence_prob[slot] < thresholds.min_presence_prob
            or binary[slot].float().mean() < thresholds.min_area_fraction
        ):
            continue
        for person in people:
            if _same_person(binary[slot], binary[person].any(0), votes, thresholds):
                person.append(slot)
                break
        else:
            people.append([slot])
    return people


def join_slots(
    predictions: SlotPredictions, groups: Sequence[Sequence[int]], presence_prob: Tensor
) -> SlotPredictions:
    """Predictions of a single clip in which each person has one slot.

    The first slot of a person gets the masks of all of them and the state of the most present one;
    the others hold nobody, so that their lips are not read and they have no voice.

    Args:
        predictions: of one clip.
        groups: slots of each person, of :func:`merge_slots`.
        presence_prob: [Q'].
    """
    if all(len(slots) == 1 for slots in groups):
        return predictions
    masks, states = predictions.masks[-1].clone(), predictions.states[-1].clone()
    for first, *others in groups:
        masks[:, first] = masks[:, [first, *others]].amax(1)
        states[:, first] = states[:, max((first, *others), key=lambda slot: presence_prob[slot])]
        masks[:, others] = -CERTAIN
        states[:, others] = 0.0
        states[:, others, NONE] = CERTAIN
    return predictions._replace(
        masks=[*predictions.masks[:-1], masks], states=[*predictions.states[:-1], states]
    )


def _same_person(mask: Tensor, other: Tensor, votes: Tensor, thresholds: Thresholds) -> bool:
    """Whether two masks bool [F, h, w], neither of them empty, are of one person."""
    if float((mask & other).sum() / (mask | other).sum()) >= thresholds.min_slot_iou:
        return True
    both = mask.flatten(1).any(1) & other.flatten(1).any(1)
    if not bool(both.any()):  # in different frames, as before and after a cut
        return False
    mask, other, votes = mask[both], other[both], votes[:, both]
    wider = functional.max_pool2d(mask.float(), 3, stride=1, padding=1) > 0
    touching = (wider & other).flatten(1).any(1).float().mean()
    if float(touching) < thresholds.min_touching_fraction:
        return False
    x, y = (_mean_vote(votes, mask) - _mean_vote(votes, other)).abs().tolist()
    if max(x, y) < thresholds.max_vote_distance:
        return True
    # A head and its trunk: each votes for a center that is a little nearer to itself.
    width, height = ((mask | other).any(axis).float().mean() for axis in (1, 2))
    return x < MAX_COLUMN_DISTANCE * width and y < thresholds.max_part_distance * height


def _mean_vote(votes: Tensor, mask: Tensor) -> Tensor:
    """Mean [2] of the votes [2, ...] under a mask bool [...]."""
    return votes[:, mask].mean(1)


def without_copies(masks: Tensor, votes: Tensor, thresholds: Thresholds) -> Tensor:
    """Remove masks from key frames in which they lie on another person's body.

    The slot of somebody who leaves within a window often goes on on the body of who remains. Such a
    mask lies mostly inside the other one (``min_slot_iou``), and its pixels vote for another center
    than they do where the person was still there.

    Args:
        masks: [P, F, h, w], 0 to 1, of people.
        votes: [2, F, h, w], center votes (x, y) as fractions of the frame.
        thresholds: of slots and parts.
    """
    binary = masks > 0.5
    areas = binary.flatten(2).sum(2)  # [P, F]
    shared = torch.einsum("pfs,qfs->pqf", *2 * (binary.flatten(2).float(),))
    inside = shared >= thresholds.min_slot_iou * areas[:, None].clamp(min=1)
    inside &= ~torch.eye(len(masks), dtype=torch.bool)[..., None]  # [P, Q, F]: P in Q
    cleaned = masks.clone()
    for copy, other, key in inside.nonzero().tolist():
        own = (areas[copy] > 0) & ~inside[copy].any(0)
        if not bool(own.any()):
            continue
        jump = _jump(binary[copy], votes, key, own)
        others = (areas[other] > 0) & ~inside[other].any(0)
        others[key] = False
        moved = _jump(binary[other], votes, key, others) if bool(others.any()) else 0.0
        if jump > max(moved, thresholds.max_vote_distance):
            cleaned[copy, key] = 0.0
    return cleaned


def _jump(mask: Tensor, votes: Tensor, key: int, frames: Tensor) -> float:
    """Distance along an axis of a mask's [F, h, w] center in a key frame from that in others."""
    here = _mean_vote(votes[:, key], mask[key])
    there = _mean_vote(votes[:, frames], mask[frames])
    return float((here - there).abs().max())


def without_specks(masks: Tensor, votes: Tensor, thresholds: Thresholds) -> Tensor:
    """Remove small pieces from masks.

    A piece that is small relative to the largest goes if it is tiny or votes for another center.
    A head that is cut off by an occlusion stays, since it votes for the center of its person.

    Args:
        masks: [F, h, w], 0 to 1.
        votes: [2, F, h, w], center votes (x, y) as fractions of the frame.
        thresholds: of specks.
    """
    cleaned = masks.clone()
    for mask, frame_votes in zip(cleaned, votes.unbind(1), strict=True):
        pieces, count = ndimage.label((mask > 0.5).numpy(), NEIGHBORS)
        if count < 2:
            continue
        sizes = np.bincount(pieces.ravel())[1:]
        largest = int(sizes.argmax())
        center = _mean_vote(frame_votes, torch.from_numpy(pieces == largest + 1))
        for number in np.flatnonzero(sizes < thresholds.max_speck_fraction * sizes[largest]):
            piece = torch.from_numpy(pieces == number + 1)
            distance = (_mean_vote(frame_votes, piece) - center).abs()
            elsewhere = bool((distance > thresholds.max_vote_distance).any())
            if sizes[number] < thresholds.min_area_fraction * mask.numel() or elsewhere:
                mask[piece] = 0.0
    return cleaned
