"""Cues that select the target person: a box, point or mask in a key frame, or a voice; class hints.

Shapes: N clips, F key frames, D width.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.common.errors import UsageError

CueKind = Literal["none", "box", "point", "mask", "voice"]
KINDS: tuple[CueKind, ...] = ("none", "box", "point", "mask", "voice")
WAVES = 6  # octaves of the Fourier features of a coordinate


class Cues(NamedTuple):
    """One cue for each clip.

    Attributes:
        kind: int64 [N], index in :data:`KINDS`.
        frame: int64 [N], key frame of a box, point or mask.
        box: float [N, 4], left, top, right, bottom as fractions of the frame; a point is a box of
            no size, a mask has the box around it.
        region: float [N, rows, columns], fraction of each token's patch that the cue covers; a
            point covers the whole patch that it lies in.
        voice: float [N, fbank frames, mel], normalised fbank of a voice; ignored for other kinds.
    """

    kind: Tensor
    frame: Tensor
    box: Tensor
    region: Tensor
    voice: Tensor


class CueEncoder(nn.Module):
    """Embeddings of cues, to be added to slot 0.

    Args:
        width: D.
        audio_width: width of an audio token.
    """

    def __init__(self, width: int, audio_width: int):
        super().__init__()
        self.kind_embed = nn.Embedding(len(KINDS), width)
        self.box_proj = nn.Linear(4 * 2 * WAVES, width)
        self.region_proj = nn.Linear(width, width)
        self.voice_proj = nn.Linear(audio_width, width)

    def forward(self, cues: Cues, tokens: Tensor, voice: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding of each cue, and its part of a reference voice: [N, D] each.

        The first is 0 without a cue, the second is 0 without a reference voice.

        Args:
            tokens: [N, F, L, D] of the key frames.
            voice: [N, L', audio_width], tokens of the cue's voice.
        """
        rows = torch.arange(len(tokens), device=tokens.device)
        frame_tokens = tokens[rows, cues.frame]
        region = cues.region.flatten(1).to(tokens.dtype)
        region = region / region.sum(1, keepdim=True).clamp(min=1e-6)
        patches = (region[..., None] * frame_tokens).sum(1)
        spatial_embed = self.region_proj(patches) + self.box_proj(_fourier_features(cues.box))
        is_spatial = ((cues.kind > 0) & (cues.kind < KINDS.index("voice")))[:, None]
        voice_embed = self.voice_proj(voice.mean(1))
        is_voice = (cues.kind == KINDS.index("voice"))[:, None]
        embed = self.kind_embed(cues.kind) + is_spatial * spatial_embed + is_voice * voice_embed
        return embed * (cues.kind > 0)[:, None], is_voice * voice_embed


class HintEmbedding(nn.Embedding):
    """Embedding of a class number; 0: no class.

    Classes that are added to a trained model have a parameter of their own, so that all others can
    be frozen. A model that is loaded has all of them in ``weight``.

    Args:
        classes: number of classes.
        width: D.
    """

    added: nn.Parameter | None

    def __init__(self, classes: int, width: int):
        super().__init__(classes + 1, width)
        self.register_parameter("added", None)

    def add_classes(self, count: int) -> None:
        """Append classes, which start as no class."""
        self.added = nn.Parameter(self.weight[:1].detach().repeat(count, 1))

    def forward(self, hint: Tensor) -> Tensor:
        """Class numbers int64 [N] -> [N, D]."""
        weight = self.weight if self.added is None else torch.cat([self.weight, self.added])
        return functional.embedding(hint, weight)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *arguments: Any) -> None:
        if self.added is None and f"{prefix}added" in state:
            rows = [state[f"{prefix}weight"], state.pop(f"{prefix}added")]
            state[f"{prefix}weight"] = torch.cat(rows)
        super()._load_from_state_dict(state, prefix, *arguments)


def _fourier_features(box: Tensor) -> Tensor:
    """Fourier features of coordinates: [N, 4] -> [N, 4 * 2 * WAVES]."""
    rates = torch.pi * 2.0 ** torch.arange(WAVES, device=box.device)
    angles = box[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)


def no_cues(
    count: int, grid: tuple[int, int], fbank: tuple[int, int], device: torch.device
) -> Cues:
    """Empty cues of ``count`` clips.

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
    """Fraction of each patch that a box covers; a point covers all of its patch.

    Args:
        box: float [N, 4], left, top, right, bottom as fractions of the frame.
        grid: rows and columns of patches.

    Returns:
        float [N, rows, columns].

    Raises:
        UsageError: a box is upside down or outside the frame.
    """
    left, top, right, bottom = box.unbind(1)
    invalid = (left > right) | (top > bottom) | (left < 0) | (top < 0) | (right > 1) | (bottom > 1)
    if bool(invalid.any()):
        values = [round(float(x), 3) for x in box[invalid][0]]
        raise UsageError(
            f"The cue {values} (left, top, right, bottom as fractions of the frame) lies outside "
            "the frame: give values from 0 to 1."
        )

    def coverage(first: Tensor, last: Tensor, count: int) -> Tensor:
        edges = torch.arange(count, device=box.device) / count
        inside = torch.minimum(last[:, None], edges + 1 / count) - torch.maximum(
            first[:, None], edges
        )
        is_point = (last - first < 1e-6)[:, None]
        patch = (first[:, None] * count).long().clamp(max=count - 1)
        is_patch = patch == torch.arange(count, device=box.device)
        return torch.where(is_point, is_patch.float(), (inside * count).clamp(0, 1))

    return coverage(top, bottom, grid[0])[:, :, None] * coverage(left, right, grid[1])[:, None]
