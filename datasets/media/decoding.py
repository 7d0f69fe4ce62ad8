"""Packets to frames: the decoder's side of probing and of reading."""

import math
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import av
import numpy as np
from av.error import FFmpegError
from av.sidedata.sidedata import Type as SideDataType

from cavmae.datasets.media.container import open_container, read_packets

TRANSFERS = {16: "pq", 18: "hlg"}  # FFmpeg's numbers of the HDR transfer functions
BEAT = 200  # frames between two signs of life
# Where only times are wanted, frames need not look right.
QUICK = {"skip_loop_filter": "all", "skip_idct": "all"}


class FirstFrame(NamedTuple):
    """Properties that only a decoded frame shows.

    Attributes:
        rotation: degrees counter-clockwise that a frame is turned for showing: 0, 90, 180, 270,
        mirrored: after its left and right are swapped.
        transfer: ``pq`` or ``hlg`` for HDR, otherwise empty.
    """

    rotation: int = 0
    mirrored: bool = False
    transfer: str = ""


class LostKeys:
    """Tells frames that are predicted from a damaged key frame.

    Decoders predict them from whatever they hold, grey or an older picture, without a word.
    """

    def __init__(self) -> None:
        self._since: int | None = None  # place of the damaged key frame

    def mark_lost(self, place: int | None) -> None:
        """Notes a key frame that did not decode.

        Args:
            place: number or stamp of its packet; they rise in the order frames are shown.
        """
        if self._since is None:
            self._since = place

    def is_intact(self, frame: av.VideoFrame, place: int | None) -> bool:
        """Whether a frame is good; frames are asked for in the order they are shown."""
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
    """Frames that a packet completes; None: those that the decoder still holds.

    Args:
        lost: takes note of a key frame that does not decode, at a place.
    """
    try:
        return list(codec.decode(packet))
    except FFmpegError:
        if lost is not None and packet is not None and packet.is_keyframe:
            lost.mark_lost(place)
        return []  # a damaged packet costs its own frames


def read_first_frame(
    container: av.container.InputContainer, video: av.VideoStream, start: int | None
) -> FirstFrame:
    """Decodes the first frame that is shown.

    Args:
        start: stamp of a key frame that is shown; None: there is none.
    """
    try:
        if start is None:
            container.seek(0)
        else:
            # Frames that an edit list hides would be decoded for nothing.
            container.seek(start, stream=video)
        for packet in read_packets(container, video):
            # A damaged packet does not matter: a later frame says the same.
            for frame in decode_packet(video.codec_context, packet if packet.size else None):
                transfer = TRANSFERS.get(int(frame.color_trc), "")
                side_data: Any = frame.side_data  # PyAV's types do not know its kinds
                matrix = side_data.get(SideDataType.DISPLAYMATRIX)
                if matrix is not None:
                    return FirstFrame(*orientation(bytes(matrix)), transfer)
                return FirstFrame(transfer=transfer)
    except (FFmpegError, OSError):
        pass  # frames that do not decode are reported when they are asked for
    return FirstFrame()


def orientation(matrix: bytes) -> tuple[int, bool]:
    """(rotation, mirrored) of a display matrix, as :class:`FirstFrame` has them.

    Args:
        matrix: nine 32-bit integers; a point (x, y) is shown at (a x + c y, b x + d y), where the
            first two rows are (a, b, _) and (c, d, _). Other angles than quarter turns are rounded.
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
    """All frames of a video stream, in the order they are shown.

    The decoder is emptied where the clock begins anew, so that frames of two recordings that were
    joined do not mix.

    Args:
        restarts: numbers of the packets at which that is.
        options: of the decoder.

    Yields:
        (number of the stretch, frame, whether it is good).
    """
    with open_container(path) as container:
        video = container.streams[stream]
        assert isinstance(video, av.VideoStream)
        codec = video.codec_context
        codec.thread_count = 1
        codec.options = options or {}
        codec.copy_opaque = True  # a frame knows the packet that it was coded in
        number = stretch = 0
        lost = LostKeys()
        try:
            for packet in read_packets(container, video):
                if not packet.size:
                    continue  # an AVI's "show the last frame again", or the end
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
            pass  # the rest of the file cannot be read
        for frame in decode_packet(codec, None):
            yield stretch, frame, lost.is_intact(frame, _packet_of(frame))


def _packet_of(frame: av.VideoFrame) -> int | None:
    number: Any = frame.opaque
    return number


class FrameList(NamedTuple):
    """A stretch's frames in the order they are shown.

    Attributes:
        stamps: the decoder's best guess of each frame's presentation time, in the stream's units;
            None: none.
        packets: number of the packet that each was coded in; None: the decoder does not say.
    """

    stamps: list[int | None]
    packets: list[int | None]


def list_frames(
    path: str, stream: int, restarts: Sequence[int], beat: Callable[[], None]
) -> list[FrameList]:
    """Stamps and packets of all frames, by decoding them.

    Returns:
        one listing a stretch.
    """
    listings = [FrameList([], []) for _ in range(len(restarts) + 1)]
    frames = decode_in_order(path, stream, restarts, QUICK)
    for number, (stretch, frame, _) in enumerate(frames):
        if number % BEAT == 0:
            beat()
        listings[stretch].stamps.append(frame.pts)
        listings[stretch].packets.append(_packet_of(frame))
    return listings
