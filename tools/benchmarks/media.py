"""Videos made for measuring and testing: numbered frames, and sounds at known times."""

import dataclasses
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np

LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
BITS = 16  # of the frame number drawn into each picture, as 4 x 4 squares in the middle


@dataclasses.dataclass(frozen=True)
class VideoSpec:
    """A video to be made.

    Attributes:
        seconds: length of the picture.
        fps: frames a second.
        size: (width, height).
        codec, pixel_format: of the picture, FFmpeg's names.
        codec_options: for the encoder.
        pixel_aspect: width of a pixel over its height.
        rotation: degrees counter-clockwise in the display matrix.
        frame_times: presentation times instead of a constant rate, in seconds.
        picture_start: when the picture begins.
        audio: codec of the sound; None: no sound track.
        rate, channels: of the sound.
        sound_start, sound_seconds: when the sound begins, and its length (None: as the picture).
        events: times at which the picture flashes white for a frame and the sound clicks.
        clutter: random texture, seeded, so that coding costs what real pictures cost.
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
    picture_start: float = 0.0
    audio: str | None = "aac"
    rate: int = 44100
    channels: int = 2
    sound_start: float = 0.0
    sound_seconds: float | None = None
    events: tuple[float, ...] = ()
    clutter: bool = False
    seed: int = 0

    @property
    def times(self) -> list[float]:
        """Presentation time of each frame, in seconds."""
        if self.frame_times is not None:
            return list(self.frame_times)
        count = round(self.seconds * self.fps)
        return [self.picture_start + i / self.fps for i in range(count)]


def draw_frame(number: int, spec: VideoSpec, flash: bool) -> np.ndarray:
    """uint8 [height, width, 3]: a moving gradient with the frame's number as squares."""
    width, height = spec.size
    if flash:
        return np.full((height, width, 3), 255, dtype=np.uint8)
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack(
        [(x + 2 * number) % 256 // 3, (y + number) % 256 // 3, np.full_like(x, 60)], axis=-1
    ).astype(np.uint8)
    if spec.clutter:
        rng = np.random.default_rng([spec.seed, number // 25])
        coarse = rng.integers(0, 120, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
        texture = coarse.repeat(16, axis=0).repeat(16, axis=1)
        shift = number % 16
        picture += texture[shift : shift + height, shift : shift + width]
        picture += rng.integers(0, 12, picture.shape, dtype=np.uint8)
    side = min(spec.size) // 2
    top, left, cell = (height - side) // 2, (width - side) // 2, side // 4
    for bit in range(BITS):
        row, column = top + bit // 4 * cell, left + bit % 4 * cell
        picture[row : row + cell, column : column + cell] = 230 if number >> bit & 1 else 20
    return picture


def read_number(picture: np.ndarray) -> int:
    """Number drawn into a frame, from any scaled copy or one cut to its middle square."""
    height, width = picture.shape[:2]
    side = min(height, width) / 2
    top, left, cell = (height - side) / 2, (width - side) / 2, side / 4
    number = 0
    for bit in range(BITS):
        row, column = int(top + (bit // 4 + 0.5) * cell), int(left + (bit % 4 + 0.5) * cell)
        number |= int(picture[row - 1 : row + 2, column - 1 : column + 2].mean() > 125) << bit
    return number


def draw_sound(spec: VideoSpec) -> np.ndarray:
    """float32 [channels, samples]: quiet noise with a click at each event."""
    seconds = spec.sound_seconds if spec.sound_seconds is not None else spec.seconds
    rng = np.random.default_rng([spec.seed, 1])
    sound = rng.normal(0, 0.003, (spec.channels, round(seconds * spec.rate))).astype(np.float32)
    for time in spec.events:
        first = round((time - spec.sound_start) * spec.rate)
        if 0 <= first < sound.shape[1]:
            sound[:, first : first + round(0.004 * spec.rate)] += 0.8
    return np.clip(sound, -1, 1)


def make_video(path: Path, spec: VideoSpec) -> Path:
    """Encodes a video. The container is chosen by the file's ending."""
    times = spec.times
    base = Fraction(1, 90_000)
    with av.open(str(path), "w") as container:
        rate = Fraction(spec.fps).limit_denominator(1001)
        video = cast(av.VideoStream, container.add_stream(spec.codec, rate=rate))
        video.width, video.height = spec.size
        video.pix_fmt = spec.pixel_format
        video.options = dict(spec.codec_options)
        fine = spec.frame_times is not None or spec.picture_start > 0
        if fine:  # coders with a clock of their own frame rate could not tell these times
            video.codec_context.time_base = base
        video.codec_context.sample_aspect_ratio = spec.pixel_aspect
        if spec.rotation:
            video.set_display_rotation(spec.rotation)
        audio = None
        if spec.audio is not None:
            layout = LAYOUTS[spec.channels]
            track = container.add_stream(spec.audio, rate=spec.rate, layout=layout)
            audio = cast(av.AudioStream, track)
        sound = _encode_sound(audio, spec) if audio is not None else iter(())
        for number, time in enumerate(times):
            flash = any(time <= event < time + 1 / spec.fps for event in spec.events)
            frame = av.VideoFrame.from_ndarray(draw_frame(number, spec, flash), "rgb24")
            frame.time_base = base if fine else 1 / rate
            frame.pts = round(time / float(frame.time_base))
            container.mux(video.encode(frame))
            for moment, packets in sound:
                container.mux(packets)
                if moment > time:
                    break
        container.mux(video.encode(None))
        for _, packets in sound:
            container.mux(packets)
    return path


def _encode_sound(
    stream: av.AudioStream, spec: VideoSpec
) -> Iterator[tuple[float, list[av.Packet]]]:
    """Packets of the sound, and up to when they reach."""
    samples = (draw_sound(spec) * 32767).astype(np.int16)
    step = 1024
    for first in range(0, samples.shape[1], step):
        chunk = np.ascontiguousarray(samples[:, first : first + step].T.reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(chunk, "s16", LAYOUTS[spec.channels])
        frame.sample_rate = spec.rate
        frame.time_base = Fraction(1, spec.rate)
        frame.pts = round(spec.sound_start * spec.rate) + first
        yield spec.sound_start + first / spec.rate, stream.encode(frame)
    yield float("inf"), stream.encode(None)


def make_folder(folder: Path, count: int, specs: Sequence[VideoSpec]) -> list[Path]:
    """``count`` MP4 files of the specs in turn, each with a seed of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(count):
        path = folder / f"video-{number:05d}.mp4"
        if not path.exists():
            spec = dataclasses.replace(specs[number % len(specs)], seed=number)
            temporary = path.with_suffix(".tmp.mp4")
            make_video(temporary, spec).replace(path)
        made.append(path)
    return made
