"""Synthetic scenes with ground truth, as batches of the composing stream."""

from typing import Any

import torch

from cavmae.datasets.mixtures.speech_bank import CUE_CHANNELS
from cavmae.finetune.speaker.config import SpeakerConfig


def synthetic_scenes(
    shape: SpeakerConfig, count: int = 2, people: int = 2, seed: int = 1
) -> dict[str, Any]:
    """Batch of scenes of people who stand side by side and hum.

    Args:
        shape: configuration of the model that the batch is for.
        count: scenes.
        people: in each scene.
        seed: of the frames and the noise.
    """
    rng = torch.Generator().manual_seed(seed)
    height, width = shape.encoder.image_size
    # [scenes, people, key frames, height, width]
    masks = torch.zeros(count, people, shape.key_frames, height, width, dtype=torch.bool)
    for person in range(people):
        left = person * width // people
        masks[:, person, :, 8:, left + 2 : left + width // people - 2] = True
    time = torch.arange(shape.samples) / 16_000
    pitch = 150 + 600 * torch.arange(people)[None, :] + 10 * torch.arange(count)[:, None]
    voices = 0.05 * torch.sin(2 * torch.pi * pitch[..., None] * time)
    openings = torch.arange(people)[None, :, None, None] / people  # a mouth for each pitch
    noise = 0.005 * torch.randn(count, shape.samples, generator=rng)
    return {
        "key": [f"s{n}" for n in range(count)],
        "labels": [(), ("talking", "child"), *[()] * count][:count],
        "frames": torch.randint(
            256, (count, shape.key_frames, height, width, 3), generator=rng
        ).byte(),
        "motion": torch.randint(
            256, (count, shape.frames, *shape.motion_size), generator=rng
        ).byte(),
        "mixture": voices.sum(1) + noise,
        "voices": voices,
        "residual": noise,
        "reference": voices[:, 0].clone(),
        "masks": masks,
        "present": torch.ones(count, people, dtype=torch.bool),
        "speaking": torch.ones(count, people, dtype=torch.bool),
        "masked": torch.ones(count, people, dtype=torch.bool),
        "articulation": openings.expand(count, -1, shape.frames, CUE_CHANNELS),
        "articulated": torch.ones(count, people, dtype=torch.bool),
        "target": torch.zeros(count, dtype=torch.int64),
    }
