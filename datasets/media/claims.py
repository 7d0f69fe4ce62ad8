"""Ends of a recording that its header claims, compared with its content."""

from pathlib import Path
from typing import TYPE_CHECKING

import av

if TYPE_CHECKING:
    from cavmae.datasets.media.probe import Probe

# A header may exceed the content by this many seconds, or by this fraction of its duration.
CLAIM_SLACK = 1.0  # s
CLAIM_FRACTION = 0.02
# Raw streams of packets without a header of the file.
ESTIMATED = frozenset({"aac", "h264", "hevc", "m4v", "mpegvideo", "vc1"})
MP3_HEADER = 1024  # bytes from the first frame on, in which a header that counts frames lies


def claimed_ends(
    container: av.container.InputContainer, video: av.VideoStream | None
) -> tuple[float, float]:
    """Ends of recording and frames in the header, in seconds of the container's clock; 0: none."""
    kinds, whole, frames = container.format.name.split(","), 0.0, 0.0
    if container.duration and not _is_estimated(container):
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


def _is_estimated(container: av.container.InputContainer) -> bool:
    """Whether a file stores no duration, so that FFmpeg estimates it from size and bit rate."""
    kinds = {*container.format.name.split(",")}
    if "mp3" in kinds:
        return not _counts_frames(container.name)
    return bool(kinds & ESTIMATED)


def _counts_frames(path: str) -> bool:
    """Whether the first frame of an MP3 file is a header (Xing, Info, VBRI) that counts them."""
    try:
        with Path(path).open("rb") as file:
            tag = file.read(10)
            # The size of an ID3v2 tag has 7 bits a byte.
            size = sum(byte << 7 * n for n, byte in enumerate(reversed(tag[6:10])))
            file.seek(10 + size if tag[:3] == b"ID3" else 0)
            frame = file.read(MP3_HEADER)
    except OSError:  # not a local file
        return False
    return any(name in frame for name in (b"Xing", b"Info", b"VBRI"))


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
