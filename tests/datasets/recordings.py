"""Synthetic recordings written packet by packet, as from cameras, browsers and broadcasters.

Each frame shows its number, and the pitch of the audio rises from 300 Hz by 200 Hz a second, so
that both reveal their true time.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from cavmae.datasets.media import AudioReader, Probe, open_decoder, probe
from cavmae.datasets.media.geometry import geometry
from cavmae.tools.benchmarks.media import VideoSpec, draw_frame, read_number

RATE = 25
X264 = {"g": "20", "bf": "2"}
SIZE = VideoSpec(size=(96, 64))


def sweep(start: float, seconds: float, rate: int = 48000) -> np.ndarray:
    """Tone of 300 + 200 t Hz from ``start`` seconds on, float32 [samples]."""
    time = start + np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * (300 * time + 100 * time**2))).astype(np.float32)


def pitch_times(waveform: np.ndarray, start: float = 0.0) -> np.ndarray:
    """Lead of the audio over its true time, for each half second, in seconds."""
    ahead = []
    for first in range(0, len(waveform) - 1024, 8000):
        block = waveform[first : first + 1024] * np.hanning(1024)
        tone = np.abs(np.fft.rfft(block, 16384)).argmax() * 16000 / 16384
        ahead.append((tone - 300) / 200 - (first + 512) / 16000 - start)
    return np.array(ahead)


@dataclasses.dataclass
class Track:
    """Encoded packets of a stream.

    ``change(number, packet)`` may alter their stamps before they are muxed.
    """

    codec: str
    frames: list[av.VideoFrame] | list[av.AudioFrame]
    options: dict[str, str] = dataclasses.field(default_factory=dict)
    change: Callable[[int, av.Packet], None] = lambda number, packet: None


def video_frames(first: int, count: int, start: float = 0.0, **changes: Any) -> list[av.VideoFrame]:
    spec = dataclasses.replace(SIZE, **changes)
    frames = []
    for i in range(count):
        frame = av.VideoFrame.from_ndarray(draw_frame(first + i, spec, False), "rgb24")
        frame = frame.reformat(format="yuv420p")
        frame.pts, frame.time_base = round(start * RATE) + i, Fraction(1, RATE)
        frames.append(frame)
    return frames


def audio_frames(
    waveform: np.ndarray, rate: int = 48000, layout: str = "mono", start: float = 0.0
) -> list[av.AudioFrame]:
    """Frames of float32 [samples] or [channels, samples]."""
    waveform = np.atleast_2d(waveform)
    frames = []
    for first in range(0, waveform.shape[1] - 1023, 1024):
        part = (waveform[:, first : first + 1024] * 32767).astype(np.int16)
        packed = np.ascontiguousarray(part.T.reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(packed, "s16", layout)
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = round(start * rate) + first
        frames.append(frame)
    return frames


def packets_of(container: av.container.OutputContainer, track: Track) -> Iterator[av.Packet]:
    first = track.frames[0]
    if isinstance(first, av.VideoFrame):
        video = container.add_stream(track.codec, rate=RATE)
        assert isinstance(video, av.VideoStream)
        video.width, video.height, video.pix_fmt = first.width, first.height, "yuv420p"
        video.options = track.options
        stream: Any = video
    else:
        layout = first.layout.name
        stream = container.add_stream(
            track.codec, rate=first.sample_rate, layout=layout, options=track.options
        )
    number = 0
    for frame in [*track.frames, None]:
        for packet in stream.encode(frame):
            track.change(number, packet)
            number += 1
            yield packet


def by_time(packets: Iterable[list[av.Packet]]) -> list[av.Packet]:
    """Sorts packets of several streams in the order of muxing."""
    return sorted(itertools.chain(*packets), key=lambda packet: packet.dts * packet.time_base)


def write(path: Path, *tracks: Track, **options: Any) -> Path:
    """Muxes tracks side by side, in the order of their unaltered times."""
    with av.open(str(path), "w", **options) as container:
        entries = []
        for place, track in enumerate(tracks):
            before = track.change
            times: list[float] = []

            def note(n: int, p: av.Packet, times: Any = times, before: Any = before) -> None:
                stamp = p.dts if p.dts is not None else p.pts
                times.append(float(stamp * p.time_base))
                before(n, p)

            packets = list(packets_of(container, dataclasses.replace(track, change=note)))
            entries += [(t, place, p) for t, p in zip(times, packets, strict=True)]
        for _, _, packet in sorted(entries, key=lambda entry: entry[:2]):
            container.mux(packet)
    return path


def numbers(info: Probe) -> dict[int, int]:
    """Number in every frame that decodes, by the frame's index."""
    shape = geometry(info, 64, "square")
    count = len(info.frame_times)
    decoder = open_decoder(info, shape, np.arange(count))
    frames: dict[int, np.ndarray] = {}
    for first in range(0, count, 7):
        frames.update(decoder.read(list(range(first, min(first + 7, count)))))
    return {i: read_number(frame) for i, frame in frames.items()}


def assert_in_step(path: Path, seconds: float, tolerance: float = 0.5 / RATE) -> Probe:
    """Asserts that frames and audio are at their true times, to the end."""
    info = probe(str(path))
    read = numbers(info)
    assert len(read) == round(seconds * RATE)
    error = [info.frame_times[i] - n / RATE for i, n in read.items()]
    assert np.ptp(error) <= tolerance
    waveform, _ = AudioReader(info).read(0.0, info.span[1])
    ahead = pitch_times(waveform)
    assert len(ahead) >= 2 * seconds - 1
    assert np.abs(ahead + np.mean(error)).max() < 0.06
    return info
