"""Reader of the CAV-MAE reference's data files: a WAV, and frames in ``frame_N/ID.jpg``."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from cavmae.common.files import read_bytes
from cavmae.datasets.format import sample
from cavmae.datasets.media import MediaError
from cavmae.datasets.media.audio_files import AudioFileError, read_audio
from cavmae.datasets.sharding.inputs import Input
from cavmae.datasets.sharding.settings import JPEG_QUALITY, MAX_MISSING, ShardSettings
from cavmae.datasets.stream.features import SAMPLE_RATE, resample

FRAMES = 10  # frame_0 ... frame_9, at i / 10 of the clip


class WavAndFrames:
    """Reads one entry of a data file.

    Raises:
        MediaError: ``missing``, ``no_audio``, ``no_video``, ``too_short`` or ``decode_error``.
    """

    def __init__(self, item: Input, path: str, settings: ShardSettings):
        assert item.frames is not None and settings.min_seconds is not None
        self._settings = settings
        root = Path(item.frames)
        self._files = [root.parent / f"frame_{i}" / f"{root.name}.jpg" for i in range(FRAMES)]
        if not any(file.exists() for file in self._files):
            raise MediaError("no_video", f"no {self._files[0]} nor any other frame")
        self._waveform = self._read_wav(path)
        self.duration = len(self._waveform) / SAMPLE_RATE
        self.missing = 0
        if self.duration < settings.min_seconds:
            raise MediaError("too_short", f"{self.duration:.3f} s of audio")

    def _read_wav(self, path: str) -> np.ndarray:
        if not Path(path).exists():
            raise MediaError("missing", f"no {path}")
        try:
            samples, rate = read_audio(path, ("WAV", "FLAC"), 0.0, self._settings.clip_seconds)
        except AudioFileError as error:
            raise MediaError("no_audio", str(error)) from error
        mono = samples[:, 0] if self._settings.downmix == "first" else samples.mean(axis=1)
        return resample(np.ascontiguousarray(mono, dtype=np.float32), rate)

    def read(
        self,
    ) -> tuple[
        list[tuple[float, bytes]],
        tuple[int, int],
        tuple[np.ndarray, tuple[float, float] | None],
    ]:
        """Read frames as (time, JPEG), their (height, width), and (waveform, audio span).

        A JPEG of the right size is kept as it is, because encoding it again would lose quality.

        Raises:
            MediaError: ``decode_error``.
        """
        frames = []
        sizes = set()
        problem = "none"
        for number, file in enumerate(self._files):
            try:
                data = read_bytes(str(file), sample.MEMBER_LIMITS["jpg"])
                if len(data) > sample.MEMBER_LIMITS["jpg"]:
                    raise ValueError(f"{file} has more than 32 MB")
                with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                    data, size = self._fit(image, data)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                # Pillow's own message has a memory address in it.
                unknown = isinstance(error, UnidentifiedImageError)
                problem = f"{file} is not a JPEG" if unknown else str(error)
                self.missing += 1
                continue
            frames.append((number * self.duration / FRAMES, data))
            sizes.add(size)
        if not frames or self.missing > MAX_MISSING * FRAMES:
            raise MediaError(
                "decode_error", f"{self.missing} of {FRAMES} frames cannot be read ({problem})"
            )
        if len(sizes) > 1:
            raise MediaError("decode_error", f"frames of several sizes: {sorted(sizes)}")
        span = (0.0, round(self.duration, 4))
        return frames, sizes.pop(), (self._waveform, span)

    def _fit(self, image: Image.Image, data: bytes) -> tuple[bytes, tuple[int, int]]:
        side = self._settings.shorter_side
        scale = side / min(image.size)
        width, height = round(image.width * scale), round(image.height * scale)
        if self._settings.crop == "square":
            crop_width, crop_height = side, side
        else:
            crop_width, crop_height = width // 16 * 16, height // 16 * 16
        if max(crop_width, crop_height) > sample.MAX_SIDE:
            raise ValueError(f"a frame of {crop_width}x{crop_height} pixels is too large to store")
        if image.size == (crop_width, crop_height) and image.mode == "RGB":
            image.load()  # a broken file fails here, not in training
            return data, (crop_height, crop_width)
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
        scaled = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        cropped = scaled.crop((left, top, left + crop_width, top + crop_height))
        data = sample.encode_frame(np.asarray(cropped), JPEG_QUALITY)
        return data, (crop_height, crop_width)
