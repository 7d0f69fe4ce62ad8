"""Settings of `cavmae predict`. Imports no PyTorch."""

import dataclasses

from cavmae.common.errors import UsageError
from cavmae.finetune.events.config import Mode


@dataclasses.dataclass(frozen=True)
class PredictSettings:
    """Options of the prediction of events over time.

    Args:
        mode: modalities that are used, as for `cavmae evaluate`; None: those of fine-tuning. A
            model of both modalities takes recordings that have only one in the mode
            ``missing_audio`` or ``missing_video``.
        frames: of a window, as for `cavmae evaluate`: evenly spaced, and averaged by a model of
            one frame; None: as many as the model takes at once.
        window: length of a window in seconds; None: the model's. Windows that are shorter than
            the model's length are padded, as clips in training.
        hop: step from a window to the next, as a fraction of a window; less is slower and finer
            in time.
        top: number of the most probable classes that are listed.
        classes: that are listed; empty: all. The table of probabilities has all in any case.
        threshold: probability from which a class counts as present.
        video_stream: number of the video stream to read, as `ffprobe` counts the streams; empty:
            the one that players show.
        audio_stream: number of the audio stream; empty: the one that players play with the video.
        max_missing: largest fraction of the frames, and of the audio packets, that may fail to
            decode; above it, the recording is refused.
    """

    mode: Mode | None = None
    frames: int | None = None
    window: float | None = None
    hop: float = 0.5
    top: int = 5
    classes: tuple[str, ...] = ()
    threshold: float = 0.5
    video_stream: int | None = None
    audio_stream: int | None = None
    max_missing: float = 0.1

    def __post_init__(self) -> None:
        if self.frames is not None and self.frames < 1:
            raise UsageError(f"--frames {self.frames}: at least 1.")
        if not 0.05 <= self.hop <= 1:
            raise UsageError(f"--hop {self.hop} is not from 0.05 to 1 of a window.")
        if self.top < 1:
            raise UsageError(f"--top {self.top}: at least 1.")
        if not 0 < self.threshold < 1:
            raise UsageError(f"--threshold {self.threshold} is not between 0 and 1.")
        if not 0 <= self.max_missing < 1:
            raise UsageError(f"--max-missing {self.max_missing} is not a fraction below 1.")
