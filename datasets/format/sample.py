"""Samples: one clip of one video, as members in a shard and as arrays.

A sample's members are ``KEY.EXT``: ``json`` (:class:`SampleInfo`), ``fbank.npy`` (float16
[frames, 128]), ``000.jpg`` ... (RGB frames in time order), ``000.png`` ... (label mask of the frame
of that number) and ``flac`` (16 kHz mono). Shards are untrusted: nothing here unpickles, every size
is checked before memory is allocated, and no name ever becomes a path.
"""

import dataclasses
import io
import re
from typing import Any

import numpy as np
import simplejpeg
import soundfile
from PIL import Image

from cavmae.common.errors import SampleError
from cavmae.common.json_files import JSONError, json_bytes, parse_json, typed
from cavmae.datasets.stream.rates import MEL_BINS, SAMPLE_RATE

SCHEMA = 1
KEY_PATTERN = r"[A-Za-z0-9_-]{1,88}"
MAX_SIDE = 4096  # pixels of a stored frame
MAX_SECONDS = 3600  # of one clip
# Largest accepted size of a member in bytes, by the last part of its extension.
MEMBER_LIMITS = {
    "json": 4 << 20,
    "npy": 128 + MAX_SECONDS * 100 * MEL_BINS * 2,
    "flac": MAX_SECONDS * SAMPLE_RATE * 3,
    "jpg": 32 << 20,
    "png": 32 << 20,
}
_MEMBER = re.compile(
    rf"({KEY_PATTERN})\.((?:\d{{3,6}}\.)?(?:jpg|png)|fbank\.npy|flac|json)", re.ASCII
)
_EXPONENT = np.uint16(0x7C00)  # of a float16
_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_HEADER = re.compile(
    rb"\{'descr': '<f2', 'fortran_order': False, 'shape': \((\d{1,9}), (\d{1,9})\), \} *\n"
)


@dataclasses.dataclass(frozen=True)
class SampleInfo:
    """Metadata of a sample: its ``json`` member.

    Attributes:
        source: path or URL of the video as `cavmae shard` read it.
        start: of the clip, in seconds from the video's start.
        duration: of the clip, in seconds.
        labels: class names of the clip.
        speaker: identity of the speaker; None: unknown.
        frame_times: presentation time of every stored frame, in seconds from the clip's start.
        frame_size: (height, width) of the frames in pixels.
        sample_rate: of the waveform, in Hz; always 16,000.
        fbank_frames: rows of ``fbank.npy``.
        mask_values: meaning of the values of the mask PNGs; None where there are no masks.
        decoder: library that decoded the frames.
        audio_span: begin and end of the part of the clip with audio, in seconds from the clip's
            start; None: unknown.
        masked_frames: numbers of the frames that have a mask.
        missing_frames: number of frames of the clip that could not be decoded.
        video_stream, audio_stream: numbers of the streams that were read, as ``ffprobe`` counts
            them; None: the sample does not come from a media file.
        video_streams, audio_streams: number of streams of the file, without cover art.
        mixdown: channel layouts of the clip's audio, and the mixdown of each to one channel.
        tone_mapping: HDR transfer function, ``pq`` or ``hlg``, that was mapped to SDR; or empty.
    """

    source: str
    start: float
    duration: float
    labels: tuple[str, ...]
    speaker: str | None
    frame_times: tuple[float, ...]
    frame_size: tuple[int, int]
    fbank_frames: int
    mask_values: dict[str, str] | None = None
    sample_rate: int = SAMPLE_RATE
    decoder: str = ""
    audio_span: tuple[float, float] | None = None
    masked_frames: tuple[int, ...] = ()
    missing_frames: int = 0
    video_stream: int | None = None
    video_streams: int = 0
    audio_stream: int | None = None
    audio_streams: int = 0
    mixdown: str = ""
    tone_mapping: str = ""

    def to_bytes(self) -> bytes:
        record = {"schema": SCHEMA, **dataclasses.asdict(self)}
        return json_bytes(record, sort_keys=True)

    @classmethod
    def from_bytes(cls, data: bytes) -> "SampleInfo":
        """Parses and checks the ``json`` member.

        Raises:
            SampleError: ``bad_json`` for a record that is damaged, ``unknown_schema``.
        """
        try:
            record = parse_json(data, "its json", limit_bytes=MEMBER_LIMITS["json"])
        except JSONError as error:
            raise SampleError("bad_json", str(error)) from error
        if not isinstance(record, dict):
            raise SampleError("bad_json", "not an object")
        if record.get("schema") != SCHEMA:
            raise SampleError("unknown_schema", f"schema {record.get('schema')!r}, not {SCHEMA}")

        def optional(name: str, default: Any, *types: type) -> Any:
            """Value of a field that older shards lack."""
            return typed({name: default, **record}, name, *types)

        try:
            info = cls(
                source=typed(record, "source", str),
                start=typed(record, "start", float),
                duration=typed(record, "duration", float),
                labels=tuple(_list(record, "labels", str)),
                speaker=typed(record, "speaker", str, type(None)),
                frame_times=tuple(map(float, _list(record, "frame_times", int, float))),
                frame_size=tuple(_list(record, "frame_size", int)),
                fbank_frames=typed(record, "fbank_frames", int),
                mask_values=_mask_values(record),
                sample_rate=typed(record, "sample_rate", int),
                decoder=optional("decoder", "", str),
                audio_span=None if record.get("audio_span") is None else _audio_span(record),
                masked_frames=tuple(_list({"masked_frames": [], **record}, "masked_frames", int)),
                missing_frames=optional("missing_frames", 0, int),
                video_stream=optional("video_stream", None, int, type(None)),
                video_streams=optional("video_streams", 0, int),
                audio_stream=optional("audio_stream", None, int, type(None)),
                audio_streams=optional("audio_streams", 0, int),
                mixdown=optional("mixdown", "", str),
                tone_mapping=optional("tone_mapping", "", str),
            )
        except ValueError as error:
            raise SampleError("bad_json", str(error)) from error
        info._check()
        return info

    def _check(self) -> None:
        if not 0 < self.duration <= MAX_SECONDS:
            raise SampleError("bad_json", f"duration {self.duration}")
        if self.fbank_frames < 0 or self.missing_frames < 0:
            raise SampleError("bad_json", "a count is negative")
        if len(self.frame_size) != 2 or not all(0 < x <= MAX_SIDE for x in self.frame_size):
            raise SampleError("bad_json", f"frame_size {self.frame_size}")
        if self.sample_rate != SAMPLE_RATE:
            raise SampleError("bad_json", f"sample_rate {self.sample_rate}")
        if not self.frame_times or list(self.frame_times) != sorted(self.frame_times):
            raise SampleError("bad_json", "frame_times are missing or not in order")


def _list(record: dict[str, Any], name: str, *types: type) -> list[Any]:
    """List field whose values have one of ``types``. Raises ValueError."""
    values: list[Any] = typed(record, name, list)
    if not set(map(type, values)) <= set(types):
        raise ValueError(f"field {name} has values of another type")
    return values


def _mask_values(record: dict[str, Any]) -> dict[str, str] | None:
    """Field ``mask_values``. Raises ValueError."""
    values: dict[str, str] | None = typed(record, "mask_values", dict, type(None))
    if values is not None and not set(map(type, values.values())) <= {str}:
        raise ValueError("field mask_values has values that are no strings")
    return values


def _audio_span(record: dict[str, Any]) -> tuple[float, float]:
    """Field ``audio_span``. Raises ValueError."""
    values = _list(record, "audio_span", int, float)
    if len(values) != 2:
        raise ValueError(f"field audio_span has {len(values)} values")
    return float(values[0]), float(values[1])


def frame_member(number: int) -> str:
    """Extension of the member of a frame."""
    return f"{number:03d}.jpg"


def mask_member(number: int) -> str:
    """Extension of the member of a frame's mask."""
    return f"{number:03d}.png"


def split_member(name: str) -> tuple[str, str]:
    """Splits a member's name into key and extension.

    Raises:
        SampleError: ``bad_member`` for any other name.
    """
    match = _MEMBER.fullmatch(name)
    if match is None:
        raise SampleError("bad_member", f"member {name[:100]!r} is not one of a sample")
    return match[1], match[2]


def member_limit(extension: str) -> int:
    """Largest accepted size of a member, in bytes."""
    return MEMBER_LIMITS[extension.rpartition(".")[2]]


def encode_fbank(fbank: np.ndarray) -> bytes:
    """Encodes an fbank, float [frames, 128], as the bytes of a float16 ``.npy`` file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, fbank.astype("<f2"), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def decode_fbank(data: bytes, frames: int) -> np.ndarray:
    """Decodes an ``fbank.npy`` member to float16 [frames, 128], without a copy.

    The header is matched as text rather than evaluated: it is untrusted, and this is faster.

    Raises:
        SampleError: ``bad_fbank`` for any other array, object arrays (pickles) included,
            ``fbank_not_finite`` for values that are NaN or infinite.
    """
    header_size = int.from_bytes(data[8:10], "little")
    header = _NPY_HEADER.fullmatch(data[10 : 10 + header_size])
    if data[:8] != _NPY_MAGIC or header is None:
        raise SampleError("bad_fbank", "not a little-endian float16 array of two axes")
    shape = int(header[1]), int(header[2])
    if shape != (frames, MEL_BINS) or len(data) != 10 + header_size + 2 * frames * MEL_BINS:
        raise SampleError("bad_fbank", f"shape {shape}, the json says {(frames, MEL_BINS)}")
    bits = np.frombuffer(data, "<u2", offset=10 + header_size)
    # All bits of the exponent set; much faster than numpy.isfinite of float16.
    if ((bits & _EXPONENT) == _EXPONENT).any():
        raise SampleError("fbank_not_finite", "it holds values that are NaN or infinite")
    return bits.view("<f2").reshape(shape)


def encode_frame(frame: np.ndarray, quality: int) -> bytes:
    """Encodes a frame, uint8 RGB [height, width, 3], as JPEG (4:2:0)."""
    data: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(frame), quality=quality, colorspace="RGB", colorsubsampling="420"
    )
    return data


def decode_frame(
    data: bytes,
    size: tuple[int, int] | None = None,
    min_size: tuple[int, int] | None = None,
    grey: bool = False,
) -> np.ndarray:
    """Decodes a JPEG to a frame, uint8 RGB [height, width, 3], or grey [height, width].

    Args:
        size: expected (height, width); checked before memory is allocated for pixels.
        min_size: smallest (height, width) to which the decoder may scale the frame down, which
            saves most of the work; None: full size.
        grey: decode the luminance only, which saves a third of the work.

    Raises:
        SampleError: ``bad_frame``.
    """
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        if (size is not None and (height, width) != tuple(size)) or max(height, width) > MAX_SIDE:
            raise SampleError("bad_frame", f"{height}x{width} pixels, the json says {size}")
        least = min_size if min_size is not None else (height, width)
        image: np.ndarray = simplejpeg.decode_jpeg(
            data,
            colorspace="GRAY" if grey else "RGB",
            min_height=least[0],
            min_width=least[1],
            min_factor=2,
        )
    except ValueError as error:
        raise SampleError("bad_frame", str(error)) from error
    return image[..., 0] if grey else image


def encode_mask(mask: np.ndarray) -> bytes:
    """Encodes a mask, uint8 [height, width], as a grey PNG."""
    buffer = io.BytesIO()
    Image.fromarray(mask, mode=None).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def decode_mask(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """Decodes a PNG to a mask, uint8 [height, width].

    Raises:
        SampleError: ``bad_mask``.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if (image.height, image.width) != tuple(size) or image.mode not in ("L", "P", "1"):
                raise SampleError(
                    "bad_mask",
                    f"{image.mode} image of {image.height}x{image.width}, the json says {size}",
                )
            # Values are labels: those of a palette image are its indices, not its colours.
            return np.asarray(image).astype(np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SampleError("bad_mask", str(error)) from error


def encode_waveform(waveform: np.ndarray) -> bytes:
    """Encodes a waveform, int16 [samples] at 16 kHz, as FLAC."""
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_waveform(data: bytes, start: int = 0, samples: int = -1) -> np.ndarray:
    """Decodes a ``flac`` member, or a part of it, to int16 [samples] at 16 kHz.

    Args:
        start: first sample.
        samples: number of samples; -1: to the end.

    Raises:
        SampleError: ``bad_waveform``.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if (file.format, file.channels, file.samplerate) != ("FLAC", 1, SAMPLE_RATE):
                raise SampleError(
                    "bad_waveform",
                    f"{file.format} with {file.channels} channels at {file.samplerate} Hz",
                )
            if file.frames > MAX_SECONDS * SAMPLE_RATE:
                raise SampleError("bad_waveform", f"{file.frames} samples")
            file.seek(min(start, file.frames))
            waveform: np.ndarray = file.read(samples, dtype="int16")
    except soundfile.SoundFileError as error:
        raise SampleError("bad_waveform", str(error)) from error
    return waveform
