"""Inputs of sharding: videos, and stretches of videos."""

import dataclasses
import functools
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from cavmae.common.files import is_url
from cavmae.common.remote import local_path

FOLDERS = 1 << 16  # whose real paths are kept


@dataclasses.dataclass(frozen=True, slots=True)  # slots: lists have millions of rows
class Input:
    """A video, or a stretch of a video.

    Attributes:
        source: path or URL that is opened.
        start, end: the stretch, in seconds of playback time; None: the video's own.
        labels: class names.
        speaker: id of the speaker.
        masks: folder of mask PNGs named by frame number from 0 (``0000.png``).
        frames: for CAV-MAE data files: the folder with ``frame_N`` folders; ``source`` is the WAV.
        first_clip: extract the clips from this number on; None: none of them. For retries.
        clips: start times in seconds of more clips to extract. For retries.
        attempt: 0 at first, more for retries.
        stretches: extract also the clips that begin in these stretches, in seconds. For retries.
    """

    source: str
    start: float | None = None
    end: float | None = None
    labels: tuple[str, ...] = ()
    speaker: str | None = None
    masks: str | None = None
    frames: str | None = None
    first_clip: int | None = 0
    clips: tuple[float, ...] = ()
    attempt: int = 0
    stretches: tuple[tuple[float, float], ...] = ()

    @property
    def identity(self) -> str:
        """Hex hash of everything but labels and masks: part of the samples' keys."""
        text = json.dumps([self.source, self.start, self.end, self.speaker, self.frames])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def task(self) -> str:
        """Hex name of this input's task; differs for a retry."""
        return f"{self.identity}-{self.attempt}"

    def wants(self, number: int, start: float) -> bool:
        """Whether clip ``number``, which begins at ``start`` seconds, is to be extracted."""
        if self.first_clip is not None and number >= self.first_clip:
            return True
        if any(abs(start - other) < 1e-3 for other in self.clips):
            return True
        return any(begin - 1e-3 < start < last + 1e-3 for begin, last in self.stretches)

    def retry(
        self,
        clip: float | None = None,
        done: tuple[int, float] | None = None,
        last: float | None = None,
    ) -> "Input":
        """Input of a retry after a failure.

        Args:
            clip: start of the clip that failed; None: the whole input failed.
            done: (number, start) of the last clip before the failure, if ``clip`` is None.
            last: start of the last of several clips that failed, of which ``clip`` is the first.
        """
        first, single, stretches = self.first_clip, self.clips, self.stretches
        if clip is not None:
            first = None
            single, stretches = ((clip,), ()) if last is None else ((), ((clip, last),))
        elif done is not None:
            number, start = done
            first = None if first is None else max(first, number + 1)
            single = tuple(c for c in single if c > start)
            stretches = tuple((max(a, start + 2e-3), b) for a, b in stretches if b > start)
        return dataclasses.replace(
            self, first_clip=first, clips=single, stretches=stretches, attempt=self.attempt + 1
        )

    def merge_retry(self, other: "Input") -> "Input":
        """Merge this retry with another of the same input."""
        firsts = [x.first_clip for x in (self, other) if x.first_clip is not None]
        return dataclasses.replace(
            self,
            first_clip=min(firsts) if firsts else None,
            clips=tuple(sorted({*self.clips, *other.clips})),
            stretches=tuple(sorted({*self.stretches, *other.stretches})),
        )

    def to_json(self) -> dict[str, Any]:
        """JSON object without the fields at their defaults."""
        return {
            name: value
            for name, default in _defaults()
            if (value := getattr(self, name)) != default or name == "source"
        }


@functools.cache
def _defaults() -> tuple[tuple[str, Any], ...]:
    """Name and default of each field of an input."""
    return tuple((field.name, field.default) for field in dataclasses.fields(Input))


class FileIdentities:
    """Digests of inputs without labels and masks, equal for all paths and addresses of a file.

    The real path of a folder is resolved once, not again for each file in it: keep an object of
    this class no longer than links stay as they are.
    """

    def __init__(self) -> None:
        self._real_folder = functools.lru_cache(FOLDERS)(os.path.realpath)

    def of(self, item: Input) -> bytes:
        """Digest of 16 bytes: a million of them take half the memory of what they stand for."""
        source = local_path(item.source) or item.source
        source = source if is_url(source) else self.real_path(source)
        text = repr((source, item.start, item.end, item.speaker, item.frames))
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    def real_path(self, path: str) -> str:
        """The same as ``os.path.realpath``, with one system call for a file in a known folder."""
        folder, name = os.path.split(path)
        if name in ("", os.curdir, os.pardir):
            return os.path.realpath(path)
        path = os.path.join(self._real_folder(folder), name)  # noqa: PTH118 - Path is slower
        return os.path.realpath(path) if os.path.islink(path) else path  # noqa: PTH114


def sample_key(item: Input, start: float) -> str:
    """Sample key of the clip that begins at ``start`` seconds: unique, safe as a file name."""
    stem = re.sub(r"[^A-Za-z0-9_]+", "-", Path(item.source).stem).strip("-")[:40] or "clip"
    return f"{stem}-{item.identity}-{max(0, round(start * 1000)):09d}"
