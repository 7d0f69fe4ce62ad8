"""Scan of a file's packets, without decoding."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import av
import numpy as np
from av.error import FFmpegError

from cavmae.datasets.media import timeline
from cavmae.datasets.media.container import read_packets
from cavmae.datasets.media.decoding import FrameList
from cavmae.datasets.media.timeline import Extent

NO_STAMP = np.iinfo(np.int64).min
BEAT = 20_000  # packets between two heartbeats


@dataclasses.dataclass
class StreamPackets:
    """Packets of one stream in file order.

    Attributes:
        base: time base of the stamps, in seconds.
        pts, dts: presentation and decoding stamps; :data:`NO_STAMP`: none.
        places: number of each packet among those of both streams.
        keys: whether a decoder can start at the packet.
        visible: whether the packet is neither hidden by an edit list nor a pure reference.
        duration: of the last packet that gives one, in units of the time base.
        reached: end of the last empty packet, in units of the time base.
    """

    base: float
    pts: list[int] = dataclasses.field(default_factory=list)
    dts: list[int] = dataclasses.field(default_factory=list)
    places: list[int] = dataclasses.field(default_factory=list)
    keys: list[bool] = dataclasses.field(default_factory=list)
    visible: list[bool] = dataclasses.field(default_factory=list)
    duration: int = 0
    reached: int = 0

    def add(self, packet: av.Packet, pts: int, place: int, visible: bool) -> None:
        self.pts.append(pts)
        self.dts.append(NO_STAMP if packet.dts is None else packet.dts)
        self.places.append(place)
        self.keys.append(packet.is_keyframe)
        self.visible.append(visible)
        self.duration = packet.duration or self.duration

    def seconds(self, stamps: Sequence[int | None]) -> np.ndarray:
        """Times of stamps in seconds, float64 [stamps]; NaN: none."""
        values = np.array([NO_STAMP if s is None else s for s in stamps], dtype=np.int64)
        return np.where(values == NO_STAMP, np.nan, values * self.base)

    @property
    def clock(self) -> timeline.Clock:
        """Clock of decoding times, which never fall; of presentation times if there are none."""
        decoding = self.seconds(self.dts)
        times = decoding if np.isfinite(decoding).any() else self.seconds(self.pts)
        return timeline.Clock(timeline.without_spikes(times), np.array(self.places))

    @property
    def times(self) -> np.ndarray:
        """Presentation times in seconds, else decoding times, float64 [packets]; NaN: none."""
        times = self.seconds(self.pts)
        return np.where(np.isfinite(times), times, self.seconds(self.dts))

    @property
    def visible_stamps(self) -> np.ndarray:
        """Sorted presentation stamps of visible packets, int64."""
        return np.sort(np.array(self.pts, dtype=np.int64)[np.array(self.visible, dtype=bool)])

    @property
    def first_key(self) -> int | None:
        """Stamp of the first visible key frame."""
        entries = zip(self.pts, self.keys, self.visible, strict=True)
        return next(
            (pts for pts, key, visible in entries if key and visible and pts > NO_STAMP), None
        )

    @property
    def is_plain(self) -> bool:
        """Whether each visible packet has a distinct stamp, on a clock that never falls."""
        stamps = self.visible_stamps
        clock = np.array(self.dts, dtype=np.int64)
        steps = np.diff(clock[clock > NO_STAMP])
        return bool(stamps[0] > NO_STAMP and (np.diff(stamps) > 0).all() and (steps >= 0).all())

    @property
    def step(self) -> float:
        """Median interval between visible packets, in seconds."""
        stamps = np.unique(self.visible_stamps)
        steps = np.diff(stamps[stamps > NO_STAMP])
        return float(np.median(steps) if steps.size else self.duration) * self.base or 0.04

    def stamps_of(self, listing: FrameList, end: int) -> list[int | None]:
        """Stamps of decoded frames, from their packets where the decoder gives none.

        After a lost field, decoders pair all later fields differently, and the stamp of a pair is
        that of its second field.

        Args:
            end: number of the packet after those of the listing.
        """
        given = sorted(n for n in listing.packets if n is not None)
        following = dict(zip(given, [*given[1:], end], strict=True)) if given else {}
        stamps = list(listing.stamps)
        for frame, packet in enumerate(listing.packets):
            if stamps[frame] is None and packet is not None:
                own = (self.pts[n] for n in range(packet, following[packet]))
                stamps[frame] = next((stamp for stamp in own if stamp > NO_STAMP), None)
        return stamps

    def extents(self, cuts: Sequence[int]) -> list[Extent]:
        """Presentation times of the stretches between packets at which the clock restarts."""
        extents = []
        for part in np.split(timeline.without_spikes(self.times), cuts):
            known = part[np.isfinite(part)]
            if not known.size:
                known = np.zeros(1)
            length = self.duration * self.base
            extents.append(Extent(float(known.min()), float(known.max()) + length))
        return extents


class Scan(NamedTuple):
    """Packets of a file.

    Attributes:
        video, audio: packets of the two streams.
        others_end: time at which all other streams end, in seconds; 0: there are none.
        truncated: whether the file breaks off.
    """

    video: StreamPackets
    audio: StreamPackets
    others_end: float
    truncated: bool


def scan_packets(
    container: av.container.InputContainer,
    video: av.VideoStream | None,
    audio: av.AudioStream | None,
    beat: Callable[[], None],
) -> Scan:
    """Reads all packets of two streams, and the end times of the others.

    Args:
        video, audio: the streams; None: there is no such stream, and it has no packets.
        beat: heartbeat, called at intervals.
    """
    may_hide = video is not None and video.codec_context.name in ("vp8", "vp9")
    indices = [None if stream is None else stream.index for stream in (video, audio)]
    video_packets, audio_packets = StreamPackets(_base_of(video)), StreamPackets(_base_of(audio))
    others_end, place = 0.0, 0
    try:
        for number, packet in enumerate(read_packets(container)):
            if number % BEAT == 0:
                beat()
            if packet.stream_index not in indices:
                others_end = max(others_end, _end_of(packet))
                continue
            place += 1
            if not packet.size:  # the end, or AVI's repeat of the last frame
                if packet.stream_index == indices[0] and packet.dts is not None:
                    video_packets.reached = packet.dts + (packet.duration or 0)
                continue
            if video is not None and packet.stream_index == video.index:
                visible = not packet.is_discard and not (may_hide and _is_hidden(packet, video))
                stamp = stamp_of(packet, container.format.name)
                video_packets.add(packet, stamp, place, visible)
            else:
                stamp = NO_STAMP if packet.pts is None else packet.pts
                audio_packets.add(packet, stamp, place, True)
    except (FFmpegError, OSError):
        # Packets before the damage are used.
        return Scan(video_packets, audio_packets, others_end, True)
    return Scan(video_packets, audio_packets, others_end, False)


def stamp_of(packet: av.Packet, container: str) -> int:
    """Presentation stamp of a video packet; :data:`NO_STAMP`: it has none.

    Args:
        container: FFmpeg's name of the format.
    """
    # AVI has no presentation times: it counts frames in coding order.
    stamp = packet.dts if container == "avi" else packet.pts
    return NO_STAMP if stamp is None else stamp


def _base_of(stream: av.stream.Stream | None) -> float:
    """Time base of a stream in seconds; 1 without a stream."""
    if stream is None:
        return 1.0
    assert stream.time_base is not None
    return float(stream.time_base)


def _end_of(packet: av.Packet) -> float:
    """End time of a packet in seconds; 0 without a stamp."""
    if packet.pts is None or packet.time_base is None:
        return 0.0
    return float((packet.pts + (packet.duration or 0)) * packet.time_base)


def _is_hidden(packet: av.Packet, video: av.VideoStream) -> bool:
    """Whether a VP8 or VP9 packet holds a frame that is only a reference for prediction.

    Source: RFC 6386, 9.1 (frame tag); VP9 bitstream specification, 6.2 and Annex B (superframes).
    """
    data = memoryview(packet)
    if video.codec_context.name == "vp8":
        return not data[0] & 0x10
    if data[-1] & 0xE0 == 0xC0:
        return False  # a superframe contains a visible frame
    # Bits from the highest: frame marker (2), profile (2), a reserved one for profile 3,
    # show_existing_frame, frame_type, show_frame.
    after_profile = 5 if data[0] & 0x30 == 0x30 else 4
    existing, visible = (data[0] >> (7 - after_profile - i) & 1 for i in (0, 2))
    return not existing and not visible
