"""Configuration of the event classifier. Imports no PyTorch."""

import dataclasses
from typing import Literal

from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.finetune.laterals.settings import LateralOptions, NoLateralOptions
from cavmae.finetune.motion.settings import ConvMotionOptions, MotionOptions
from cavmae.pretrain.config import EncoderConfig

Modalities = Literal["multimodal", "audio_only", "video_only"]
Mode = Literal["multimodal", "audio_only", "video_only", "missing_audio", "missing_video"]
MOST_CLASSES = 65536


@dataclasses.dataclass(frozen=True)
class EventConfig:
    """Configuration of an event classifier.

    Args:
        encoder: configuration of the encoder.
        classes: names of the classes, in the order of the logits. Published weights hold no names:
            `cavmae convert` numbers their classes from 0, unless it gets a file of labels.
        pooling: of the encoder's tokens: their ``mean``, or ``attention`` of a learned query.
        modalities: that the classifier was fine-tuned on.
        multi_label: whether a clip may have several classes: sigmoid instead of softmax.
        motion_height: height of the grey frames of the motion pathway in pixels, a multiple of 4
            from 16 on; 0: there is no motion pathway.
        motion_width: their width, likewise.
        motion: pathway over 25 grey frames a second of the audio's length.
        lateral: connections of audio, motion and frames.

    Raises:
        ValueError: classes that make no model.
    """

    encoder: EncoderConfig
    classes: tuple[str, ...]
    pooling: Literal["mean", "attention"] = "mean"
    modalities: Modalities = "multimodal"
    multi_label: bool = True
    motion_height: int = 0
    motion_width: int = 0
    motion: MotionOptions = ConvMotionOptions()
    lateral: LateralOptions = NoLateralOptions()

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= MOST_CLASSES:
            raise ValueError(f"classes: {len(self.classes)}, not from 1 to {MOST_CLASSES}.")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes: a name occurs twice.")
        self._check_pathways()

    def _check_pathways(self) -> None:
        joins_audio = not isinstance(self.lateral, NoLateralOptions)
        if self.motion_size is None:
            if joins_audio:
                raise ValueError(
                    f"lateral {self.lateral.name} connects audio with a motion pathway: set "
                    "motion_height and motion_width."
                )
            return
        if self.modalities == "audio_only" or (self.modalities == "video_only" and joins_audio):
            raise ValueError(
                f"modalities {self.modalities}: a motion pathway needs video, and lateral "
                f"{self.lateral.name} {'audio, too' if joins_audio else 'takes no audio'}."
            )
        height, width = self.encoder.image_size
        for name, largest in (("motion_height", height), ("motion_width", width)):
            value = getattr(self, name)
            if value % 4 or not 16 <= value <= largest:
                raise ValueError(
                    f"{name} {value}: a multiple of 4 from 16 to {largest}, the size of the frames."
                )
        if self.motion_height * width != self.motion_width * height:
            raise ValueError(
                f"motion_height {self.motion_height}, motion_width {self.motion_width}: grey "
                f"frames show what the frames of {height}x{width} pixels do, in their shape."
            )
        rows, frames = self.encoder.audio_frames, self.encoder.frames
        if rows % 4 or self.motion_frames % frames:
            raise ValueError(
                f"encoder.audio_frames {rows}, encoder.frames {frames}: a motion pathway needs "
                "whole grey frames of 40 ms, and as many for each frame."
            )

    @property
    def motion_size(self) -> tuple[int, int] | None:
        """(height, width) of the grey frames in pixels; None: there is no motion pathway."""
        size = self.motion_height, self.motion_width
        return None if size == (0, 0) else size

    @property
    def motion_frames(self) -> int:
        """T, the number of grey frames of a clip."""
        return self.encoder.audio_frames * VIDEO_RATE // 100


def numbered_classes(count: int) -> tuple[str, ...]:
    """Names of classes of which only the number is known."""
    return tuple(map(str, range(count)))
