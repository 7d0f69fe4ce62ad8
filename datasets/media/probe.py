"""What a media file really holds, from its packets rather than from its header.

Headers lie: nominal rates, frame counts and durations are often wrong, and edit lists hide
packets. So the video packets are read once (not decoded), which gives the presentation time of
every frame, and the sound's first and last packets give its extent.
"""

import dataclasses
import math
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

# Decoding parameters of hostile files are refused before memory is spent on pictures.
MAX_PIXELS = 16384 * 16384
MAX_CHANNELS = 64
OPTIONS = {
    # Playlists that name other files or addresses are not followed.
    "protocol_whitelist": "file",
    # Streams without a header (MPEG-TS) may begin to sound late; this much is searched for them.
    "probesize": "50000000",
    "analyzeduration": "60000000",
}


class MediaError(Exception):
    """A file that cannot give a sample.

    Args:
        reason: one word: ``missing``, ``unreadable``, ``empty``, ``decode_error``, ``no_video``,
            ``no_audio``, ``too_short``, ...
        detail: what was found.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclasses.dataclass(frozen=True)
class Probe:
    """Facts of a file. Times are seconds from ``origin``, where a player shows 0:00.

    Attributes:
        path: of the file.
        origin: the container's own time of 0:00, in seconds.
        frame_times: float64 [frames], presentation times in order.
        frame_duration: how long the last frame is shown.
        packet_pts: int64 [packets] in file order, in the stream's time base; hidden packets
            (edit lists) are left out of ``frame_times`` but not here.
        time_base: seconds of one unit of ``packet_pts``.
        packet_keys: bool [packets]: a decoder can start here.
        timestamps_trusted: whether a packet's time is that of the frame in it.
        width, height: coded size in pixels.
        pixel_aspect: width of a pixel over its height.
        rotation: degrees counter-clockwise that the picture is turned for showing: 0, 90, 180, 270.
        codec: of the video.
        sound_rate: Hz; 0 without sound.
        sound_span: (first, last) time for which there are sound packets.
        truncated: the file ended or broke before its packets did.
        remarks: sentences about parts of the file that are not read, without its name.
    """

    path: str
    origin: float
    frame_times: np.ndarray
    frame_duration: float
    packet_pts: np.ndarray
    packet_keys: np.ndarray
    time_base: float
    timestamps_trusted: bool
    width: int
    height: int
    pixel_aspect: float
    rotation: int
    codec: str
    sound_rate: int
    sound_span: tuple[float, float]
    truncated: bool
    remarks: tuple[str, ...] = ()

    @property
    def frame_stamps(self) -> np.ndarray:
        """int64 [frames]: ``frame_times`` in the video stream's own units."""
        return np.rint((self.frame_times + self.origin) / self.time_base).astype(np.int64)

    @property
    def video_span(self) -> tuple[float, float]:
        """(first, last) time at which a frame is on screen."""
        return float(self.frame_times[0]), float(self.frame_times[-1]) + self.frame_duration

    @property
    def frame_rate(self) -> float:
        """Median frames a second."""
        if len(self.frame_times) < 2:
            return 1 / self.frame_duration
        return float(1 / np.median(np.diff(self.frame_times)))

    @property
    def coded_display(self) -> tuple[int, int]:
        """(height, width) shown, before rotation: square pixels, nothing lost."""
        if self.pixel_aspect >= 1:
            return self.height, round(self.width * self.pixel_aspect)
        return round(self.height / self.pixel_aspect), self.width


def open_container(path: str) -> av.container.InputContainer:
    """PyAV's container of a local file.

    Raises:
        MediaError: ``missing``, ``unreadable``, ``empty`` or ``decode_error``.
    """
    file = Path(path)
    try:
        if file.is_dir():
            raise MediaError("unreadable", "is a folder")
        if file.stat().st_size == 0:
            raise MediaError("empty", "the file has no bytes")
        with file.open("rb"):
            pass
        # `file:` keeps FFmpeg from reading a name with a colon as a protocol.
        return av.open(f"file:{path}", options=OPTIONS)
    except FileNotFoundError as error:
        raise MediaError("missing", "no such file") from error
    except PermissionError as error:
        raise MediaError("unreadable", "permission denied") from error
    except (FFmpegError, OSError, ValueError) as error:
        raise MediaError("decode_error", f"not a readable media file: {error}") from error


def first_video(container: av.container.InputContainer) -> av.VideoStream:
    """The first video stream. Raises MediaError: ``no_video``."""
    for stream in container.streams.video:
        # Cover art is a video stream of one picture.
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    raise MediaError("no_video", "no video stream")


def probe(path: str) -> Probe:
    """Reads a file's packets.

    Raises:
        MediaError: not a media file, ``no_video``, ``no_audio`` or ``too_short``.
    """
    with open_container(path) as container:
        video = first_video(container)
        if not container.streams.audio:
            raise MediaError("no_audio", "no audio stream")
        audio = container.streams.audio[0]
        codec = video.codec_context
        if codec is None or video.time_base is None:
            raise MediaError("decode_error", "no decoder for the video stream")
        if not 0 < codec.width * codec.height <= MAX_PIXELS:
            raise MediaError("decode_error", f"picture size {codec.width}x{codec.height}")
        if audio.codec_context is None or not audio.rate or audio.channels > MAX_CHANNELS:
            raise MediaError("no_audio", "no decoder for the audio stream")
        origin = container.start_time / av.time_base if container.start_time else 0.0
        pts: list[int] = []
        keys: list[bool] = []
        shown: list[bool] = []
        last_duration = 0
        # AVI has no presentation times, it counts frames as they are coded. Coded in another order
        # than shown, a frame's place among all decoded ones tells its time, not its own packet.
        counted = container.format.name == "avi"
        trusted = not (counted and codec.has_b_frames)
        truncated = False
        sound_first, sound_last = math.inf, -math.inf
        sound_base = float(audio.time_base or 0)
        try:
            for packet in container.demux([video, audio]):
                if packet.stream_index == video.index:
                    if not packet.size:
                        continue  # the end, or an AVI's "show the last frame again"
                    stamp = packet.dts if counted else packet.pts
                    if stamp is None:
                        stamp, trusted = packet.dts, False
                    if stamp is None:
                        continue
                    pts.append(stamp)
                    keys.append(packet.is_keyframe)
                    shown.append(not packet.is_discard)
                    last_duration = packet.duration or last_duration
                elif packet.pts is not None:
                    first = packet.pts * sound_base
                    sound_first = min(sound_first, first)
                    sound_last = max(sound_last, first + (packet.duration or 0) * sound_base)
        except (FFmpegError, OSError):
            truncated = True  # what was read before is used
        entries = zip(pts, keys, shown, strict=True)
        rotation = _rotation(container, video, next((t for t, k, s in entries if k and s), None))
        aspect = video.sample_aspect_ratio or codec.sample_aspect_ratio
        return _assemble(
            path,
            origin,
            float(video.time_base),
            pts,
            keys,
            shown,
            last_duration,
            trusted,
            codec,
            float(aspect) if aspect else 1.0,
            rotation,
            audio.rate,
            (sound_first, sound_last),
            truncated,
        )


def _assemble(
    path: str,
    origin: float,
    base: float,
    pts: list[int],
    keys: list[bool],
    shown: list[bool],
    last_duration: int,
    trusted: bool,
    codec: av.VideoCodecContext,
    aspect: float,
    rotation: int,
    sound_rate: int,
    sound_span: tuple[float, float],
    truncated: bool,
) -> Probe:
    stamps = np.array(pts, dtype=np.int64)
    visible = np.unique(stamps[np.array(shown, dtype=bool)])
    if visible.size == 0:
        raise MediaError("no_video", "the video stream has no frames")
    times = visible * base - origin
    steps = np.diff(times)
    usual = float(np.median(steps)) if steps.size else (last_duration * base or 0.04)
    # A header may claim any duration of the last frame; more than 0.5 s of it is not believed.
    duration = min(last_duration * base or usual, 0.5, 2 * usual)
    if sound_span[0] == math.inf:
        sound_span = (0.0, 0.0)
    else:
        sound_span = (sound_span[0] - origin, sound_span[1] - origin)
    return Probe(
        path=path,
        origin=origin,
        frame_times=times,
        frame_duration=duration,
        packet_pts=stamps,
        packet_keys=np.array(keys, dtype=bool),
        time_base=base,
        timestamps_trusted=trusted and len(np.unique(stamps)) == len(stamps),
        width=codec.width,
        height=codec.height,
        pixel_aspect=aspect if 0.1 < aspect < 10 else 1.0,
        rotation=rotation,
        codec=codec.name,
        sound_rate=sound_rate,
        sound_span=sound_span,
        truncated=truncated,
    )


def _rotation(
    container: av.container.InputContainer, video: av.VideoStream, start: int | None
) -> int:
    """Degrees counter-clockwise from the display matrix, which PyAV gives with a decoded frame.

    Args:
        start: time stamp of a key frame that is shown; None: there is none.
    """
    try:
        if start is None:
            container.seek(0)
        else:
            # Frames that an edit list hides would be decoded for nothing.
            container.seek(start, stream=video)
        for packet in container.demux(video):
            try:
                frames = packet.decode()
            except FFmpegError:
                continue  # a later frame tells as well
            for frame in frames:
                if isinstance(frame, av.VideoFrame):
                    return round(frame.rotation / 90) * 90 % 360
    except (FFmpegError, OSError):
        return 0  # frames that do not decode are reported when they are asked for
    return 0
