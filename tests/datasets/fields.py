"""Writer of H.264 with separately coded fields, as from camcorders and broadcasters.

The encoders of FFmpeg code fields together, so the stream is written bit by bit: an IDR field and
an I field for each frame, of I_PCM macroblocks.

Source: ITU-T H.264, 7.3 (syntax) and 9.1 (Exp-Golomb codes).
"""

import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.datasets.recordings import RATE, SIZE, Track, by_time, packets_of, video_frames

START = b"\0\0\0\1"
DELIMITER = START + b"\x09\x10"


def ue(value: int) -> str:
    code = f"{value + 1:b}"
    return "0" * (len(code) - 1) + code


def nal(head: int, bits: str, tail: bytes = b"") -> bytes:
    """NAL unit of bits, or of bits padded to bytes, further bytes, and the stop bit."""
    if not tail:
        bits += "1"
    bits += "0" * (-len(bits) % 8)
    raw = bytes([head]) + int(bits, 2).to_bytes(len(bits) // 8, "big") + tail + b"\x80" * bool(tail)
    return START + re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", raw)


def parameters() -> bytes:
    width, height = SIZE.size
    tick = f"{1:032b}{2 * RATE:032b}"
    sps = (
        f"{77:08b}{0:08b}{30:08b}" + ue(0) + ue(0) + ue(0) + ue(4) + ue(1) + "0"
        + ue(width // 16 - 1) + ue(height // 32 - 1)
        + "00" + "101" + "0000" + "1" + tick + "1"  # fields; no cropping; VUI with the rate
        + "000" + "11" + ue(0) + ue(0) + ue(10) + ue(10) + ue(0) + ue(1)
    )  # fmt: skip
    pps = ue(0) * 2 + "00" + ue(0) * 3 + "000" + ue(0) * 3 + "100"
    return nal(0x67, sps) + nal(0x68, pps)


def field(frame: np.ndarray, bottom: int, number: int) -> bytes:
    """NAL unit of a field of a frame, uint8 [height * 3 / 2, width] with planes Y, U, V."""
    width, height = SIZE.size
    luma = frame[:height][bottom::2]
    chroma = frame[height:].reshape(2, height // 2, width // 2)[:, bottom::2]
    slice_header = ue(0) + ue(7) + ue(0) + "0000" + f"1{bottom}"
    slice_header += f"{1:08b}0" if bottom else ue(number % 2) + f"{0:08b}00"
    slice_header += ue(0) + ue(1) + ue(25)
    blocks = [
        luma[y : y + 16, x : x + 16].tobytes()
        + chroma[:, y // 2 : y // 2 + 8, x // 2 : x // 2 + 8].tobytes()
        for y in range(0, height // 2, 16)
        for x in range(0, width, 16)
    ]
    aligned_type = b"\x0d\0"  # ue(25), padded to bytes
    return nal(0x41 if bottom else 0x65, slice_header, aligned_type.join(blocks))


def write_fields(
    path: Path, count: int, audio: Track, apart: bool = False, lost: range = range(0)
) -> Path:
    """Writes frames as fields to a transport stream.

    Args:
        apart: each field has a time stamp; otherwise, as usual, each frame.
        lost: numbers of frames that are missing, but for the second field of the last one.
    """
    with av.open(str(path), "w", format="mpegts") as container:
        video = container.add_stream("libx264", rate=RATE)
        assert isinstance(video, av.VideoStream)
        video.width, video.height, video.pix_fmt = *SIZE.size, "yuv420p"
        units = []  # (time in fields, bytes)
        for number, frame in enumerate(video_frames(0, count)):
            planes = frame.to_ndarray()
            first = DELIMITER + parameters() + field(planes, 0, number)
            second = DELIMITER + field(planes, 1, number)
            if number in lost:
                if number == lost[-1]:
                    units[-1] = units[-1][0], units[-1][1] + second
            elif apart:
                units += [(2 * number, first), (2 * number + 1, second)]
            else:
                units.append((2 * number, first + second))
        packets = []
        for time, unit in units:
            packet = av.Packet(unit)
            packet.stream, packet.time_base, packet.is_keyframe = video, Fraction(1, 90000), True
            packet.pts = packet.dts = 1800 * time
            packets.append(packet)
        for packet in by_time([packets, list(packets_of(container, audio))]):
            container.mux(packet)
    return path
