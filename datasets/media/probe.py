"""Probing of media files: properties from the packets rather than from the header.

Nominal rates, frame counts and durations of headers are often wrong, and edit lists hide packets.
So all packets are read once, without decoding, which gives the presentation time of every frame
and the extent of the audio.

Where packets do not determine presentation times (stamps that repeat, step back or are missing,
fields coded apart, AVI files with B-frames), all frames are decoded once, and the decoder's times
and count are used (``Probe.listing``).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import av
import numpy as np

from cavmae.datasets.media import timeline
from cavmae.datasets.media.claims import claimed_ends, lost_stretch
from cavmae.datasets.media.container import (
    MediaError,
    choose_streams,
    has_broken_fragments,
    is_cover,
    open_container,
)
from cavmae.datasets.media.decoding import (
    FirstFrame,
    FrameList,
    list_frames,
    read_first_frame,
)
from cavmae.datasets.media.packets import StreamPackets, scan_packets

FIELD_CODECS = frozenset({"h264", "hevc", "vc1"})  # codecs that may code fields in single packets
PROGRESSIVE = (0, 1)  # FFmpeg's field orders: unknown, progressive


def _no_beat() -> None:
    pass


class Unused(NamedTuple):
    """Part of a recording that is not read.

    Attributes:
        start: of the part, in seconds from the file's origin.
        reason: ``truncated``: the file is shorter than its header claims, or breaks off;
            ``gap``: the part is minutes away from the rest.
        detail: a sentence.
        in_frames: frames are missing while the audio goes on: no frame is on screen.
    """

    start: float
    reason: str
    detail: str
    in_frames: bool = False


@dataclasses.dataclass(frozen=True)
class Probe:
    """Properties of a media file. Times are seconds from ``origin``, a player's 0:00.

    A file without video has no ``frame_times``, one without audio no ``audio_packets``.

    Attributes:
        path: of the file.
        container: FFmpeg's name of its format.
        origin: container time of 0:00, in seconds.
        frame_times: float64 [frames], presentation times, strictly increasing.
        frame_duration: duration of the last frame in seconds, if the audio does not go on.
        frame_stamps: int64 [frames], stamp of each frame in the video stream's time base; empty
            where a ``listing`` identifies frames.
        listing: int64 [decoded frames], index of each frame that the decoder gives; -1: unused.
        packet_pts: int64 [packets] in file order, in the stream's time base. Includes hidden
            packets (edit lists, pure references), which ``frame_times`` leaves out.
        packet_keys: bool [packets], whether a decoder can start at the packet.
        video_restarts: numbers of packets at which the video's clock restarts.
        audio_offsets: (number of the first packet, seconds to add to its stamps) of each stretch
            of audio with its own clock.
        width, height: coded size in pixels.
        pixel_aspect: width of a pixel over its height.
        rotation: degrees counter-clockwise by which a player rotates frames: 0, 90, 180, 270.
        mirrored: left and right are swapped before the rotation.
        transfer: ``pq`` or ``hlg`` for HDR, otherwise empty.
        codec: of the video.
        audio_rate: Hz.
        audio_span: (first, last) time of the audio packets.
        audio_packets: number of audio packets.
        video_stream, audio_stream: indices of the selected streams; -1: there is none.
        video_streams, audio_streams: number of streams of each kind, without cover art.
        truncated: whether the file breaks off.
        unused: parts of the recording that are not read.
    """

    path: str
    container: str
    origin: float
    frame_times: np.ndarray
    frame_duration: float
    frame_stamps: np.ndarray
    listing: np.ndarray | None
    packet_pts: np.ndarray
    packet_keys: np.ndarray
    video_restarts: tuple[int, ...]
    audio_offsets: tuple[tuple[int, float], ...]
    width: int
    height: int
    pixel_aspect: float
    rotation: int
    mirrored: bool
    transfer: str
    codec: str
    audio_rate: int
    audio_span: tuple[float, float]
    audio_packets: int
    video_stream: int
    audio_stream: int
    video_streams: int
    audio_streams: int
    truncated: bool
    unused: tuple[Unused, ...] = ()

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences about unused streams and parts of the file."""
        streams = (
            ("video", self.video_stream, self.video_streams),
            ("audio", self.audio_stream, self.audio_streams),
        )
        choices = (
            f"of {n} {kind} streams number {i} is read"
            for kind, i, n in streams
            if n > 1 and i >= 0
        )
        return (*choices, *(part.detail for part in self.unused))

    @property
    def video_span(self) -> tuple[float, float]:
        """(first, last) time of the frames, including the last one's duration."""
        return float(self.frame_times[0]), float(self.frame_times[-1]) + self.frame_duration

    @property
    def span(self) -> tuple[float, float]:
        """(first, last) time at which a frame is on screen; the last stays while audio goes on.

        Of a file without video: (0, end of the audio).
        """
        if not len(self.frame_times):
            return 0.0, self.audio_span[1]
        end = max(self.video_span[1], self.audio_span[1])
        return self.video_span[0], min([end, *(p.start for p in self.unused if p.in_frames)])

    @property
    def frame_rate(self) -> float:
        """Median frame rate in Hz."""
        if len(self.frame_times) < 2:
            return 1 / self.frame_duration
        return float(1 / np.median(np.diff(self.frame_times)))

    @property
    def coded_display(self) -> tuple[int, int]:
        """(height, width) with square pixels, before rotation; no side is reduced."""
        if self.pixel_aspect >= 1:
            return self.height, round(self.width * self.pixel_aspect)
        return round(self.height / self.pixel_aspect), self.width

    @property
    def display(self) -> tuple[int, int]:
        """(height, width) as displayed."""
        height, width = self.coded_display
        return (width, height) if self.rotation % 180 else (height, width)


def probe(
    path: str,
    video_stream: int | None = None,
    audio_stream: int | None = None,
    beat: Callable[[], None] = _no_beat,
    partial: bool = False,
) -> Probe:
    """Probes a media file by reading all its packets.

    Args:
        video_stream, audio_stream: indices of the streams to read, as ``ffprobe`` counts them;
            None: those that a player takes.
        beat: heartbeat, called at intervals.
        partial: accept a file with video only or audio only.

    Raises:
        MediaError: not a media file, ``no_video``, ``no_audio``, or ``clocks_apart``: the time
            stamps of video and audio have no common time.
    """
    with open_container(path) as container:
        video, audio = choose_streams(container, video_stream, audio_stream, partial)
        scan = scan_packets(container, video, audio, beat)
        video = video if any(scan.video.visible) else None
        audio = audio if scan.audio.pts else None
        if video is None and not (partial and audio):
            raise MediaError("no_video", "the video stream has no frames")
        if audio is None and not partial:
            raise MediaError("no_audio", "the audio stream has no packets")
        origin = container.start_time / av.time_base if container.start_time else 0.0
        facts: dict[str, Any] = {
            "path": path,
            "container": container.format.name,
            "origin": origin,
            "audio_rate": 0 if audio is None else audio.rate,
            "audio_stream": -1 if audio is None else audio.index,
            "video_streams": sum(not is_cover(s) for s in container.streams.video),
            "audio_streams": len(container.streams.audio),
            "audio_packets": len(scan.audio.pts),
            "truncated": scan.truncated,
            **_video_facts(container, video, scan.video),
        }
        joinable = av.format.Flags.ts_discont in av.format.Flags(container.format.flags)
        fields_apart, is_shuffled = _coding_order(container, video)
        claims = claimed_ends(container, video)
    restarts = timeline.find_restarts(scan.video.clock, scan.audio.clock, joinable)
    cuts = [r.video for r in restarts if r.video is not None]
    audio_cuts = [r.audio for r in restarts if r.audio is not None]
    moves, audio_moves = timeline.offsets(
        restarts, scan.video.extents(cuts), scan.audio.extents(audio_cuts)
    )
    stamps, listing = np.zeros(0, dtype=np.int64), None
    times: np.ndarray = np.zeros(0)
    in_order = not (fields_apart or is_shuffled or cuts)
    if video is not None and in_order and scan.video.is_plain:
        stamps = scan.video.visible_stamps
        times = stamps * scan.video.base - origin
    elif video is not None:
        listings = list_frames(path, facts["video_stream"], cuts, beat)
        times, losses = _listed_times(scan.video, listings, cuts, moves, is_shuffled)
        if not times.size:
            raise MediaError("decode_error", "no frame could be decoded")
        if not fields_apart:  # packets of second fields are no lost frames
            times, decoded = np.sort(np.concatenate([times, losses])), times
            listing = np.searchsorted(times, decoded)
        else:
            listing = np.arange(len(times))
        times = times - origin
    audio_times = scan.audio.times - origin
    audio_times += np.repeat(audio_moves, np.diff([0, *audio_cuts, len(audio_times)]))
    audio_times = timeline.without_spikes(audio_times)
    audio_times = audio_times[np.isfinite(audio_times)]
    kept, gap = _main_part(times, audio_times, video is not None, audio is not None)
    inside = (times >= kept[0]) & (times <= kept[1])
    audio_times = audio_times[(audio_times >= kept[0]) & (audio_times <= kept[1])]
    if kept[0] > timeline.LONGEST_GAP:  # a long empty beginning is not part of the recording
        facts["origin"] = origin = origin + kept[0]
        times, audio_times = times - kept[0], audio_times - kept[0]
    duration = scan.audio.duration * scan.audio.base
    info = Probe(
        frame_times=times[inside],
        frame_duration=_last_duration(times[inside], scan.video),
        frame_stamps=stamps[inside] if listing is None else stamps,
        listing=None if listing is None else np.where(inside, np.cumsum(inside) - 1, -1)[listing],
        packet_pts=np.array(scan.video.pts, dtype=np.int64),
        packet_keys=np.array(scan.video.keys, dtype=bool),
        video_restarts=tuple(cuts),
        audio_offsets=tuple(
            (packet, move - origin)
            for packet, move in zip([0, *audio_cuts], audio_moves, strict=True)
        ),
        audio_span=(
            (0.0, 0.0)
            if audio is None
            else (float(audio_times.min()), float(audio_times.max()) + duration)
        ),
        **facts,
    )
    # After wrong stamps or joined recordings the header's duration is wrong, too. A still ending
    # may be one long frame, or empty packets.
    last = scan.video.duration * scan.video.base
    if video is not None:
        last = max(last, scan.video.reached * scan.video.base - origin - float(times[-1]))
    lost = None if restarts or gap else lost_stretch(info, last, scan.others_end, claims)
    last_read = kept[1] if video is None else float(info.frame_times[-1])
    unused = [Unused(last_read, "gap", gap)] if gap else []
    if lost is not None:
        detail = (
            f"the file is damaged or cut off: it gives {lost[0]:.1f} of the {lost[1]:.1f} s that "
            "its header claims"
        )
        unused.append(Unused(lost[0], "truncated", detail, lost[0] < info.audio_span[1]))
    elif info.truncated or has_broken_fragments(path):
        end = info.span[1]
        unused.append(Unused(end, "truncated", f"the file breaks off at {end:.1f} s"))
    return dataclasses.replace(info, unused=tuple(unused))


def _video_facts(
    container: av.container.InputContainer, video: av.VideoStream | None, packets: StreamPackets
) -> dict[str, Any]:
    """Fields of a :class:`Probe` about the video stream; None: there is none."""
    if video is None:
        return {
            "width": 0, "height": 0, "pixel_aspect": 1.0, "codec": "", "video_stream": -1,
            **FirstFrame()._asdict(),
        }  # fmt: skip
    codec = video.codec_context
    aspect = float(video.sample_aspect_ratio or codec.sample_aspect_ratio or 1)
    return {
        "width": codec.width,
        "height": codec.height,
        "pixel_aspect": aspect if 0.1 < aspect < 10 else 1.0,
        "codec": codec.name,
        "video_stream": video.index,
        **read_first_frame(container, video, packets.first_key)._asdict(),
    }


def _coding_order(
    container: av.container.InputContainer, video: av.VideoStream | None
) -> tuple[bool, bool]:
    """Whether fields are in separate packets, and whether frames are counted in coding order."""
    if video is None:
        return False, False
    codec = video.codec_context
    in_mov = "mov" in container.format.name.split(",")
    interlaced = codec.field_order not in PROGRESSIVE
    fields_apart = codec.name in FIELD_CODECS and interlaced and not in_mov
    return fields_apart, container.format.name == "avi" and bool(codec.has_b_frames)


def _listed_times(
    packets: StreamPackets,
    listings: list[FrameList],
    cuts: list[int],
    moves: list[float],
    shuffled: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Times of all decoded frames, strictly increasing, in seconds of the container's clock.

    Args:
        shuffled: stamps count frames in coding order: the n-th frame presented has the n-th
            smallest stamp of the decoded frames.

    Returns:
        times of the frames, and times of visible packets that gave no frame.
    """
    parts, lost = [], []
    usual, own, visible = packets.step, packets.times, np.array(packets.visible)
    bounds = [0, *cuts, len(own)]
    for number, listing in enumerate(listings):
        stamps = listing.stamps
        given = [n for n in listing.packets if n is not None]
        if shuffled:
            stamps = [*sorted(packets.pts[n] for n in given), *[None] * (len(stamps) - len(given))]
        else:
            stamps = packets.stamps_of(listing, bounds[number + 1])
        parts.append(timeline.increasing(packets.seconds(stamps), usual) + moves[number])
        rest = np.setdiff1d(np.arange(bounds[number], bounds[number + 1]), given)
        lost.append(own[rest[visible[rest] & np.isfinite(own[rest])]] + moves[number])
    times = timeline.increasing(np.concatenate(parts), usual)
    missing = np.unique(np.concatenate(lost))
    if times.size:
        after = np.searchsorted(times, missing)
        near = np.minimum(
            np.abs(missing - times[np.maximum(after - 1, 0)]),
            np.abs(missing - times[np.minimum(after, len(times) - 1)]),
        )
        missing = missing[near > usual / 4]
    return times, missing


def _last_duration(times: np.ndarray, packets: StreamPackets) -> float:
    """Duration of the last frame, in seconds.

    Headers may claim any duration, so it is limited to 0.5 s.
    """
    usual = float(np.median(np.diff(times))) if len(times) > 1 else packets.step
    return min(packets.duration * packets.base or usual, 0.5, 2 * usual)


def _main_part(
    video: np.ndarray, audio: np.ndarray, has_video: bool, has_audio: bool
) -> tuple[tuple[float, float], str]:
    """Selects the part of a file with most packets between gaps of minutes without any.

    A single wrong stamp would otherwise extend a recording to days.

    Returns:
        times of its first and last packet, and a sentence about unused parts, if any.

    Raises:
        MediaError: ``clocks_apart``.
    """
    parts = timeline.islands(video, audio)
    whole = [
        part for part in parts if (part.video or not has_video) and (part.audio or not has_audio)
    ]
    if not whole:
        if not audio.size:
            raise MediaError("no_audio", "no packet of the audio stream has a time stamp")
        raise MediaError(
            "clocks_apart",
            f"the frames are stamped {video.min():.1f} to {video.max():.1f} s, the audio "
            f"{audio.min():.1f} to {audio.max():.1f} s",
        )
    used = max(whole, key=lambda part: part.video + part.audio)
    bounds = used.start, used.end
    if len(parts) == 1:
        return bounds, ""
    others = [part for part in parts if part is not used]
    where = ", ".join(f"{part.start:.1f} s" for part in others[:3]) + ", ..." * (len(others) > 3)
    count = sum(part.video for part in others), sum(part.audio for part in others)
    return bounds, (
        f"only {used.start:.1f} to {used.end:.1f} s is used: other packets ({count[0]} of the "
        f"video, {count[1]} of the audio) are stamped minutes away from it (at {where})"
    )
