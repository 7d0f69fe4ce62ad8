"""One input to samples: what a worker process does."""

import contextlib
import dataclasses
import errno
import functools
import zlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch

from cavmae.datasets import features, sample
from cavmae.datasets.errors import CavmaeError
from cavmae.datasets.media import Decoder, MediaError, Probe, Sound, open_decoder, probe
from cavmae.datasets.media.geometry import Geometry, geometry
from cavmae.datasets.remote import DEFAULT_LIMITS, Limits
from cavmae.datasets.shards import encode_sample
from cavmae.tools.sharding.images import WavAndFrames
from cavmae.tools.sharding.inputs import Input, key_of
from cavmae.tools.sharding.masks import MaskFolder, label_values, mask_meaning
from cavmae.tools.sharding.settings import ShardSettings
from cavmae.tools.sharding.sources import copy_prefix, local_copy

# Errors of the machine rather than of the input: they end the whole run.
FATAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
TAIL_IGNORED = 0.2  # s: a remainder shorter than this is never worth sharing a clip for
NEAR = 0.05  # s: a frame that comes up later than this after a moment is not that moment's


class Written(NamedTuple):
    """A clip that a worker has written to its part file.

    Attributes:
        clip: number of the clip in its input.
        start: of the clip, in seconds.
        seconds: its length.
        size: bytes in the part file.
        crc: CRC-32 of those bytes.
    """

    clip: int
    start: float
    seconds: float
    size: int
    crc: int


class Skip(NamedTuple):
    """A clip, or (``clip`` and ``start`` None) an input or the rest of one, that gave no sample."""

    clip: int | None
    start: float | None
    reason: str
    detail: str


def plan_clips(
    span: tuple[float, float], start: float | None, end: float | None, settings: ShardSettings
) -> list[tuple[float, float]]:
    """Consecutive clips (start, end) of a video, in seconds.

    Args:
        span: what the video holds.
        start, end: the stretch asked for.

    Raises:
        MediaError: ``too_short``.
    """
    assert settings.clip_seconds is not None and settings.min_seconds is not None
    first = max(span[0], start if start is not None else span[0])
    last = min(span[1], end if end is not None else span[1])
    length, least = settings.clip_seconds, settings.min_seconds
    slack = 1e-3  # rounding of time stamps must not cost a clip
    if last - first < least - slack:
        raise MediaError("too_short", f"{max(0.0, last - first):.3f} s, at least {least:g} needed")
    count = int((last - first + slack) / length)
    clips = [(first + i * length, min(first + (i + 1) * length, last)) for i in range(count)]
    rest = first + count * length
    if last - rest >= least - slack:
        clips.append((rest, last))
    elif clips and settings.tail == "share" and last - rest >= TAIL_IGNORED:
        begin = clips.pop()[0]
        half = (last - begin) / 2
        half = round(half * 25) / 25  # on the 25 Hz grid of the speakers profile
        if min(half, last - begin - half) >= least - slack:
            clips += [(begin, begin + half), (begin + half, last)]
        else:
            clips.append((begin, begin + length))
    return clips


def choose_frames(info: Probe, start: float, end: float, settings: ShardSettings) -> np.ndarray:
    """Indices of the frames of a clip, by presentation time, each at most once.

    Wanted moments take the frame that is on screen then, or the next if that one is nearer.
    """
    times = info.frame_times
    step = 1 / info.frame_rate
    if settings.frame_rate is not None:
        inside = np.flatnonzero((times >= start - step / 2) & (times < end - step / 2))
        if info.frame_rate <= settings.frame_rate * 1.02 and inside.size:
            return inside
        grid = start + np.arange(round((end - start) * settings.frame_rate)) / settings.frame_rate
        spacing = 1 / settings.frame_rate
    else:
        assert settings.frames is not None
        grid = start + (end - start) * np.arange(settings.frames) / settings.frames
        spacing = (end - start) / settings.frames
    tolerance = min(step / 2, spacing / 2, NEAR)
    indices = np.searchsorted(times, grid + tolerance, side="right") - 1
    return np.unique(np.clip(indices, 0, len(times) - 1))


def make_members(
    item: Input,
    settings: ShardSettings,
    clip: tuple[float, float],
    frames: list[tuple[float, bytes]],
    size: tuple[int, int],
    sound: tuple[np.ndarray, tuple[float, float] | None],
    masks: dict[int, np.ndarray],
    decoder: str,
    missing: int,
) -> dict[str, bytes]:
    """A sample's members from a clip's parts.

    Args:
        frames: (time from the clip's start, JPEG) in order.
        size: (height, width) of the frames.
        sound: 16 kHz waveform and the part of the clip that has sound.
        masks: by number of the frame in ``frames``.

    Raises:
        MediaError: ``no_audio`` for less than one fbank frame of sound.
    """
    waveform, span = sound
    if span is None or features.fbank_frames(len(waveform)) == 0:
        raise MediaError("no_audio", "no sound in this clip")
    samples = features.to_int16(waveform)
    fbank = features.fbank(torch.from_numpy(features.to_float(samples))).numpy()
    members = {sample.frame_member(i): jpeg for i, (_, jpeg) in enumerate(frames)}
    members |= {sample.mask_member(i): sample.encode_mask(mask) for i, mask in masks.items()}
    members["fbank.npy"] = sample.encode_fbank(fbank)
    if settings.waveform:
        members["flac"] = sample.encode_waveform(samples)
    values = {int(v) for mask in masks.values() for v in np.unique(mask)}
    members["json"] = sample.SampleInfo(
        source=item.source,
        start=round(clip[0], 6),
        duration=round(clip[1] - clip[0], 6),
        labels=item.labels,
        speaker=item.speaker,
        frame_times=tuple(round(float(t), 6) for t, _ in frames),
        frame_size=size,
        fbank_frames=len(fbank),
        mask_values=mask_meaning(values) if masks else None,
        decoder=decoder,
        audio_span=span,
        masked_frames=tuple(sorted(masks)),
        missing_frames=missing,
    ).to_bytes()
    return members


class Clip(NamedTuple):
    """A clip to be made: ``members()`` does the work and may raise MediaError."""

    number: int
    start: float
    seconds: float
    members: Callable[[], dict[str, bytes]]


def video_clips(item: Input, path: str, settings: ShardSettings) -> Generator[Clip, None, None]:
    """The clips of a video file. Raises MediaError if it can give none."""
    info = probe(path)
    span = info.video_span
    clips = plan_clips(span, item.start, item.end, settings)
    numbers = [i for i, clip in enumerate(clips) if item.wants(i, clip[0])]
    clips = [clips[i] for i in numbers]
    wanted = [choose_frames(info, *clip, settings) for clip in clips]
    shape = geometry(info, settings.shorter_side, str(settings.crop))
    everything = np.unique(np.concatenate(wanted)) if wanted else np.zeros(0, dtype=np.int64)
    masks = None
    if item.masks is not None:
        coded = info.coded_display
        display = coded[::-1] if info.rotation % 180 else coded
        masks = MaskFolder(item.masks, display, (info.height, info.width))
    first = clips[0][0] if clips else 0.0
    with (
        contextlib.closing(open_decoder(info, shape, everything, settings.decoder)) as decoder,
        contextlib.closing(Sound(info, settings.downmix, first)) as sound,
    ):
        video = _Video(info, shape, decoder, sound, masks)
        for number, clip, indices in zip(numbers, clips, wanted, strict=True):
            make = functools.partial(video.members, item, settings, clip, indices)
            yield Clip(number, clip[0], clip[1] - clip[0], make)


@dataclasses.dataclass
class _Video:
    """An open video, read clip by clip."""

    info: Probe
    shape: Geometry
    decoder: Decoder
    sound: Sound
    masks: MaskFolder | None

    def members(
        self,
        item: Input,
        settings: ShardSettings,
        clip: tuple[float, float],
        indices: np.ndarray,
    ) -> dict[str, bytes]:
        waveform = self.sound.read(*clip)  # read in any case: stretches must be read in order
        pictures = self.decoder.read([int(i) for i in indices])
        missing = len(indices) - len(pictures)
        if not pictures or missing > settings.max_missing * len(indices):
            raise MediaError(
                "decode_error", f"{missing} of {len(indices)} frames could not be decoded"
            )
        labelled = {}
        if self.masks is not None:
            for number, index in enumerate(pictures):
                if (mask := self.masks.read(index, self.shape)) is not None:
                    labelled[number] = mask
            if not labelled:
                raise MediaError("no_masks", "the mask folder has none for this clip")
            labelled = label_values(labelled)
        frames = [
            (
                self.info.frame_times[index] - clip[0],
                sample.encode_frame(picture, settings.jpeg_quality),
            )
            for index, picture in pictures.items()
        ]
        return make_members(
            item,
            settings,
            clip,
            frames,
            self.shape.size,
            waveform,
            labelled,
            self.decoder.name,
            missing,
        )


def image_clips(item: Input, path: str, settings: ShardSettings) -> Generator[Clip, None, None]:
    """The one clip of an entry of a CAV-MAE data file: a WAV and its JPEGs."""
    source = WavAndFrames(item, path, settings)

    def members() -> dict[str, bytes]:
        frames, size, sound = source.read()
        clip = (0.0, source.duration)
        return make_members(item, settings, clip, frames, size, sound, {}, "jpeg", source.missing)

    yield Clip(0, 0.0, source.duration, members)


def shard_input(
    item: Input,
    settings: ShardSettings,
    part: Path,
    report: Callable[[Written | Skip], None],
    limits: Limits = DEFAULT_LIMITS,
    beat: Callable[[], None] | None = None,
) -> None:
    """Writes an input's samples to a part file.

    Args:
        part: file of the samples' tar blocks, one after the other.
        report: told of each clip, in order: written, or why not; and of an input that is none.
        limits: of a download.
        beat: called now and then while a download goes on.

    Raises:
        CavmaeError: the machine, not the input, is at fault (disk full, read-only).
    """
    torch.set_num_threads(1)
    try:
        copy = local_copy(item.source, part.parent, copy_prefix(part), limits, beat)
        with part.open("wb") as file, copy as path:
            if item.frames is not None:
                clips = image_clips(item, path, settings)
            else:
                clips = video_clips(item, path, settings)
            with contextlib.closing(clips):
                for clip in clips:
                    _write(item, clip, file, report)
    except MediaError as error:
        report(Skip(None, None, error.reason, error.detail))
    except MemoryError:
        report(Skip(None, None, "out_of_memory", "not enough memory to read it"))
    except OSError as error:
        if error.errno in FATAL:
            raise CavmaeError(f"Cannot write to {part.parent}: {error.strerror}.") from error
        report(Skip(None, None, "unreadable", str(error)))


def _write(
    item: Input, clip: Clip, file: IO[bytes], report: Callable[[Written | Skip], None]
) -> None:
    start = round(clip.start, 6)
    try:
        blocks = encode_sample(key_of(item, start), clip.members())
    except MediaError as error:
        report(Skip(clip.number, start, error.reason, error.detail))
        return
    file.write(blocks)
    file.flush()
    report(Written(clip.number, start, clip.seconds, len(blocks), zlib.crc32(blocks)))
