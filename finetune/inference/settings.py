"""Settings of `cavmae separate`."""

import dataclasses
from typing import Literal

from cavmae.common.errors import UsageError


@dataclasses.dataclass(frozen=True)
class SeparateSettings:
    """How a recording is taken apart, and what is written.

    Args:
        second_look: look again, closely, at people who are small in the picture.
        hop: from a window to the next, as a share of a window; less is slower and smoother.
        min_seconds: whoever is seen for a shorter time in all (and for less than half of a short
            recording) is left out, and so is their voice: somebody in a single window may be a
            mistake. In a recording of one window everybody stays.
        rate: of the WAV files: ``16000`` Hz, or that of the ``input``.
        overlay: write the video with everybody outlined and numbered.
        masks: write a mask video for each person.
        height: of these videos in pixels at most.
        video_stream: number of the video stream to read, as `ffprobe` counts the streams; empty:
            the one that players show.
        audio_stream: likewise of the audio stream; empty: the one that players play with it.
        max_missing: share of the recording's frames, and of its sound, that may fail to decode;
            above it, the recording is not taken apart.
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
            raise UsageError(f"--max-missing {self.max_missing} is not a share below 1.")
