"""An untrained predictor of windows, and a scene for it."""

from collections.abc import Sequence

import numpy as np
import torch

from cavmae.common.boxes import WHOLE, Box
from cavmae.datasets.stream.transforms import Statistics
from cavmae.finetune.inference.predictor import WindowPredictor
from cavmae.finetune.inference.views import WindowView
from tests.finetune.speaker.scenes import ENCODER, SHAPE, model


def make_predictor(**changes: object) -> WindowPredictor:
    speaker = model(**changes)
    with torch.no_grad():
        speaker.state_head[-1].bias.copy_(torch.tensor([3.0, 0.0, -3.0, -3.0]))
    return WindowPredictor(speaker.eval(), Statistics(-6.0, 4.0))


def scene() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    height, width = ENCODER.image_size
    frames = rng.integers(0, 255, size=(SHAPE.frames, height, width, 3)).astype(np.uint8)
    return frames, rng.normal(size=SHAPE.samples).astype(np.float32) * 0.1


def view_of(
    predictor: WindowPredictor, frames: Sequence[np.ndarray] | np.ndarray, box: Box = WHOLE
) -> WindowView:
    """View of a region of the frames of a window, uint8 [h, w, 3] each."""
    return WindowView(
        box,
        (frames[0].shape[0], frames[0].shape[1]),
        torch.stack([predictor.sizes.motion_of(frame, box) for frame in frames]),
        [predictor.sizes.key_of(frames[key], box) for key in predictor.keys],
    )
