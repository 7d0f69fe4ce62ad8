"""Settings of `cavmae separate`, and the thresholds that decide its results."""

import dataclasses
import math
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
            detections. A recording of a single window keeps them.
        rate: sample rate of the voices: ``16000`` Hz, or that of the ``input``.
        overlay: write the video with all people outlined and numbered.
        masks: write a mask video for each person.
        height: largest height of these videos in pixels.
        video_stream: number of the video stream to read, as `ffprobe` counts the streams; empty:
            the one that players show.
        audio_stream: number of the audio stream; empty: the one that players play with the video.
        max_missing: largest fraction of the frames, and of the audio packets, that may fail to
            decode; above it, the recording is refused.
        hint: class of the people, one of ``model.classes`` and ``model.add_classes`` of training;
            None: no hint.
        av_offset: seconds by which the sound is ahead of the pictures (below 0: behind them);
            ``auto``: as the lips show, which takes a second pass over a recording whose sound is
            0.03 to 0.3 s off.
    """

    second_look: bool = True
    hop: float = 0.75
    min_seconds: float = 1.5
    rate: Literal["16000", "input"] = "16000"
    overlay: bool = True
    masks: bool = True
    height: int = 720
    video_stream: int | None = None
    audio_stream: int | None = None
    max_missing: float = 0.1
    hint: str | None = None
    av_offset: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if not 0.1 <= self.hop <= 0.75:
            raise UsageError(f"--hop {self.hop} is not from 0.1 to 0.75 of a window.")
        if self.min_seconds < 0:
            raise UsageError(f"--min-seconds {self.min_seconds} cannot be negative.")
        if self.height < 64:
            raise UsageError(f"--height {self.height}: at least 64 pixels.")
        if not 0 <= self.max_missing < 1:
            raise UsageError(f"--max-missing {self.max_missing} is not a fraction below 1.")
        if self.av_offset != "auto" and not (
            isinstance(self.av_offset, int | float) and math.isfinite(self.av_offset)
        ):
            raise UsageError(f"--av-offset {self.av_offset} is neither seconds nor auto.")


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Thresholds that decide which people, masks and speech a separation has.

    Args:
        min_presence_prob: probability from which a slot is a person; more drops faint detections.
        min_voice_prob: presence probability, which is a factor of a voice, below which a slot's
            voice is taken as silence without computing it; 0: all voices are computed.
        min_area_fraction: mean fraction of the frame that a person covers at least; smaller masks
            are false detections. Specks below it are removed from masks.
        min_movement_fraction: least mean movement of a person within 0.2 s, as a fraction of their
            height. Who moves less is left out as furniture or a poster, if they reach three times
            this limit in no window, and the rest of the picture moves more than 0.0008 and more
            than twice as much as they do; 0: nobody is left out.
        min_slot_iou: IoU of the masks of two slots from which they are one person; and the fraction
            of a person's mask in a key frame that lies in another person's, from which it is
            removed there if its center has moved.
        max_vote_distance: largest distance, along each axis, between the center votes of two
            touching parts of one person, as a fraction of the frame; a center that is further from
            that in the other key frames has moved.
        max_part_distance: largest vertical distance between the center votes of two touching parts
            of one person whose centers lie in one column (within 10 % of the width of both
            together), as a fraction of the height of both together.
        min_touching_fraction: fraction of the key frames with both parts in which the masks of two
            parts of one person touch at least.
        max_speck_fraction: size of a piece of a mask, as a fraction of the largest piece, below
            which it is a speck and may be removed.
        min_track_score: mask IoU plus weighted voice correlation from which people of consecutive
            windows are one; more starts new tracks more often.
        voice_weight: weight of the voice correlation in that score, relative to the mask IoU.
        min_color_similarity: similarity of the colors of four bands of a person's height, in the
            light that suits best, from 0 to 1, from which a person after a cut, or who was away,
            keeps their number.
        min_cut_difference: mean absolute difference of colors, of 255, between two frames from
            which a cut is between them, if the frames around it differ much less; more finds fewer.
        max_absence: seconds after which a person who returns gets a new number.
        min_zoom: magnification from which a person gets a second look; more is faster.
        zoom_margin_fraction: margin around a person in a second look, as a fraction of their size.
        min_second_look_iou: IoU of the masks of both looks from which the second one counts.
        max_frame_side: longer side of frames that are read for a second look, in pixels; more shows
            smaller people and takes more time.
        min_activity_prob: probability from which a voice counts as active in a frame.
        min_voice_db: level of speech relative to the loud frames (95th percentile) of the voice.
        min_mixture_db: level of speech relative to the loud frames of the mixture, in dB.
        min_level_db: level of speech relative to full scale, in dB; fainter frames are silence.
        max_pause: longest gap that is closed within a span of speech or visibility, in seconds.
        min_span: shortest span of speech or visibility, in seconds; shorter ones are dropped.
    """

    min_presence_prob: float = 0.8
    min_voice_prob: float = 0.1
    min_area_fraction: float = 0.002
    min_movement_fraction: float = 0.0008
    min_slot_iou: float = 0.6
    max_vote_distance: float = 0.05
    max_part_distance: float = 0.12
    min_touching_fraction: float = 0.75
    max_speck_fraction: float = 0.1
    min_track_score: float = 0.25
    voice_weight: float = 0.5
    min_color_similarity: float = 0.72
    min_cut_difference: float = 12.0
    max_absence: float = 10.0
    min_zoom: float = 1.5
    zoom_margin_fraction: float = 0.2
    min_second_look_iou: float = 0.25
    max_frame_side: int = 1280
    min_activity_prob: float = 0.5
    min_voice_db: float = -30.0
    min_mixture_db: float = -40.0
    min_level_db: float = -70.0
    max_pause: float = 0.3
    min_span: float = 0.12

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            option = f"--thresholds.{name.replace('_', '-')} {value:g}"
            if not math.isfinite(value):
                raise UsageError(f"{option} is not finite: give a number.")
            if name.endswith("_db"):
                if value > 0:
                    raise UsageError(f"{option} is above 0 dB: give a negative level.")
            elif value < 0:
                raise UsageError(f"{option} is negative: give 0 or more.")
            elif name.endswith(("_prob", "_fraction", "_iou", "_similarity")) and value > 1:
                raise UsageError(f"{option} is above 1: give a fraction from 0 to 1.")
        if self.max_frame_side < 16:
            raise UsageError(
                f"--thresholds.max-frame-side {self.max_frame_side}: at least 16 pixels."
            )
