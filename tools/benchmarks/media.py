"""Synthetic videos for benchmarks and tests: numbered frames, flashes and clicks at known times."""

import dataclasses
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np

LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
BITS = 16  # of the frame number, drawn as 4 x 4 squares in the middle of each frame


@dataclasses.dataclass(frozen=True)
class VideoSpec:
    """Specification of a synthetic video.

    Attributes:
        seconds: length of the video stream.
        fps: frames per second.
        size: (width, height) in pixels.
        codec, pixel_format: of the video stream, FFmpeg's names.
        codec_options: of the encoder.
        pixel_aspect: width of a pixel over its height.
        rotation: degrees counter-clockwise in the display matrix.
        frame_times: presentation times in seconds instead of a constant rate.
        video_start: start of the video stream in seconds.
        audio: codec of the audio stream; None: no audio stream.
        rate, channels: of the audio.
        audio_start, audio_seconds: start and length of the audio; None: the length of the video.
        events: times in seconds of a white frame and a click.
        clutter: draw a random texture, which costs a codec as much as real video.
        seed: of texture and noise.
    """

    seconds: float = 3.0
    fps: float = 25.0
    size: tuple[int, int] = (320, 240)
    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    codec_options: tuple[tuple[str, str], ...] = ()
    pixel_aspect: Fraction = Fraction(1)
    rotation: int = 0
    frame_times: tuple[float, ...] | None = None
    video_start: float = 0.0
    audio: str | None = "aac"
    rate: int = 44100
    channels: int = 2
    audio_start: float = 0.0
    audio_seconds: float | None = None
    events: tuple[float, ...] = ()
    clutter: bool = False
    seed: int = 0

    @property
    def times(self) -> list[float]:
        """Presentation time of each frame, in seconds."""
        if self.frame_times is not None:
            return list(self.frame_times)
        count = round(self.seconds * self.fps)
        return [self.video_start + i / self.fps for i in range(count)]


def draw_frame(number: int, spec: VideoSpec, flash: bool) -> np.ndarray:
    """Frame with a moving gradient and its number as squares, uint8 [height, width, 3]."""
    width, height = spec.size
    if flash:
        return np.full((height, width, 3), 255, dtype=np.uint8)
    y, x = np.mgrid[0:height, 0:width]
    frame = np.stack(
        [(x + 2 * number) % 256 // 3, (y + number) % 256 // 3, np.full_like(x, 60)], axis=-1
    ).astype(np.uint8)
    if spec.clutter:
        rng = np.random.default_rng([spec.seed, number // 25])
        coarse = rng.integers(0, 120, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
        texture = coarse.repeat(16, axis=0).repeat(16, axis=1)
        shift = number % 16
        frame += texture[shift : shift + height, shift : shift + width]
        frame += rng.integers(0, 12, frame.shape, dtype=np.uint8)
    side = min(spec.size) // 2
    top, left, cell = (height - side) // 2, (width - side) // 2, side // 4
    for bit in range(BITS):
        row, column = top + bit // 4 * cell, left + bit % 4 * cell
        frame[row : row + cell, column : column + cell] = 230 if number >> bit & 1 else 20
    return frame


def read_number(frame: np.ndarray) -> int:
    """Read the number of a frame, which may be scaled or cropped to its middle square."""
    height, width = frame.shape[:2]
    side = min(height, width) / 2
    top, left, cell = (height - side) / 2, (width - side) / 2, side / 4
    number = 0
    for bit in range(BITS):
        row, column = int(top + (bit // 4 + 0.5) * cell), int(left + (bit % 4 + 0.5) * cell)
        number |= int(frame[row - 1 : row + 2, column - 1 : column + 2].mean() > 125) << bit
    return number


def draw_audio(spec: VideoSpec) -> np.ndarray:
    """Quiet noise with a click at each event, float32 [channels, samples]."""
    seconds = spec.audio_seconds if spec.audio_seconds is not None else spec.seconds
    rng = np.random.default_rng([spec.seed, 1])
    audio = rng.normal(0, 0.003, (spec.channels, round(seconds * spec.rate))).astype(np.float32)
    for time in spec.events:
        first = round((time - spec.audio_start) * spec.rate)
        if 0 <= first < audio.shape[1]:
            audio[:, first : first + round(0.004 * spec.rate)] += 0.8
    return np.clip(audio, -1, 1)


def make_video(path: Path, spec: VideoSpec) -> Path:
    """Encode a video in the container that the file's suffix names."""
    times = spec.times
    base = Fraction(1, 90_000)
    with av.open(str(path), "w") as container:
        rate = Fraction(spec.fps).limit_denominator(1001)
        video = cast(av.VideoStream, container.add_stream(spec.codec, rate=rate))
        video.width, video.height = spec.size
        video.pix_fmt = spec.pixel_format
        video.options = dict(spec.codec_options)
        fine = spec.frame_times is not None or spec.video_start > 0
        if fine:  # the clock of the frame rate is too coarse for these times
            video.codec_context.time_base = base
        video.codec_context.sample_aspect_ratio = spec.pixel_aspect
        if spec.rotation:
            video.set_display_rotation(spec.rotation)
        audio = None
        if spec.audio is not None:
            layout = LAYOUTS[spec.channels]
            track = container.add_stream(spec.audio, rate=spec.rate, layout=layout)
            audio = cast(av.AudioStream, track)
        audio_packets = _encode_audio(audio, spec) if audio is not None else iter(())
        for number, time in enumerate(times):
            flash = any(time <= event < time + 1 / spec.fps for event in spec.events)
            frame = av.VideoFrame.from_ndarray(draw_frame(number, spec, flash), "rgb24")
            frame.time_base = base if fine else 1 / rate
            frame.pts = round(time / float(frame.time_base))
            container.mux(video.encode(frame))
            for moment, packets in audio_packets:
                container.mux(packets)
                if moment > time:
                    break
        container.mux(video.encode(None))
        for _, packets in audio_packets:
            container.mux(packets)
    return path


def _encode_audio(
    stream: av.AudioStream, spec: VideoSpec
) -> Iterator[tuple[float, list[av.Packet]]]:
    """Packets of the audio, with the start of each chunk in seconds; infinity for the last."""
    samples = (draw_audio(spec) * 32767).astype(np.int16)
    step = 1024
    for first in range(0, samples.shape[1], step):
        chunk = np.ascontiguousarray(samples[:, first : first + step].T.reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(chunk, "s16", LAYOUTS[spec.channels])
        frame.sample_rate = spec.rate
        frame.time_base = Fraction(1, spec.rate)
        frame.pts = round(spec.audio_start * spec.rate) + first
        yield spec.audio_start + first / spec.rate, stream.encode(frame)
    yield float("inf"), stream.encode(None)


def make_folder(folder: Path, count: int, specs: Sequence[VideoSpec]) -> list[Path]:
    """Encode ``count`` MP4 files from the specs in turn, each with its own seed."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = folder / f"video-{number:05d}.mp4"
        if not path.exists():
            spec = dataclasses.replace(specs[number % len(specs)], seed=number)
            temporary = path.with_suffix(".tmp.mp4")
            make_video(temporary, spec).replace(path)
        paths.append(path)
    return paths
