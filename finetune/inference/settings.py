"""Settings of `cavmae separate`."""

import dataclasses
from typing import Literal

from cavmae.common.errors import UsageError


@dataclasses.dataclass(frozen=True)
class SeparateSettings:
    """Options of separation and of the files it writes.

    Args:
        second_look: run the model again on a crop around people who are small in the frame.
        hop: step from a window to the next, as a fraction of a window; less is slower and smoother.
        min_seconds: shortest visible time of a person. People who are visible for less (and for
            less than half of a short recording) are dropped with their voices, as false
            detections. A recording of a single window keeps all people.
        rate: sample rate of the WAV files: ``16000`` Hz, or that of the ``input``.
        overlay: write the video with all people outlined and numbered.
        masks: write a mask video for each person.
        height: largest height of these videos in pixels.
        video_stream: number of the video stream to read, as `ffprobe` counts the streams; empty:
            the one that players show.
        audio_stream: number of the audio stream; empty: the one that players play with the video.
        max_missing: largest fraction of the frames, and of the audio packets, that may fail to
            decode; above it, the recording is refused.
    """

    second_look: bool = True
    hop: float = 0.5
    min_seconds: float = 1.5
    rate: Literal["16000", "input"] = "16000"
    overlay: bool = True
    masks: bool = True
    height: int = 720
    video_stream: int | None = None
    audio_stream: int | None = None
    max_missing: float = 0.1

    def __post_init__(self) -> None:
        if not 0.1 <= self.hop <= 0.75:
            raise UsageError(f"--hop {self.hop} is not from 0.1 to 0.75 of a window.")
        if self.min_seconds < 0:
            raise UsageError(f"--min-seconds {self.min_seconds} cannot be negative.")
        if self.height < 64:
            raise UsageError(f"--height {self.height}: at least 64 pixels.")
        if not 0 <= self.max_missing < 1:
            raise UsageError(f"--max-missing {self.max_missing} is not a fraction below 1.")
