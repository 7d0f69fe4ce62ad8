"""A small speaker model, and batches of made scenes whose truth is known."""

import dataclasses
from typing import Any

import torch

from cavmae.datasets.transforms import Statistics
from cavmae.finetune.settings import LossSettings
from cavmae.finetune.speaker import SpeakerConfig, SpeakerModel
from cavmae.finetune.speakers import SpeakerTask
from cavmae.pretrain.encoder import CAVMAEConfig

ENCODER = CAVMAEConfig(
    image_size=(32, 48), audio_size=(128, 64), width=24, heads=2, depth=1,
    decoder_width=16, decoder_heads=2, decoder_depth=1,
)  # fmt: skip
SHAPE = SpeakerConfig(
    encoder=ENCODER, slots=5, width=32, heads=2, query_layers=1, slot_layers=2, voice_layers=1,
    mask_width=16, keys=2, motion_size=(16, 24), motion_width=8, motion_blocks=1,
    separator_width=4,
)  # fmt: skip
SAMPLES = 64 * 160


def model(seed: int = 0, **changes: Any) -> SpeakerModel:
    torch.manual_seed(seed)
    return SpeakerModel(dataclasses.replace(SHAPE, **changes))


def task(one: SpeakerModel | None = None, **losses: Any) -> SpeakerTask:
    how = LossSettings(**({"points": 64} | losses))
    return SpeakerTask(one or model(), how, Statistics(), frozen=False)


def batch(count: int = 2, people: int = 2, seed: int = 1) -> dict[str, Any]:
    """Scenes of people who stand side by side and hum."""
    chance = torch.Generator().manual_seed(seed)
    height, width = ENCODER.image_size
    masks = torch.zeros(count, people, SHAPE.keys, height, width, dtype=torch.bool)
    for person in range(people):
        left = person * width // people
        masks[:, person, :, 8:, left + 2 : left + width // people - 2] = True
    time = torch.arange(SAMPLES) / 16_000
    pitch = 150 + 600 * torch.arange(people)[None, :] + 10 * torch.arange(count)[:, None]
    voices = 0.05 * torch.sin(2 * torch.pi * pitch[..., None] * time)
    noise = 0.005 * torch.randn(count, SAMPLES, generator=chance)
    return {
        "key": [f"s{n}" for n in range(count)],
        "labels": [(), ("talking", "child")] + [()] * (count - 2),
        "frames": torch.randint(
            256, (count, SHAPE.keys, height, width, 3), generator=chance
        ).byte(),
        "motion": torch.randint(
            256, (count, SHAPE.frames, *SHAPE.motion_size), generator=chance
        ).byte(),
        "mixture": voices.sum(1) + noise,
        "voices": voices,
        "rest": noise,
        "reference": voices[:, 0].clone(),
        "masks": masks,
        "present": torch.ones(count, people, dtype=torch.bool),
        "speaking": torch.ones(count, people, dtype=torch.bool),
        "masked": torch.ones(count, people, dtype=torch.bool),
        "target": torch.zeros(count, dtype=torch.int64),
    }
