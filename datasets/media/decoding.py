"""Decoding of packets into frames, shared by probing and reading."""

import math
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import av
import numpy as np
from av.error import FFmpegError
from av.sidedata.sidedata import Type as SideDataType

from cavmae.datasets.media.container import open_container, read_packets

TRANSFERS = {16: "pq", 18: "hlg"}  # FFmpeg's numbers of the HDR transfer functions
BEAT = 200  # frames between two heartbeats
# Options for decoding that needs time stamps only, not correct pixels.
QUICK = {"skip_loop_filter": "all", "skip_idct": "all"}


class FirstFrame(NamedTuple):
    """Properties of a video that only a decoded frame holds.

    Attributes:
        rotation: degrees counter-clockwise by which a player rotates frames: 0, 90, 180, 270.
        mirrored: left and right are swapped before the rotation.
        transfer: ``pq`` or ``hlg`` for HDR, otherwise empty.
    """

    rotation: int = 0
    mirrored: bool = False
    transfer: str = ""


class LostKeys:
    """Detects frames that are predicted from a damaged key frame.

    Decoders predict such frames from grey or from an older frame, and report no error.
    """

    def __init__(self) -> None:
        self._since: int | None = None  # place of the damaged key frame

    def mark_lost(self, place: int | None) -> None:
        """Records a key frame that does not decode.

        Args:
            place: number or stamp of its packet; places rise in presentation order.
        """
        if self._since is None:
            self._since = place

    def is_intact(self, frame: av.VideoFrame, place: int | None) -> bool:
        """Whether a frame is good. Frames are passed in presentation order."""
        if frame.is_corrupt:
            if frame.key_frame:
                self.mark_lost(place)
            return False
        if self._since is None:
            return True
        if place is None or place < self._since:
            return place is not None
        if frame.key_frame and place > self._since:
            self._since = None
        return self._since is None


def decode_packet(
    codec: av.VideoCodecContext,
    packet: av.Packet | None,
    lost: LostKeys | None = None,
    place: int | None = None,
) -> list[av.VideoFrame]:
    """Decodes the frames that a packet completes.

    Args:
        packet: None: flushes the frames that the decoder still holds.
        lost: records a key frame that does not decode, at ``place``.
    """
    try:
        return list(codec.decode(packet))
    except FFmpegError:
        if lost is not None and packet is not None and packet.is_keyframe:
            lost.mark_lost(place)
        return []  # a damaged packet loses only its own frames


def read_first_frame(
    container: av.container.InputContainer, video: av.VideoStream, start: int | None
) -> FirstFrame:
    """Decodes the first visible frame.

    Args:
        start: stamp of a visible key frame; None: there is none.
    """
    try:
        if start is None:
            container.seek(0)
        else:
            # Seeking skips frames that an edit list hides.
            container.seek(start, stream=video)
        for packet in read_packets(container, video):
            # A damaged packet does not matter: later frames have the same properties.
            for frame in decode_packet(video.codec_context, packet if packet.size else None):
                transfer = TRANSFERS.get(int(frame.color_trc), "")
                side_data: Any = frame.side_data  # PyAV's type stubs lack its keys
                matrix = side_data.get(SideDataType.DISPLAYMATRIX)
                if matrix is not None:
                    return FirstFrame(*orientation(bytes(matrix)), transfer)
                return FirstFrame(transfer=transfer)
    except (FFmpegError, OSError):
        pass  # the reader reports frames that do not decode
    return FirstFrame()


def orientation(matrix: bytes) -> tuple[int, bool]:
    """(rotation, mirrored) of a display matrix, as in :class:`FirstFrame`.

    Args:
        matrix: nine 32-bit integers that map a point (x, y) to (a x + c y, b x + d y), where the
            first two rows are (a, b, _) and (c, d, _). Angles are rounded to quarter turns.
    """
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(float)
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    return round(-math.degrees(math.atan2(b, a)) / 90) * 90 % 360, mirrored


def decode_in_order(
    path: str,
    stream: int,
    restarts: Sequence[int],
    options: dict[str, str] | None = None,
) -> Generator[tuple[int, av.VideoFrame, bool], None, None]:
    """Decodes all frames of a video stream in presentation order.

    The decoder is flushed where the clock restarts, so that frames of joined recordings do not mix.

    Args:
        restarts: numbers of the packets at which the clock restarts.
        options: of the decoder.

    Yields:
        (number of the stretch between restarts, frame, whether the frame is good).
    """
    with open_container(path) as container:
        video = container.streams[stream]
        assert isinstance(video, av.VideoStream)
        codec = video.codec_context
        codec.thread_count = 1
        codec.options = options or {}
        codec.copy_opaque = True  # frames carry the number of their packet
        number = stretch = 0
        lost = LostKeys()
        try:
            for packet in read_packets(container, video):
                if not packet.size:
                    continue  # AVI's repeat of the last frame, or the end
                if stretch < len(restarts) and number == restarts[stretch]:
                    for frame in decode_packet(codec, None):
                        yield stretch, frame, lost.is_intact(frame, _packet_of(frame))
                    codec.flush_buffers()
                    stretch += 1
                packet.opaque = number
                for frame in decode_packet(codec, packet, lost, number):
                    yield stretch, frame, lost.is_intact(frame, _packet_of(frame))
                number += 1
        except (FFmpegError, OSError):
            pass  # the rest of the file is unreadable
        for frame in decode_packet(codec, None):
            yield stretch, frame, lost.is_intact(frame, _packet_of(frame))


def _packet_of(frame: av.VideoFrame) -> int | None:
    number: Any = frame.opaque
    return number


class FrameList(NamedTuple):
    """Frames of a stretch in presentation order.

    Attributes:
        stamps: the decoder's best-effort presentation stamp of each frame, in the stream's time
            base; None: it has none.
        packets: number of the packet that coded each frame; None: the decoder does not report it.
    """

    stamps: list[int | None]
    packets: list[int | None]


def list_frames(
    path: str, stream: int, restarts: Sequence[int], beat: Callable[[], None]
) -> list[FrameList]:
    """Lists stamps and packets of all frames by decoding them.

    Returns:
        a list for each stretch between restarts.
    """
    listings = [FrameList([], []) for _ in range(len(restarts) + 1)]
    frames = decode_in_order(path, stream, restarts, QUICK)
    for number, (stretch, frame, _) in enumerate(frames):
        if number % BEAT == 0:
            beat()
        listings[stretch].stamps.append(frame.pts)
        listings[stretch].packets.append(_packet_of(frame))
    return listings
