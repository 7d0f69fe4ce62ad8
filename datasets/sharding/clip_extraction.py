"""Clip extraction: turns one input into samples, in a worker process."""

import contextlib
import dataclasses
import errno
import functools
import zlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from cavmae.common.errors import CavmaeError
from cavmae.common.remote import DEFAULT_LIMITS, Limits
from cavmae.common.threads import use_one_thread
from cavmae.datasets.format import sample
from cavmae.datasets.format.shards import encode_sample
from cavmae.datasets.media import AudioReader, Decoder, MediaError, Probe, open_decoder
from cavmae.datasets.media.geometry import Geometry
from cavmae.datasets.sharding.cavmae_datafile import WavAndFrames
from cavmae.datasets.sharding.inputs import Input, sample_key
from cavmae.datasets.sharding.job_state import copy_prefix
from cavmae.datasets.sharding.masks import MaskFolder, label_values, mask_value_names
from cavmae.datasets.sharding.messages import (
    InputSurvey,
    Message,
    Reporter,
    Seam,
    Skip,
    Stretch,
    Written,
)
from cavmae.datasets.sharding.planning import ClipPlan, choose_frames, plan_probed, plan_video
from cavmae.datasets.sharding.settings import JPEG_QUALITY, MAX_MISSING, ShardSettings
from cavmae.datasets.sharding.sources import local_copy
from cavmae.datasets.sharding.stretches import StoredAudio, can_split, file_state, write_survey
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


class AudioSource(Protocol):
    """Audio of clips, read in time order; see :class:`~cavmae.datasets.media.AudioReader`."""

    mixdown: tuple[str, ...]

    def read(self, start: float, end: float) -> tuple[np.ndarray, tuple[float, float] | None]:
        """Read the waveform of a clip, float32 [samples] at 16 kHz, and its span with audio."""
        ...


def video_clips(
    item: Input, settings: ShardSettings, plan: ClipPlan, audio: AudioSource
) -> Generator[ClipSpan, None, None]:
    """Yield the planned clips of a video file.

    Raises:
        MediaError: the file gives no clip.
    """
    info = plan.info
    wanted = [choose_frames(info, *clip, settings) for clip in plan.clips]
    all_indices = np.unique(np.concatenate(wanted)) if wanted else np.zeros(0, dtype=np.int64)
    masks = None
    if item.masks is not None:
        masks = MaskFolder(item.masks, info.display, (info.height, info.width))
    decoder = open_decoder(info, plan.shape, all_indices, settings.decoder)
    with contextlib.closing(decoder):
        video = _Video(info, plan.shape, decoder, audio, masks)
        for number, clip, indices in zip(plan.numbers, plan.clips, wanted, strict=True):
            members = functools.partial(video.members, item, settings, clip, indices)
            yield ClipSpan(number, clip[0], clip[1] - clip[0], members)


@dataclasses.dataclass
class _Video:
    """An open video, read clip by clip."""

    info: Probe
    shape: Geometry
    decoder: Decoder
    audio: AudioSource
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


def image_clips(item: Input, path: str, settings: ShardSettings) -> Generator[ClipSpan, None, None]:
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
    stretch_seconds: float | None = None,
    assigned: tuple[InputSurvey, Stretch] | None = None,
) -> None:
    """Write an input's samples, or those of a stretch of it, to a part file.

    Args:
        part: file of the samples' tar blocks, one after the other.
        report: takes a message for each clip in order (written or skipped), one for an input
            without clips, and signs of life in between.
        limits: of a download.
        stretch_seconds: an input with more seconds of clips is only surveyed, if it can be entered
            in the middle: the reports are an InputSurvey and its stretches. None: none is.
        assigned: extract only this stretch of a survey.

    Raises:
        CavmaeError: the disk is full or read-only.
    """
    use_one_thread()
    reporter = Reporter(report)
    copy = local_copy(item.source, part.parent, copy_prefix(part), limits, reporter.alive)
    try:
        with copy as path:
            if item.frames is not None:
                _write_clips(item, image_clips(item, path, settings), part, reporter)
            elif assigned is not None:
                _write_stretch(item, path, settings, part, reporter, *assigned)
            else:
                plan = plan_video(item, path, settings, reporter.alive)
                if stretch_seconds is None or not can_split(item, plan, settings, stretch_seconds):
                    _write_whole(item, settings, plan, part, reporter)
                else:
                    write_survey(plan, settings, stretch_seconds, part, reporter)
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


def _write_whole(
    item: Input, settings: ShardSettings, plan: ClipPlan, part: Path, reporter: Reporter
) -> None:
    """Write all planned clips of a video, and report every unused part of it."""
    first = plan.clips[0][0] if plan.clips else 0.0
    with contextlib.closing(AudioReader(plan.info, settings.downmix, first)) as audio:
        _write_clips(item, video_clips(item, settings, plan, audio), part, reporter)
    for skip in plan.unused:
        reporter.skipped(skip)


def _write_stretch(
    item: Input,
    path: str,
    settings: ShardSettings,
    part: Path,
    reporter: Reporter,
    survey: InputSurvey,
    stretch: Stretch,
) -> None:
    """Write the clips of a stretch, and report the results that its neighbours have to share."""
    if file_state(path) != survey.file_state:
        raise MediaError("changed", "the file changes while it is read")
    plan = plan_probed(item, dataclasses.replace(survey.info, path=path), settings)
    clips = dict(zip(plan.numbers, plan.clips, strict=True))
    numbers = [stored.clip for stored in stretch.clips]
    plan = plan._replace(numbers=numbers, clips=[clips[number] for number in numbers])
    before = numbers[0] if stretch.number else None
    after = None if stretch.is_last else numbers[-1]
    with contextlib.closing(StoredAudio(survey.audio, stretch.clips)) as audio:
        spans = video_clips(item, settings, plan, audio)
        _write_clips(item, spans, part, reporter, before, after)


def _write_clips(
    item: Input,
    clips: Generator[ClipSpan, None, None],
    part: Path,
    reporter: Reporter,
    before: int | None = None,
    after: int | None = None,
) -> None:
    """Write clips to a part file.

    Args:
        before: number of a clip that the stretch before extracts, too.
        after: number of the clip that belongs to the next stretch, and is not written.
    """
    with part.open("wb") as file, contextlib.closing(clips):
        for clip in clips:
            blocks, result = _encode(item, clip)
            if clip.number in (before, after):
                reporter.send(Seam(result))
            if clip.number == after:
                continue
            if isinstance(result, Skip):
                reporter.skipped(result)
            else:
                file.write(blocks)
                file.flush()
                reporter.written(result)


def _encode(item: Input, clip: ClipSpan) -> tuple[bytes, Written | Skip]:
    """Tar blocks of a clip, and the message about it."""
    start = round(clip.start, 6)
    try:
        blocks = encode_sample(sample_key(item, start), clip.members())
    except MediaError as error:
        return b"", Skip(clip.number, start, error.reason, error.detail, 1, start)
    return blocks, Written(clip.number, start, clip.seconds, len(blocks), zlib.crc32(blocks))
