"""Spoiled articulation cues: what a reading of real lips would get wrong.

Shapes: M cues, T frames of 40 ms, C channels (opening, spread, teeth, tongue).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cavmae.datasets.mixtures.sound_settings import SoundSettings
from cavmae.datasets.stream.rates import VIDEO_RATE

LONGEST_GAP = 0.8  # s: a hand before the mouth, a turn of the head
BREATHING = 0.08  # largest opening of a mouth that breathes
SCALE = 0.3  # largest relative error of a channel's scale


class CueDefects(NamedTuple):
    """Defects of a batch of cues, drawn on the CPU.

    Attributes:
        shift: [M], frames by which a cue is late.
        scale: [M, C], factor of each channel.
        noise: [M, T, C], added.
        breathing: [M, T], added to the opening.
        kept: [M, T], 0 in gaps, else 1.
    """

    shift: Tensor
    scale: Tensor
    noise: Tensor
    breathing: Tensor
    kept: Tensor


def draw_defects(
    settings: SoundSettings, count: int, frames: int, channels: int, rng: torch.Generator
) -> CueDefects:
    """Defects of ``count`` cues; of those that are not spoiled they change nothing."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng)

    spoiled = (uniform(count) < settings.spoiled_prob).float()
    largest_shift = settings.jitter_ms / 1000 * VIDEO_RATE
    sigma = settings.cue_noise * uniform(count) * spoiled
    noise = torch.randn(count, frames, channels, generator=rng) * sigma[:, None, None]
    time = torch.arange(frames) / VIDEO_RATE
    rate, phase = 0.15 + 0.25 * uniform(count, 1), uniform(count, 1)
    breath = (2 * torch.pi * (rate * time + phase)).sin().clamp(min=0)
    breathing = breath * BREATHING * uniform(count, 1) * spoiled[:, None]
    gap = spoiled * (uniform(count) < settings.gap_prob)
    first = uniform(count) * frames
    last = first + uniform(count) * LONGEST_GAP * VIDEO_RATE * gap
    steps = torch.arange(frames)
    in_gap = (steps >= first[:, None]) & (steps < last[:, None])
    return CueDefects(
        shift=(2 * uniform(count) - 1) * largest_shift * spoiled,
        scale=1 + SCALE * (2 * uniform(count, channels) - 1) * spoiled[:, None],
        noise=noise,
        breathing=breathing,
        kept=(~in_gap).float(),
    )


def spoil(cues: Tensor, defects: CueDefects) -> Tensor:
    """Cues [M, T, C] with their scales, gaps, breathing and noise.

    The shift is applied where cues are sampled, which is exact between frames.
    """
    spoiled = cues * defects.scale[:, None] * defects.kept[..., None]
    opening = torch.nn.functional.pad(defects.breathing[..., None], (0, cues.shape[-1] - 1))
    return spoiled + opening + defects.noise
