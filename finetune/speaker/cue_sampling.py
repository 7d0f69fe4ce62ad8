"""Cues drawn from what is known of a scene: for training, and for evaluation with a cue."""

import torch
from torch import Tensor

from cavmae.finetune.speaker.cues import KINDS, CueKind, Cues, no_cues, region_of
from cavmae.finetune.speaker.matcher import People

JITTER = 0.05  # of the size of a box: nobody draws it exactly
LEAST = 16  # pixels of somebody that make a cue


def draw_cues(
    people: People,
    masks: Tensor,
    target: Tensor,
    voice: Tensor,
    known_voice: Tensor,
    grid: tuple[int, int],
    share: float,
    kinds: tuple[CueKind, ...] = KINDS[1:],
) -> tuple[Cues, Tensor]:
    """A cue for some of the clips, of a kind drawn among those that are possible.

    Args:
        people: who is there.
        masks: bool [N, P, F, H, W].
        target: int64 [N], whom a cue means.
        voice: [N, fbank frames, mel], normalised fbank of that person's voice elsewhere.
        known_voice: bool [N], whether there is any.
        grid: rows and columns of tokens of a frame.
        share: of clips that get one.
        kinds: of cues.

    Returns:
        the cues; and int64 [N], who is meant, -1 where there is no cue.
    """
    n = len(target)
    device = masks.device
    rows = torch.arange(n, device=device)
    own = masks[rows, target]  # [N, F, H, W]
    sizes = own.flatten(2).sum(-1)
    frame = (torch.rand(sizes.shape, device=device) + (sizes >= LEAST)).argmax(1)
    shown = own[rows, frame]
    seen = people.masked[rows, target] & (sizes[rows, frame] >= LEAST)
    possible = torch.stack(
        [known_voice if kind == "voice" else seen for kind in KINDS[1:]], dim=1
    ) & torch.tensor([kind in kinds for kind in KINDS[1:]], device=device)
    wanted = (torch.rand(n, device=device) < share) & possible.any(1)
    kind = (torch.rand(possible.shape, device=device) + possible).argmax(1) + 1
    kind = torch.where(wanted, kind, 0)
    if not bool(wanted.any()):
        empty = no_cues(n, grid, (voice.shape[1], voice.shape[2]), device)
        return empty._replace(voice=voice), torch.full_like(target, -1)

    box = _boxes(shown)
    size = (box[:, 2:] - box[:, :2]).repeat(1, 2)
    rough = (box + JITTER * size * (2 * torch.rand_like(box) - 1)).clamp(0, 1)
    rough = torch.cat([torch.minimum(rough[:, :2], rough[:, 2:]), rough[:, 2:]], dim=1)
    place = torch.multinomial(shown.flatten(1).float() + 1e-9, 1)[:, 0]
    height, width = shown.shape[1:]
    point = torch.stack([(place % width + 0.5) / width, (place // width + 0.5) / height], dim=1)
    place_of = {"box": rough, "point": point.repeat(1, 2), "mask": box}
    covered = torch.nn.functional.adaptive_avg_pool2d(shown[:, None].float(), grid)[:, 0]
    cues = no_cues(n, grid, (voice.shape[1], voice.shape[2]), device)
    for name, told in place_of.items():
        here = (kind == KINDS.index(name))[:, None]
        region = covered if name == "mask" else region_of(told, grid)
        cues = cues._replace(
            box=torch.where(here, told, cues.box),
            region=torch.where(here[:, :, None], region, cues.region),
        )
    cues = cues._replace(kind=kind, frame=torch.where(wanted, frame, 0), voice=voice)
    return cues, torch.where(wanted, target, -1)


def _boxes(masks: Tensor) -> Tensor:
    """Boxes around masks [N, H, W] as shares of the frame: [N, 4]; all of it around nothing."""
    found = []
    for mask in masks:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        height, width = mask.shape
        if len(rows) == 0:
            found.append([0.0, 0.0, 1.0, 1.0])
            continue
        found.append(
            [
                float(columns[0]) / width, float(rows[0]) / height,
                float(columns[-1] + 1) / width, float(rows[-1] + 1) / height,
            ]
        )  # fmt: skip
    return torch.tensor(found, device=masks.device)
