"""Cues: a box, a point or a mask in a frame, or a voice, that say who is meant.

Shapes: N clips, F key frames, D width.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from cavmae.common.errors import UsageError

CueKind = Literal["none", "box", "point", "mask", "voice"]
KINDS: tuple[CueKind, ...] = ("none", "box", "point", "mask", "voice")
WAVES = 6  # octaves that a coordinate is told in


class Cues(NamedTuple):
    """One cue for each clip.

    Attributes:
        kind: int64 [N], place in :data:`KINDS`.
        frame: int64 [N], key frame that a box, point or mask lies in.
        box: float [N, 4], left, top, right, bottom as shares of the frame; a point is a box without
            size, a mask has the box around it.
        region: float [N, rows, columns], share of each token's patch that is meant: of a box its
            inside, of a point the patch that it lies in.
        voice: float [N, fbank frames, mel], normalised fbank of a voice; anything for other kinds.
    """

    kind: Tensor
    frame: Tensor
    box: Tensor
    region: Tensor
    voice: Tensor


class CueEncoder(nn.Module):
    """A cue as something added to slot 0.

    Args:
        width: D.
        sound: width of a token of sound.
    """

    def __init__(self, width: int, sound: int):
        super().__init__()
        self.kind = nn.Embedding(len(KINDS), width)
        self.place = nn.Linear(4 * 2 * WAVES, width)
        self.seen = nn.Linear(width, width)
        self.heard = nn.Linear(sound, width)

    def forward(self, cues: Cues, tokens: Tensor, voice: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to slot 0, and what of that a voice is known by: [N, D] each.

        Nothing where there is no cue; of the second, nothing but for a reference voice.

        Args:
            tokens: [N, F, L, D] of the key frames.
            voice: [N, L', sound], tokens of the cue's voice.
        """
        rows = torch.arange(len(tokens), device=tokens.device)
        shown = tokens[rows, cues.frame]
        region = cues.region.flatten(1).to(tokens.dtype)
        region = region / region.sum(1, keepdim=True).clamp(min=1e-6)
        seen = self.seen((region[..., None] * shown).sum(1)) + self.place(_waves(cues.box))
        spatial = ((cues.kind > 0) & (cues.kind < KINDS.index("voice")))[:, None]
        heard = self.heard(voice.mean(1))
        by_voice = (cues.kind == KINDS.index("voice"))[:, None]
        told = self.kind(cues.kind) + spatial * seen + by_voice * heard
        return told * (cues.kind > 0)[:, None], by_voice * heard


def _waves(box: Tensor) -> Tensor:
    """Sines and cosines of coordinates: [N, 4] -> [N, 4 * 2 * WAVES]."""
    rates = torch.pi * 2.0 ** torch.arange(WAVES, device=box.device)
    angles = box[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)


def no_cues(
    count: int, grid: tuple[int, int], fbank: tuple[int, int], device: torch.device
) -> Cues:
    """No cue for any of ``count`` clips.

    Args:
        grid: rows and columns of tokens of a frame.
        fbank: frames and mel bins of a voice.
    """
    zeros = torch.zeros(count, dtype=torch.int64, device=device)
    return Cues(
        zeros,
        zeros,
        torch.zeros(count, 4, device=device),
        torch.zeros(count, *grid, device=device),
        torch.zeros(count, *fbank, device=device),
    )


def region_of(box: Tensor, grid: tuple[int, int]) -> Tensor:
    """Share of each patch that lies in a box; a point has all of its patch.

    Args:
        box: float [N, 4], left, top, right, bottom as shares of the frame.
        grid: rows and columns of patches.

    Returns:
        float [N, rows, columns].

    Raises:
        UsageError: a box that is empty, upside down or outside the picture.
    """
    left, top, right, bottom = box.unbind(1)
    wrong = (left > right) | (top > bottom) | (left < 0) | (top < 0) | (right > 1) | (bottom > 1)
    if bool(wrong.any()):
        told = [round(float(x), 3) for x in box[wrong][0]]
        raise UsageError(
            f"The cue {told} (left, top, right, bottom as shares of the picture) does not lie in "
            "the picture: give shares from 0 to 1."
        )

    def along(first: Tensor, last: Tensor, count: int) -> Tensor:
        edges = torch.arange(count, device=box.device) / count
        inside = torch.minimum(last[:, None], edges + 1 / count) - torch.maximum(
            first[:, None], edges
        )
        point = (last - first < 1e-6)[:, None]
        here = (first[:, None] * count).long().clamp(max=count - 1) == torch.arange(
            count, device=box.device
        )
        return torch.where(point, here.float(), (inside * count).clamp(0, 1))

    return along(top, bottom, grid[0])[:, :, None] * along(left, right, grid[1])[:, None]
