"""Random cues from the ground truth of scenes, for training and for evaluation with a cue."""

import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from cavmae.finetune.speaker.cues import KINDS, CueKind, Cues, no_cues, region_of
from cavmae.finetune.speaker.matcher import People

JITTER = 0.05  # of a box's size: users draw boxes inexactly
LEAST_PIXELS = 16  # of a person in a frame that a cue may point at


def draw_cues(
    people: People,
    masks: Tensor,
    target: Tensor,
    voice: Tensor,
    known_voice: Tensor,
    grid: tuple[int, int],
    cue_prob: float,
    kinds: tuple[CueKind, ...] = KINDS[1:],
) -> tuple[Cues, Tensor]:
    """Random cues for some of the clips, of a random kind among the possible ones.

    Args:
        people: ground truth of the people.
        masks: bool [N, P, F, H, W].
        target: int64 [N], the person that a cue points at.
        voice: [N, fbank frames, mel], normalised fbank of that person's voice in another clip.
        known_voice: bool [N], whether there is such a voice.
        grid: rows and columns of tokens of a frame.
        cue_prob: probability that a clip gets a cue.
        kinds: of cues to draw from.

    Returns:
        the cues; and int64 [N], their targets, -1 without a cue.
    """
    n = len(target)
    device = masks.device
    rows = torch.arange(n, device=device)
    target_masks = masks[rows, target]  # [N, F, H, W]
    sizes = target_masks.flatten(2).sum(-1)
    frame = (torch.rand(sizes.shape, device=device) + (sizes >= LEAST_PIXELS)).argmax(1)
    frame_masks = target_masks[rows, frame]  # [N, H, W]
    is_visible = people.masked[rows, target] & (sizes[rows, frame] >= LEAST_PIXELS)
    possible = torch.stack(
        [known_voice if kind == "voice" else is_visible for kind in KINDS[1:]], dim=1
    ) & torch.tensor([kind in kinds for kind in KINDS[1:]], device=device)
    has_cue = (torch.rand(n, device=device) < cue_prob) & possible.any(1)
    kind = (torch.rand(possible.shape, device=device) + possible).argmax(1) + 1
    kind = torch.where(has_cue, kind, 0)
    if not bool(has_cue.any()):
        empty = no_cues(n, grid, (voice.shape[1], voice.shape[2]), device)
        return empty._replace(voice=voice), torch.full_like(target, -1)

    height, width = frame_masks.shape[1:]
    is_empty = ~frame_masks.flatten(1).any(1)[:, None, None]
    # torchvision's right and bottom edges are inclusive.
    edges = masks_to_boxes(frame_masks | is_empty) + torch.tensor([0, 0, 1, 1], device=device)
    box = edges / torch.tensor([width, height] * 2, device=device)
    size = (box[:, 2:] - box[:, :2]).repeat(1, 2)
    jittered = (box + JITTER * size * (2 * torch.rand_like(box) - 1)).clamp(0, 1)
    top_left = torch.minimum(jittered[:, :2], jittered[:, 2:])
    jittered = torch.cat([top_left, jittered[:, 2:]], dim=1)
    pixel = torch.multinomial(frame_masks.flatten(1).float() + 1e-9, 1)[:, 0]
    point = torch.stack([(pixel % width + 0.5) / width, (pixel // width + 0.5) / height], dim=1)
    box_of_kind = {"box": jittered, "point": point.repeat(1, 2), "mask": box}
    coverage = torch.nn.functional.adaptive_avg_pool2d(frame_masks[:, None].float(), grid)[:, 0]
    cues = no_cues(n, grid, (voice.shape[1], voice.shape[2]), device)
    for name, values in box_of_kind.items():
        is_kind = (kind == KINDS.index(name))[:, None]
        region = coverage if name == "mask" else region_of(values, grid)
        cues = cues._replace(
            box=torch.where(is_kind, values, cues.box),
            region=torch.where(is_kind[:, :, None], region, cues.region),
        )
    cues = cues._replace(kind=kind, frame=torch.where(has_cue, frame, 0), voice=voice)
    return cues, torch.where(has_cue, target, -1)
