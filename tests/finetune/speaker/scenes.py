"""A small speaker model, and batches of synthetic scenes with ground truth."""

import dataclasses
from typing import Any

import torch

from cavmae.datasets.stream.transforms import Statistics
from cavmae.finetune.motion.settings import ConvMotionOptions
from cavmae.finetune.separation.config import SoundSeparatorConfig
from cavmae.finetune.separators.settings import UNetOptions
from cavmae.finetune.speaker.config import SpeakerConfig
from cavmae.finetune.speaker.model import SpeakerModel
from cavmae.finetune.speaker.settings import LossSettings
from cavmae.finetune.speaker.task import SpeakerTask
from cavmae.pretrain.config import EncoderConfig
from cavmae.tools.benchmarks.scenes import synthetic_scenes

ENCODER = EncoderConfig(
    image_height=32, image_width=48, audio_frames=64, width=24, heads=2, depth=1,
)  # fmt: skip
SHAPE = SpeakerConfig(
    encoder=ENCODER, slots=5, width=32, heads=2, query_layers=1, slot_layers=2, mask_width=16,
    key_frames=2, motion_height=16, motion_width=24, motion=ConvMotionOptions(width=8, depth=1),
    sound=SoundSeparatorConfig(UNetOptions(width=4), width=32, cue_layers=2),
)  # fmt: skip
SAMPLES = 64 * 160


def model(seed: int = 0, **changes: Any) -> SpeakerModel:
    torch.manual_seed(seed)
    return SpeakerModel(dataclasses.replace(SHAPE, **changes))


def task(
    speaker_model: SpeakerModel | None = None, freeze_voices: bool = False, **losses: Any
) -> SpeakerTask:
    settings = LossSettings(**({"points": 64} | losses))
    return SpeakerTask(
        speaker_model or model(), settings, Statistics(), frozen=False, freeze_voices=freeze_voices
    )


def batch(count: int = 2, people: int = 2, seed: int = 1) -> dict[str, Any]:
    """Scenes of humming people side by side."""
    return synthetic_scenes(SHAPE, count, people, seed)
