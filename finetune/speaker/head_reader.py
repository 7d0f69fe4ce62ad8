"""Motion of each slot's head, read from crops that follow it.

Lips are a few pixels of a frame, and their size and place differ from person to person. In crops
around heads, cut by the masks from larger grey frames, they are alike: a pathway learns to read
them from a tenth of the scenes that whole frames need (docs/experiments/lips.md).

Shapes: N clips, Q slots, M heads, T frames of h x w pixels, F key frames, s side of a crop, D
width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.common.interpolation import average_squares, interpolate_linearly
from cavmae.finetune.motion.base import MotionPathway
from cavmae.finetune.motion.settings import MOTION, MotionOptions
from cavmae.finetune.speaker.model_tensors import MASK_STRIDE
from cavmae.finetune.speaker.motion_reader import MotionReader

SIDE = 1.3  # of a crop, in widths of the head
MIDDLE = 1.05  # of a crop below the top of the head, in its widths: mouths lie at 0.8 to 1.35
STRAY = 0.01  # fraction of a mask that may lie apart from the person, on each side
LEAST_WIDTH = 0.02  # of a head, as a fraction of the frame
JITTER = 0.12  # widths of the head by which crops move in training, and their relative size
NARROWEST = 0.3  # widths of the head that the top row of a head has at least
STEPS = 6  # towards a width that agrees with the rows of the head


class HeadReader(nn.Module):
    """Motion of each slot, from crops of the grey frames around its head.

    A crop follows the head from key frame to key frame, at one size. In training it is moved and
    scaled a little, as imprecise masks do.

    Args:
        options: of the pathway over the crops.
        size: s.
        width: D.
    """

    def __init__(self, options: MotionOptions, size: int, width: int):
        super().__init__()
        self.size = size
        self.pathway: MotionPathway = MOTION.build(options)
        self.reader = MotionReader(self.pathway.channels, width)

    def forward(self, grey: Tensor, masks: Tensor) -> Tensor:
        """Motion embedding of each slot in each frame; 0 of a slot without a mask.

        Args:
            grey: uint8 [N, T, h, w].
            masks: [N, Q, F, h', w'], 0 to 1, of key frames spread evenly over the T frames.

        Returns:
            [N, Q, T, D].
        """
        covered = (masks > 0.5).flatten(2).any(2)  # [N, Q]
        # Without any head, every weight still gets a gradient, for which DDP waits.
        covered[0, 0] |= ~covered.any()
        slots = covered.any(0).nonzero()[:, 0]
        # A CPU keeps no more in memory, without gradients, than one slot takes.
        is_split = grey.device.type == "cpu" and not torch.is_grad_enabled()
        groups = slots.split(1) if is_split else [slots]
        grey = grey.float()  # once for all groups
        embeds, places = [], []
        for group in groups:
            chosen = covered[:, group]
            crops, mask_crops = self.crop(grey, masks[:, group], chosen)
            embeds.append(self.reader(self.pathway(crops), mask_crops)[:, 0])  # [M, T, D]
            clips, columns = chosen.nonzero(as_tuple=True)
            places.append(torch.stack([clips, group[columns]]))
        embed, place = torch.cat(embeds), torch.cat(places, dim=1)
        motion = embed.new_zeros(*covered.shape, *embed.shape[1:])
        return motion.index_put((place[0], place[1]), embed)

    @torch.no_grad()
    def crop(self, grey: Tensor, masks: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Crops of frames and masks around the heads of some slots.

        Args:
            grey, masks: as in :meth:`forward`.
            chosen: bool [N, Q], M of them.

        Returns:
            float32 [M, T, s, s], 0 to 255; and [M, 1, F, s / 4, s / 4], 0 to 1.
        """
        with torch.autocast(grey.device.type, enabled=False):
            frames = grey.shape[1]
            boxes = _followed_boxes(masks.float())  # [N, Q, F, 4]
            if self.training:
                boxes = _jittered(boxes)
            # Twice the resolution, averaged: large heads shrink by more than half.
            followed = interpolate_linearly(boxes.mT, frames).permute(0, 3, 1, 2)  # [N, T, Q, 4]
            # Slots lie below one another, so that a frame is not copied for each of them.
            points = _grid(followed.flatten(0, 1), 2 * self.size).flatten(1, 2)
            sampled = functional.grid_sample(
                grey.float().flatten(0, 1)[:, None], points, padding_mode="border",
                align_corners=False,
            )  # fmt: skip
            crops = average_squares(sampled, 2).unflatten(0, (-1, frames))
            crops = crops[:, :, 0].unflatten(2, (-1, self.size)).transpose(1, 2)  # [N, Q, T, s, s]
            mask_crops = functional.grid_sample(
                masks.float().flatten(0, 2)[:, None], _grid(boxes, self.size // 4).flatten(0, 2),
                align_corners=False,
            )  # fmt: skip
            mask_crops = mask_crops[:, 0].unflatten(0, masks.shape[:3])[chosen][:, None]
            return crops[chosen], mask_crops


def _followed_boxes(masks: Tensor) -> Tensor:
    """Boxes around heads in key frames: [N, Q, F, h, w] -> [N, Q, F, 4].

    They have one size; where a slot is not seen, it is where it is seen next to that.

    Returns:
        middle x and y, width and height, as fractions of the frame.
    """
    height, width = masks.shape[-2:]
    heads, seen = head_boxes(masks.flatten(0, 2) > 0.5)
    heads, seen = heads.unflatten(0, masks.shape[:3]), seen.unflatten(0, masks.shape[:3])
    keys = torch.arange(masks.shape[2], device=masks.device)
    distance = (keys[:, None] - keys).abs() + (~seen[..., None, :]) * len(keys)  # [N, Q, F, F]
    nearest = distance.argmin(-1, keepdim=True).expand(-1, -1, -1, heads.shape[-1])
    middle, top, side = heads.gather(2, nearest).unbind(-1)
    side = side.median(2, keepdim=True).values.expand_as(side).clamp(min=LEAST_WIDTH * width)
    x, y = (middle + 0.5) / width, (top + MIDDLE * side) / height
    return torch.stack([x, y, SIDE * side / width, SIDE * side / height], dim=-1)


def _jittered(boxes: Tensor) -> Tensor:
    """Boxes [N, Q, F, 4], each slot's moved and scaled at random."""
    n, q = boxes.shape[:2]
    draw = 2 * torch.rand(n, q, 1, 3, device=boxes.device) - 1
    moved = boxes[..., :2] + draw[..., :2] * (JITTER / SIDE) * boxes[..., 2:]
    return torch.cat([moved, boxes[..., 2:] * (2 * JITTER * draw[..., 2:]).exp()], dim=-1)


def _grid(boxes: Tensor, size: int) -> Tensor:
    """Sampling points of boxes [..., 4]: [..., size, size, 2], x and y from -1 to 1."""
    steps = (torch.arange(size, device=boxes.device) + 0.5) / size - 0.5
    x = 2 * (boxes[..., 0, None] + boxes[..., 2, None] * steps) - 1  # [..., size]
    y = 2 * (boxes[..., 1, None] + boxes[..., 3, None] * steps) - 1
    return torch.stack(torch.broadcast_tensors(x[..., None, :], y[..., :, None]), dim=-1)


def pooled_masks(masks: Tensor) -> Tensor:
    """Masks of any type [N, Q, F, H, W] at the resolution of predicted ones: float, H / 4 x W / 4.

    Sides that are no multiples of 4 are rounded down.
    """
    size = masks.shape[-2] // MASK_STRIDE, masks.shape[-1] // MASK_STRIDE
    pooled = functional.adaptive_avg_pool2d(masks.float().flatten(0, 1), size)
    return pooled.unflatten(0, masks.shape[:2])


def head_boxes(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Place and width of the head of each mask.

    The head is the top of the mask, as wide as its own rows: from half the width of the whole mask
    on, the width becomes that of the rows that a head of this width has, until the two agree.

    Args:
        masks: bool [M, H, W].

    Returns:
        float [M, 3]: horizontal middle, top and width in pixels; and bool [M], whether the mask
        covers anything.
    """
    rows = masks.sum(2).float()  # [M, H]
    columns = masks.sum(1).float()  # [M, W]
    top = _quantile(rows, STRAY)
    width = (_quantile(columns, 1 - STRAY) - _quantile(columns, STRAY) + 1) / 2
    y = torch.arange(masks.shape[1], device=masks.device)
    for _ in range(STEPS):
        inside = _within(y, top, 1.1 * width) & (rows > 0)
        widths = rows.masked_fill(~inside, torch.nan).nanquantile(0.7, dim=1)
        width = torch.where(widths.isnan(), width, (width + widths) / 2)
        # A speck above the head is narrower than a part of it.
        top = (rows >= NARROWEST * width[:, None]).int().argmax(1).float()
    head = masks & _within(y, top, 1.2 * width)[:, :, None]
    middle = _quantile(head.sum(1).float(), 0.5)
    return torch.stack([middle, top, width], dim=1), rows.sum(1) > 0


def _quantile(counts: Tensor, fraction: float) -> Tensor:
    """Position at which counts [M, K] have added up to a fraction of their sum: float [M]."""
    below = counts.cumsum(1) < fraction * counts.sum(1, keepdim=True)
    return below.sum(1).float()


def _within(y: Tensor, top: Tensor, height: Tensor) -> Tensor:
    """Which rows lie between: bool [M, H]; at least two do."""
    return (y >= top[:, None]) & (y < (top + height.round().clamp(min=2))[:, None])
