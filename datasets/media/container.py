"""Opening of media files, and selection of their streams.

Files are untrusted. Only regular local files in container formats are opened, so that a file
cannot make FFmpeg read a playlist, a device or an address.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import av
from av.error import FFmpegError

# Decoding parameters of hostile files are refused before memory is spent on frames.
MAX_PIXELS = 16384 * 16384
MAX_CHANNELS = 64
# Formats that contain their streams. Others, such as playlists and lists of images, name further
# files.
FORMATS = (
    "mov", "matroska", "avi", "flv", "live_flv", "mpegts", "mpeg", "asf", "ogg", "mxf", "rm",
    "nut", "dv", "gxf", "wtv", "nsv", "ivf", "mpegvideo", "h264", "hevc", "m4v", "vc1", "wav",
    "mp3", "flac", "aac",
)  # fmt: skip
OPTIONS = {
    "format_whitelist": ",".join(FORMATS),
    "protocol_whitelist": "file",
    # Audio streams of formats without a header (MPEG-TS) may begin late in the file.
    "probesize": "50000000",
    "analyzeduration": "60000000",
}
FIRST_BOXES = (b"ftyp", b"styp", b"moov", b"free", b"skip", b"wide", b"mdat")
_Track = TypeVar("_Track", av.VideoStream, av.AudioStream)


class MediaError(Exception):
    """A media file that gives no sample.

    Args:
        reason: machine-readable: ``missing``, ``unreadable``, ``empty``, ``decode_error``,
            ``no_video``, ``no_audio``, ``too_short``, ...
        detail: the evidence.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def open_container(path: str) -> av.container.InputContainer:
    """Opens a local file as a PyAV container.

    Raises:
        MediaError: ``missing``, ``unreadable``, ``empty`` or ``decode_error``.
    """
    file = Path(path)
    try:
        status = file.stat()
        if stat.S_ISDIR(status.st_mode):
            raise MediaError("unreadable", "is a folder")
        if not stat.S_ISREG(status.st_mode):
            raise MediaError("unreadable", "is not a regular file")
        if status.st_size == 0:
            raise MediaError("empty", "the file has no bytes")
        with file.open("rb"):
            pass
        # `file:` keeps FFmpeg from reading a name with a colon as a protocol. A video whose title
        # is in Latin-1 or Shift-JIS is accepted.
        return av.open(f"file:{path}", options=OPTIONS, metadata_errors="replace")
    except FileNotFoundError as error:
        raise MediaError("missing", "no such file") from error
    except PermissionError as error:
        raise MediaError("unreadable", "permission denied") from error
    except av.ArgumentError as error:
        raise MediaError(
            "decode_error", f"damaged, or in a format that holds no streams itself: {error}"
        ) from error
    except (FFmpegError, OSError, ValueError) as error:
        raise MediaError("decode_error", f"not a readable media file: {error}") from error


def has_broken_fragments(path: str) -> bool:
    """Whether the boxes of a fragmented MP4 do not reach the end of the file.

    Such a file has no total duration, and FFmpeg stops at a damaged box without an error.

    Source: ISO/IEC 14496-12, 4.2 (boxes).
    """
    fragmented = False
    with Path(path).open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 16))
        padded = not any(file.read())
        place = 0
        while place < end:
            file.seek(place)
            head = file.read(16)
            size, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if place == 0 and kind not in FIRST_BOXES:
                return False
            if size == 1:
                size = int.from_bytes(head[8:16], "big")
            if size == 0 and (kind == b"mdat" or (padded and not any(head))):
                return False  # one box to the end, or nothing
            if size < 8 or not kind.isalnum() or place + size > end:
                return fragmented
            fragmented |= kind == b"moof"
            place += size
    return False


def read_packets(
    container: av.container.InputContainer, *streams: av.stream.Stream
) -> Iterator[av.Packet]:
    """Yields the packets of streams in file order, then an empty one of each.

    Raises:
        FFmpegError, OSError: the rest of the file is unreadable.
    """
    try:
        yield from container.demux(*streams)
    except IndexError:
        # At the end PyAV asks for a stream that appeared late in the file (FLV, MPEG-TS) and that
        # its list of streams lacks. All packets are read by then.
        return


def choose_streams(
    container: av.container.InputContainer,
    video: int | None,
    audio: int | None,
    partial: bool = False,
) -> tuple[av.VideoStream | None, av.AudioStream | None]:
    """Selects the video and the audio stream that a player would play.

    FFmpeg's choice among streams that have a decoder and are no cover art; the audio is of the
    same programme as the video.

    Args:
        video, audio: indices of the streams to read instead, as ``ffprobe`` counts them.
        partial: return None for a stream that is missing or has no decoder, unless it is named.

    Raises:
        MediaError: ``no_video`` or ``no_audio``: there is no such stream, or no decoder for it;
            ``no_stream``: what ``video`` or ``audio`` names is none.
    """
    videos = [s for s in container.streams.video if not is_cover(s)]
    chosen = _pick("video", videos, container.streams.best("video"), video, partial)
    best = container.streams.best("audio", chosen)
    return chosen, _pick("audio", list(container.streams.audio), best, audio, partial)


def is_cover(stream: av.VideoStream) -> bool:
    """Whether a video stream is cover art, a still image attached to audio."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _pick(
    kind: str,
    streams: list[_Track],
    best: av.stream.Stream | None,
    index: int | None,
    partial: bool,
) -> _Track | None:
    reason = f"no_{kind}"
    if not streams:
        if partial and index is None:
            return None
        raise MediaError(reason, f"no {kind} stream")
    if index is not None:
        named = [s for s in streams if s.index == index]
        if not named:
            numbers = ", ".join(str(s.index) for s in streams)
            raise MediaError(
                "no_stream", f"stream {index} is no {kind} stream; the {kind} streams are {numbers}"
            )
        streams = named
    # FFmpeg's choice ignores whether a stream has a decoder.
    default = av.stream.Disposition.default
    ranked = sorted(streams, key=lambda s: (s != best, not s.disposition & default))
    for stream in ranked:
        if _is_decodable(stream):
            return stream
    if partial and index is None:
        return None
    raise MediaError(reason, f"no decoder for the {kind} stream, or its parameters are damaged")


def _is_decodable(stream: av.VideoStream | av.AudioStream) -> bool:
    if stream.codec_context is None or stream.time_base is None:
        return False
    if isinstance(stream, av.VideoStream):
        return 0 < stream.codec_context.width * stream.codec_context.height <= MAX_PIXELS
    return bool(stream.rate) and 0 < stream.channels <= MAX_CHANNELS
