"""Stretches of a long input: consecutive clips, each stretch a task of its own.

A first task surveys the input: it probes the file and decodes all its audio, in order, because
decoders of audio carry state over the whole file (noise substitution of AAC, dither of AC-3), and
because the place of a packet depends on those before it. The audio of every clip is stored. A
stretch then takes its audio from there and decodes only frames, from a key frame ahead of its
first clip on.

That frames are the same as in one pass is not taken on trust: neighbouring stretches both extract
the first clip of the later one, and where they differ the input is extracted again as one task
(:mod:`cavmae.datasets.sharding.task_queue`).
"""

import contextlib
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cavmae.common.files import is_url
from cavmae.common.remote import local_path
from cavmae.datasets.media import AudioReader, MediaError
from cavmae.datasets.media.packet_plan import run_up
from cavmae.datasets.sharding.inputs import Input
from cavmae.datasets.sharding.messages import InputSurvey, Reporter, StoredClip, Stretch
from cavmae.datasets.sharding.planning import ClipPlan, choose_frames
from cavmae.datasets.sharding.settings import ShardSettings
from cavmae.datasets.stream import features

# Packets that a stretch may decode ahead of its first frame: a minute at 25 Hz. Recordings with
# few key frames would be decoded over and over.
LONGEST_RUN_UP = 1500


def can_split(item: Input, plan: ClipPlan, settings: ShardSettings, seconds: float) -> bool:
    """Whether an input is worth several tasks and can be entered in the middle.

    These stay one task: remote inputs, which every task would download again; files whose packets
    do not name their frames, which are known by their number from the first one on; inputs with
    masks, whose clips without masks do not tell whether their frames are right; decord, which
    reads files from the beginning only; files without key frames near the places to split at.

    Args:
        plan: its clips.
        seconds: of clips above which an input is split.
    """
    source = local_path(item.source) or item.source
    if is_url(source) or item.masks is not None or settings.decoder == "decord":
        return False
    if plan.info.listing is not None:
        return False
    ends = _seconds_before(plan)
    count = _count(ends, seconds)
    targets = [int(np.searchsorted(ends, ends[-1] * i / count)) for i in range(1, count)]
    return any(_is_entry(plan, place, settings) for place in targets if 0 < place < len(plan.clips))


def _seconds_before(plan: ClipPlan) -> np.ndarray:
    """Seconds of clips before each clip, and of all: float64 [clips + 1]."""
    return np.cumsum([0.0, *(end - start for start, end in plan.clips)])


def _count(ends: np.ndarray, seconds: float) -> int:
    """Number of stretches of about equal length, of ``seconds`` at most."""
    return max(1, math.ceil(ends[-1] / seconds - 1e-6))


def _is_entry(plan: ClipPlan, place: int, settings: ShardSettings) -> bool:
    """Whether decoding can begin shortly before a clip."""
    first = int(choose_frames(plan.info, *plan.clips[place], settings)[0])
    return run_up(plan.info, first) <= LONGEST_RUN_UP


def file_state(path: str) -> tuple[int, int]:
    """Size in bytes and time of change in ns of a file, by which a changed file is noticed."""
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns


def write_survey(
    plan: ClipPlan, settings: ShardSettings, seconds: float, part: Path, reporter: Reporter
) -> None:
    """Store the audio of an input's clips; report each stretch as soon as its audio is stored.

    Args:
        plan: its clips, which :func:`can_split`.
        seconds: longest stretch.
        part: file of the input's samples, beside which the audio is stored.
    """
    info, path = plan.info, part.with_suffix(".audio")
    reporter.send(InputSurvey(info, file_state(info.path), path, tuple(plan.unused)))
    ends = _seconds_before(plan)
    length = ends[-1] / _count(ends, seconds)
    number = 0
    begin = 0.0  # seconds of clips before the stretch
    stored: list[StoredClip] = []
    reader = AudioReader(info, settings.downmix, plan.clips[0][0])
    with path.open("wb") as file, contextlib.closing(reader):
        for place, clip in enumerate(plan.clips):
            waveform, span = reader.read(*clip)
            data = features.to_int16(waveform).tobytes()
            entry = StoredClip(
                plan.numbers[place], file.tell(), len(data), zlib.crc32(data), span, reader.mixdown
            )
            file.write(data)
            reporter.alive()
            is_due = ends[place] - begin > length - 1e-6
            # Of a clip without audio no frame is read, so that it would prove nothing.
            has_audio = span is not None and features.fbank_frames(len(waveform)) > 0
            if is_due and has_audio and _is_entry(plan, place, settings):
                file.flush()
                reporter.send(Stretch(number, (*stored, entry), False))
                number, begin, stored = number + 1, float(ends[place]), []
            stored.append(entry)
    reporter.send(Stretch(number, tuple(stored), True))


class StoredAudio:
    """Audio of a stretch's clips, from the file of a survey; a source of ``video_clips``.

    Args:
        path: of the file.
        clips: in the order in which they are read.

    Attributes:
        mixdown: of the last clip, see :class:`~cavmae.datasets.media.AudioReader`.
    """

    def __init__(self, path: Path, clips: Sequence[StoredClip]):
        self._file = path.open("rb")
        self._clips = iter(clips)
        self.mixdown: tuple[str, ...] = ()

    def close(self) -> None:
        self._file.close()

    def read(self, start: float, end: float) -> tuple[np.ndarray, tuple[float, float] | None]:
        """Read the next clip's waveform, float32 [samples] at 16 kHz, and its span with audio.

        Args:
            start, end: of the clip, in seconds.

        Raises:
            MediaError: ``changed``: the file does not hold what the survey stored.
        """
        clip = next(self._clips)
        self._file.seek(clip.offset)
        data = self._file.read(clip.size)
        if zlib.crc32(data) != clip.crc:
            raise MediaError("changed", f"the stored audio from {start:.1f} to {end:.1f} s differs")
        self.mixdown = clip.mixdown
        return features.to_float(np.frombuffer(data, np.int16)), clip.span
