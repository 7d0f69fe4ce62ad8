"""Clip extraction: turns one input into samples, in a worker process."""

import contextlib
import dataclasses
import errno
import functools
import zlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from cavmae.common.errors import CavmaeError
from cavmae.common.remote import DEFAULT_LIMITS, Limits
from cavmae.datasets.format import sample
from cavmae.datasets.format.shards import encode_sample
from cavmae.datasets.media import AudioReader, Decoder, MediaError, Probe, open_decoder, probe
from cavmae.datasets.media.geometry import Geometry, geometry
from cavmae.datasets.sharding.cavmae_datafile import WavAndFrames
from cavmae.datasets.sharding.inputs import Input, sample_key
from cavmae.datasets.sharding.job_state import copy_prefix
from cavmae.datasets.sharding.masks import MaskFolder, label_values, mask_value_names
from cavmae.datasets.sharding.messages import Message, Reporter, Skip, Written
from cavmae.datasets.sharding.planning import choose_frames, plan_clips
from cavmae.datasets.sharding.settings import JPEG_QUALITY, MAX_MISSING, ShardSettings
from cavmae.datasets.sharding.sources import local_copy
from cavmae.datasets.stream import features

# Errors of the machine, not of the input: they end the whole run.
FATAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})


def encode_members(
    item: Input,
    settings: ShardSettings,
    clip: tuple[float, float],
    frames: list[tuple[float, bytes]],
    size: tuple[int, int],
    audio: tuple[np.ndarray, tuple[float, float] | None],
    masks: dict[int, np.ndarray],
    decoder: str,
    missing: int,
    info_fields: dict[str, Any],
) -> dict[str, bytes]:
    """Encode the members of a sample.

    Args:
        frames: (time from the clip's start, JPEG) in order.
        size: (height, width) of the frames.
        audio: float32 [samples] waveform at 16 kHz, and the span of the clip with audio.
        masks: uint8 [height, width] label masks by number of the frame in ``frames``.
        info_fields: more fields of :class:`sample.SampleInfo`.

    Raises:
        MediaError: ``no_audio`` for less than one fbank frame of audio.
    """
    waveform, span = audio
    _require_audio(audio)
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
        mask_values=mask_value_names(values) if masks else None,
        decoder=decoder,
        audio_span=span,
        masked_frames=tuple(sorted(masks)),
        missing_frames=missing,
        **info_fields,
    ).to_bytes()
    return members


def _require_audio(audio: tuple[np.ndarray, tuple[float, float] | None]) -> None:
    if audio[1] is None or features.fbank_frames(len(audio[0])) == 0:
        raise MediaError("no_audio", "no audio in this clip")


class ClipSpan(NamedTuple):
    """A clip to extract: ``members()`` decodes it and may raise MediaError."""

    number: int
    start: float
    seconds: float
    members: Callable[[], dict[str, bytes]]


def video_clips(
    item: Input, path: str, settings: ShardSettings, heartbeat: Callable[[], None]
) -> Generator[ClipSpan | Skip, None, None]:
    """Yield the clips of a video file, then a Skip for every unused part of it.

    Args:
        heartbeat: called from time to time while the file is probed.

    Raises:
        MediaError: the file gives no clip.
    """
    info = probe(path, settings.video_stream, settings.audio_stream, heartbeat)
    unused = [part for part in info.unused if item.end is None or part.start < item.end]
    try:
        clips = plan_clips(info.span, item.start, item.end, settings)
    except MediaError as error:
        for part in unused:  # the cause of the missing clips
            raise MediaError(part.reason, f"{part.detail} ({error.detail})") from error
        raise
    numbers = [i for i, clip in enumerate(clips) if item.wants(i, clip[0])]
    clips = [clips[i] for i in numbers]
    wanted = [choose_frames(info, *clip, settings) for clip in clips]
    shape = geometry(info, settings.shorter_side, str(settings.crop))
    all_indices = np.unique(np.concatenate(wanted)) if wanted else np.zeros(0, dtype=np.int64)
    masks = None
    if item.masks is not None:
        masks = MaskFolder(item.masks, info.display, (info.height, info.width))
    first = clips[0][0] if clips else 0.0
    with (
        contextlib.closing(open_decoder(info, shape, all_indices, settings.decoder)) as decoder,
        contextlib.closing(AudioReader(info, settings.downmix, first)) as audio,
    ):
        video = _Video(info, shape, decoder, audio, masks)
        for number, clip, indices in zip(numbers, clips, wanted, strict=True):
            members = functools.partial(video.members, item, settings, clip, indices)
            yield ClipSpan(number, clip[0], clip[1] - clip[0], members)
    for part in unused:
        yield Skip(None, None, part.reason, part.detail)


@dataclasses.dataclass
class _Video:
    """An open video, read clip by clip."""

    info: Probe
    shape: Geometry
    decoder: Decoder
    audio: AudioReader
    masks: MaskFolder | None

    def members(
        self,
        item: Input,
        settings: ShardSettings,
        clip: tuple[float, float],
        indices: np.ndarray,
    ) -> dict[str, bytes]:
        audio = self.audio.read(*clip)
        _require_audio(audio)  # before the slower decoding of frames
        images = self.decoder.read([int(i) for i in indices])
        missing = len(indices) - len(images)
        if not images or missing > MAX_MISSING * len(indices):
            raise MediaError(
                "decode_error", f"{missing} of {len(indices)} frames could not be decoded"
            )
        masks = {}
        if self.masks is not None:
            for number, index in enumerate(images):
                if (mask := self.masks.read(index, self.shape)) is not None:
                    masks[number] = mask
            if not masks:
                raise MediaError("no_masks", "the mask folder has none for this clip")
            masks = label_values(masks)
        frames = [
            (
                self.info.frame_times[index] - clip[0],
                sample.encode_frame(image, JPEG_QUALITY),
            )
            for index, image in images.items()
        ]
        return encode_members(
            item,
            settings,
            clip,
            frames,
            self.shape.size,
            audio,
            masks,
            self.decoder.name,
            missing,
            {
                "video_stream": self.info.video_stream,
                "video_streams": self.info.video_streams,
                "audio_stream": self.info.audio_stream,
                "audio_streams": self.info.audio_streams,
                "mixdown": ", ".join(self.audio.mixdown),
                "tone_mapping": self.info.transfer if self.decoder.name == "pyav" else "",
            },
        )


def image_clips(
    item: Input, path: str, settings: ShardSettings
) -> Generator[ClipSpan | Skip, None, None]:
    """Yield the only clip of an entry of a CAV-MAE data file: a WAV and its JPEGs."""
    source = WavAndFrames(item, path, settings)

    def members() -> dict[str, bytes]:
        frames, size, audio = source.read()
        clip = (0.0, source.duration)
        return encode_members(
            item, settings, clip, frames, size, audio, {}, "jpeg", source.missing, {}
        )

    yield ClipSpan(0, 0.0, source.duration, members)


def shard_input(
    item: Input,
    settings: ShardSettings,
    part: Path,
    report: Callable[[Message], None],
    limits: Limits = DEFAULT_LIMITS,
) -> None:
    """Write an input's samples to a part file.

    Args:
        part: file of the samples' tar blocks, one after the other.
        report: takes a message for each clip in order (written or skipped), one for an input
            without clips, and signs of life in between.
        limits: of a download.

    Raises:
        CavmaeError: the disk is full or read-only.
    """
    torch.set_num_threads(1)
    reporter = Reporter(report)
    try:
        copy = local_copy(item.source, part.parent, copy_prefix(part), limits, reporter.alive)
        with part.open("wb") as file, copy as path:
            clips: Generator[ClipSpan | Skip, None, None]
            if item.frames is not None:
                clips = image_clips(item, path, settings)
            else:
                clips = video_clips(item, path, settings, reporter.alive)
            with contextlib.closing(clips):
                for clip in clips:
                    if isinstance(clip, Skip):
                        reporter.skipped(clip)
                    else:
                        _write(item, clip, file, reporter)
        reporter.flush()
    except MediaError as error:
        reporter.skipped(Skip(None, None, error.reason, error.detail))
        reporter.flush()
    except MemoryError:
        reporter.skipped(Skip(None, None, "out_of_memory", "not enough memory to read it"))
        reporter.flush()
    except OSError as error:
        if error.errno in FATAL:
            raise CavmaeError(f"Cannot write to {part.parent}: {error.strerror}.") from error
        reporter.skipped(Skip(None, None, "unreadable", str(error)))
        reporter.flush()


def _write(item: Input, clip: ClipSpan, file: IO[bytes], reporter: Reporter) -> None:
    start = round(clip.start, 6)
    try:
        blocks = encode_sample(sample_key(item, start), clip.members())
    except MediaError as error:
        reporter.skipped(Skip(clip.number, start, error.reason, error.detail, 1, start))
        return
    file.write(blocks)
    file.flush()
    reporter.written(Written(clip.number, start, clip.seconds, len(blocks), zlib.crc32(blocks)))
