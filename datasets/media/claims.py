"""Ends of a recording that its header claims, compared with its content."""

from typing import TYPE_CHECKING

import av

if TYPE_CHECKING:
    from cavmae.datasets.media.probe import Probe

# A header may exceed the content by this many seconds, or by this fraction of its duration.
CLAIM_SLACK = 1.0  # s
CLAIM_FRACTION = 0.02


def claimed_ends(
    container: av.container.InputContainer, video: av.VideoStream | None
) -> tuple[float, float]:
    """Ends of recording and frames in the header, in seconds of the container's clock; 0: none."""
    kinds, whole, frames = container.format.name.split(","), 0.0, 0.0
    if container.duration:
        # Matroska's duration counts from 0, independent of the first time stamp.
        start = 0 if "matroska" in kinds else container.start_time or 0
        whole = (start + container.duration) / av.time_base
    # Only headers of MP4 and AVI count each stream's frames.
    if video is None:
        return whole, 0.0
    if "avi" in kinds and video.frames and video.average_rate:
        # FFmpeg estimates the duration of a cut-off AVI from its size.
        frames = float(video.frames / video.average_rate)
    elif "mov" in kinds and video.duration and video.time_base:
        frames = float(((video.start_time or 0) + video.duration) * video.time_base)
    return whole, frames


def lost_stretch(
    info: "Probe", last: float, others_end: float, claims: tuple[float, float]
) -> tuple[float, float] | None:
    """(start, end) of the stretch that the header claims beyond the content; None: there is none.

    Args:
        last: duration of the last frame according to the container, in seconds.
        others_end: end of the other streams, which the header's duration covers, too.
        claims: ends according to the header, by the container's clock, as ``others_end``.
    """
    frames_end = 0.0
    if len(info.frame_times):
        frames_end = float(info.frame_times[-1]) + max(last, info.frame_duration)
    ends = max(frames_end, info.audio_span[1], others_end - info.origin), frames_end
    for end, claim in zip(ends, (claim - info.origin for claim in claims), strict=True):
        if claim - end > max(CLAIM_SLACK, CLAIM_FRACTION * claim):
            return end, claim
    return None
