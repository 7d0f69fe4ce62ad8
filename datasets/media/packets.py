"""One pass over a file's packets, without decoding."""

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
BEAT = 20_000  # packets between two signs of life


@dataclasses.dataclass
class StreamPackets:
    """Packets of one stream in file order.

    Attributes:
        base: seconds of one unit of the stamps.
        pts, dts: presentation and decoding stamps; :data:`NO_STAMP`: none.
        places: number of each packet among those of both streams.
        keys: a decoder can start here.
        visible: neither hidden by an edit list nor only predicted from.
        duration: of the last packet that says one, in units of the stamps.
        reached: end of the last packet that is empty, likewise.
    """

    base: float
    pts: list[int] = dataclasses.field(default_factory=list)
    dts: list[int] = dataclasses.field(default_factory=list)
    places: list[int] = dataclasses.field(default_factory=list)
    keys: list[bool] = dataclasses.field(default_factory=list)
    visible: list[bool] = dataclasses.field(default_factory=list)
    duration: int = 0
    reached: int = 0

    def add(self, packet: av.Packet, pts: int | None, place: int, visible: bool) -> None:
        self.pts.append(NO_STAMP if pts is None else pts)
        self.dts.append(NO_STAMP if packet.dts is None else packet.dts)
        self.places.append(place)
        self.keys.append(packet.is_keyframe)
        self.visible.append(visible)
        self.duration = packet.duration or self.duration

    def seconds(self, stamps: Sequence[int | None]) -> np.ndarray:
        """float64 [stamps]; NaN: none."""
        values = np.array([NO_STAMP if s is None else s for s in stamps], dtype=np.int64)
        return np.where(values == NO_STAMP, np.nan, values * self.base)

    @property
    def clock(self) -> timeline.Clock:
        """Decoding times where there are any: they never fall, presentation times may."""
        decoding = self.seconds(self.dts)
        times = decoding if np.isfinite(decoding).any() else self.seconds(self.pts)
        return timeline.Clock(timeline.without_spikes(times), np.array(self.places))

    @property
    def times(self) -> np.ndarray:
        """float64 [packets], presentation times in seconds, or else decoding times; NaN: none."""
        times = self.seconds(self.pts)
        return np.where(np.isfinite(times), times, self.seconds(self.dts))

    @property
    def visible_stamps(self) -> np.ndarray:
        """int64, the sorted presentation stamps of shown packets."""
        return np.sort(np.array(self.pts, dtype=np.int64)[np.array(self.visible, dtype=bool)])

    @property
    def first_key(self) -> int | None:
        """Stamp of the first key frame that is shown."""
        entries = zip(self.pts, self.keys, self.visible, strict=True)
        return next(
            (pts for pts, key, visible in entries if key and visible and pts > NO_STAMP), None
        )

    @property
    def is_plain(self) -> bool:
        """Whether each packet that is shown has a stamp of its own, on a clock that runs on."""
        stamps = self.visible_stamps
        clock = np.array(self.dts, dtype=np.int64)
        steps = np.diff(clock[clock > NO_STAMP])
        return bool(stamps[0] > NO_STAMP and (np.diff(stamps) > 0).all() and (steps >= 0).all())

    @property
    def step(self) -> float:
        """Usual seconds from one shown packet to the next."""
        stamps = np.unique(self.visible_stamps)
        steps = np.diff(stamps[stamps > NO_STAMP])
        return float(np.median(steps) if steps.size else self.duration) * self.base or 0.04

    def stamps_of(self, listing: FrameList, end: int) -> list[int | None]:
        """Stamps of decoded frames; where the decoder gives none, their packets'.

        Where a field was lost, decoders pair all later ones in another way, and the stamp of a pair
        is that of its second field.

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
        """Presentation times of the stretches between packets at which the clock begins anew."""
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
        video, audio: packets of the streams that are read.
        others_end: time at which all other streams end, in seconds; 0: there are none.
        truncated: the file broke off.
    """

    video: StreamPackets
    audio: StreamPackets
    others_end: float
    truncated: bool


def scan_packets(
    container: av.container.InputContainer,
    video: av.VideoStream,
    audio: av.AudioStream,
    beat: Callable[[], None],
) -> Scan:
    """Reads all packets of two streams, and how far the others reach.

    Args:
        beat: called from time to time, as a sign of life.
    """
    # AVI has no presentation times, it counts frames as they are coded.
    counted = container.format.name == "avi"
    hides = video.codec_context.name in ("vp8", "vp9")
    assert video.time_base is not None and audio.time_base is not None
    pictures, sound = StreamPackets(float(video.time_base)), StreamPackets(float(audio.time_base))
    others_end, place = 0.0, 0
    try:
        for number, packet in enumerate(read_packets(container)):
            if number % BEAT == 0:
                beat()
            if packet.stream_index not in (video.index, audio.index):
                others_end = max(others_end, _end_of(packet))
                continue
            place += 1
            if not packet.size:  # the end, or an AVI's "show the last frame again"
                if packet.stream_index == video.index and packet.dts is not None:
                    pictures.reached = packet.dts + (packet.duration or 0)
                continue
            if packet.stream_index == video.index:
                visible = not packet.is_discard and not (hides and _is_hidden(packet, video))
                pictures.add(packet, packet.dts if counted else packet.pts, place, visible)
            else:
                sound.add(packet, packet.pts, place, True)
    except (FFmpegError, OSError):
        return Scan(pictures, sound, others_end, True)  # packets before the damage are used
    return Scan(pictures, sound, others_end, False)


def _end_of(packet: av.Packet) -> float:
    """Time at which a packet ends, in seconds; 0 without a stamp."""
    if packet.pts is None or packet.time_base is None:
        return 0.0
    return float((packet.pts + (packet.duration or 0)) * packet.time_base)


def _is_hidden(packet: av.Packet, video: av.VideoStream) -> bool:
    """Whether a VP8 or VP9 packet holds a frame that is never shown, only predicted from.

    Source: RFC 6386, 9.1 (frame tag); VP9 bitstream specification, 6.2 and Annex B (superframes).
    """
    data = memoryview(packet)
    if video.codec_context.name == "vp8":
        return not data[0] & 0x10
    if data[-1] & 0xE0 == 0xC0:
        return False  # a superframe: one of its frames is shown
    # Bits from the highest: frame marker (2), profile (2), a reserved one for profile 3,
    # show_existing_frame, frame_type, show_frame.
    after_profile = 5 if data[0] & 0x30 == 0x30 else 4
    existing, visible = (data[0] >> (7 - after_profile - i) & 1 for i in (0, 2))
    return not existing and not visible
