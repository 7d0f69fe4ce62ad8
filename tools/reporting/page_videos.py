"""Videos of a page: small ones as they are, of larger ones a smaller copy of the first seconds.

A page is one file that people send each other; the videos of a few minutes would fill it.
"""

import io
from fractions import Fraction

import av
from av.audio.stream import AudioStream
from av.error import FFmpegError
from av.video.stream import VideoStream

from cavmae.tools.reporting.audio_tracks import PAGE_SECONDS
from cavmae.tools.reporting.fields import FileRefused

SMALL_BYTES = 1 << 20  # that a video may have as it is
HEIGHT = 360  # largest of a copy, in pixels
QUALITY, PRESET = "28", "veryfast"  # x264's
VIDEO_PIXELS = 4096 * 4096


def page_video(video: bytes) -> tuple[bytes, str]:
    """Video for a page, and a note on what it is if it is not the file itself.

    Args:
        video: MP4 file with H.264 video, and audio or not.

    Raises:
        FileRefused: the file does not decode as MP4, or its frames are too large.
    """
    if len(video) <= SMALL_BYTES:
        return video, ""
    copied = io.BytesIO()
    try:
        # With the format given, FFmpeg does not probe others, such as lists of further files.
        with (
            av.open(io.BytesIO(video), "r", format="mp4") as source,
            av.open(copied, "w", format="mp4") as target,
        ):
            size = _copy(source, target)
            length = (source.duration or 0) / av.time_base
    except (FFmpegError, IndexError, ValueError, OverflowError) as error:
        raise FileRefused(f"does not decode as MP4 ({error})") from error
    if len(copied.getvalue()) >= len(video):
        return video, ""
    part = f"the first {PAGE_SECONDS:g} s, " if length > PAGE_SECONDS else ""
    return copied.getvalue(), f"{part}at {size[0]}x{size[1]}"


def _copy(
    source: av.container.InputContainer, target: av.container.OutputContainer
) -> tuple[int, int]:
    """Copies the first seconds: video in smaller frames, audio as it is.

    Returns:
        width and height of the copy.
    """
    read: VideoStream = source.streams.video[0]
    if read.width * read.height > VIDEO_PIXELS:
        raise FileRefused(f"has frames of {read.width}x{read.height}")
    scale = min(1.0, HEIGHT / read.height)
    width, height = (max(2, round(side * scale / 2) * 2) for side in (read.width, read.height))
    rate = read.average_rate or Fraction(25)
    written = target.add_stream("libx264", rate=rate, options={"crf": QUALITY, "preset": PRESET})
    written.width, written.height, written.pix_fmt = width, height, "yuv420p"
    base = read.time_base or Fraction(1, 25)
    written.codec_context.time_base = base
    audio: AudioStream | None = source.streams.audio[0] if source.streams.audio else None
    sound = target.add_stream_from_template(audio) if audio is not None else None

    def write(frame: av.VideoFrame) -> None:
        frame.time_base = base  # unknown of the last ones
        if frame.pts is not None and frame.pts * base < PAGE_SECONDS:
            target.mux(written.encode(frame.reformat(width, height, "yuv420p")))

    for packet in source.demux([stream for stream in (read, audio) if stream is not None]):
        if packet.dts is None or packet.time_base is None:
            continue
        if packet.dts * packet.time_base >= PAGE_SECONDS:
            if packet.stream is read:
                break
            continue
        if packet.stream is audio and sound is not None:
            packet.stream = sound
            target.mux(packet)
            continue
        for frame in read.decode(packet):
            write(frame)
    for frame in read.decode(None):
        write(frame)
    target.mux(written.encode(None))
    return width, height
