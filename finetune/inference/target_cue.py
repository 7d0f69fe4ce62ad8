"""Cue for the model, made of the options and files of a target person."""

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from cavmae.common.boxes import mask_box
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import read_bytes
from cavmae.datasets.media.audio_files import MAGIC, AudioFileError, read_audio
from cavmae.datasets.stream.features import SAMPLE_RATE, resample
from cavmae.finetune.inference.predictor import Cue
from cavmae.finetune.inference.target import Target

MAX_VOICE_SECONDS = 600.0  # s, longest part of a reference recording that is read


def check_files(target: Target) -> None:
    """Check the files that a target names.

    Raises:
        UsageError: several kinds at once, or a time without a place.
        CavmaeError: a file that cannot be read, or holds nothing.
    """
    if target.time and target.kind in ("none", "voice"):
        raise UsageError(
            f"--target.time {target.time:g} is of --target.box, .point or .mask: give one of them, "
            "or leave it out."
        )
    if target.kind == "voice":
        _read_voice(str(target.voice))
    elif target.mask is not None:
        _read_mask(target.mask)


def cue_of(target: Target, display: tuple[int, int], seconds: float, samples: int) -> Cue | None:
    """Cue for the model; None: there is no target.

    Args:
        target: options.
        display: (height, width) of the recording in pixels, as displayed.
        seconds: length of the recording.
        samples: length of the reference voice that the model takes.

    Raises:
        UsageError: the cue lies outside the frame or the recording.
        CavmaeError: a file that cannot be read, or holds nothing.
    """
    kind = target.kind
    if kind == "none":
        return None
    if target.voice is not None:
        return Cue("voice", voice=_loudest(_read_voice(target.voice), samples))
    if not 0 <= target.time <= seconds:
        raise UsageError(
            f"--target.time {target.time:g} lies outside the recording of {seconds:g} s."
        )
    height, width = display
    if target.mask is not None:
        return _mask_cue(target.mask, target.time, (height, width))
    numbers = target.box if target.box is not None else target.point
    assert numbers is not None
    values = [float(v) for v in numbers]
    if len(values) == 2:
        values = values * 2
    if max(values) > 1:
        values = [v / side for v, side in zip(values, (width, height) * 2, strict=True)]
    left, top, right, bottom = values
    if not (0 <= left <= right <= 1 and 0 <= top <= bottom <= 1) or not all(
        map(math.isfinite, values)
    ):
        raise UsageError(
            f"--target.{kind} {','.join(f'{v:g}' for v in numbers)} does not lie in the "
            f"frame of {width}x{height} pixels: give "
            f"{'x, y' if kind == 'point' else 'left, top, right, bottom'}."
        )
    return Cue(kind, target.time, (left, top, right, bottom))


def _read_mask(path: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(read_bytes(path)), formats=["PNG"]) as image:
            mask: np.ndarray = np.asarray(image.convert("L")) > 127
    except UnidentifiedImageError as error:
        raise CavmaeError(f"--target.mask {path} is not a PNG.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CavmaeError(f"--target.mask {path} is not a readable image: {error}.") from error
    if not mask.any():
        raise UsageError(f"--target.mask {path} is black: it has to be white where the person is.")
    return mask


def _mask_cue(path: str, time: float, size: tuple[int, int]) -> Cue:
    mask = _read_mask(path)
    if mask.shape != size:
        raise UsageError(
            f"--target.mask {path} has {mask.shape[1]}x{mask.shape[0]} pixels, the frame "
            f"{size[1]}x{size[0]}."
        )
    box = mask_box(mask)
    assert box is not None  # _read_mask refuses black masks
    return Cue("mask", time, box, mask)


def _read_voice(path: str) -> np.ndarray:
    if not Path(path).is_file():
        raise UsageError(f"--target.voice {path}: there is no such file.")
    try:
        samples, rate = read_audio(path, MAGIC, 0.0, MAX_VOICE_SECONDS)
    except AudioFileError as error:
        raise CavmaeError(
            f"--target.voice {path} is not a readable audio file (WAV, FLAC, OGG, MP3): {error}"
        ) from error
    wave = resample(samples.mean(1), rate, SAMPLE_RATE)
    if not wave.size or float(np.abs(wave).max()) < 1e-4:
        raise CavmaeError(f"--target.voice {path} is silent.")
    return wave


def _loudest(wave: np.ndarray, samples: int) -> np.ndarray:
    """The part of a wave with the highest energy, of a given number of samples."""
    if len(wave) <= samples:
        return np.pad(wave, (0, samples - len(wave)))
    energy = np.concatenate([[0.0], np.cumsum(np.square(wave, dtype=np.float64))])
    step = SAMPLE_RATE // 10
    starts = np.arange(0, len(wave) - samples + 1, step)
    best = int(starts[(energy[starts + samples] - energy[starts]).argmax()])
    loudest: np.ndarray = wave[best : best + samples]
    return loudest
