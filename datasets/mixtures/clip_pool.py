"""Random access to clips of single speakers: the material of mixtures.

Training sets of speakers are small, and a mixture takes several clips at random. So the pool is no
stream, but an index of the byte ranges of all frames, masks and waveforms in the shards.
"""

import contextlib
import dataclasses
import os
import random
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cavmae.common.errors import SampleError, ShardError, UsageError
from cavmae.datasets.format import sample
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.format.sample import SampleInfo
from cavmae.datasets.format.shards import Entry
from cavmae.datasets.mixtures.scene_spec import NOT_SINGLE, OTHER_SOUND
from cavmae.datasets.stream.features import SAMPLE_RATE, to_float
from cavmae.datasets.stream.shard_reader import Access, ShardOpener

OPEN_SHARDS = 64  # limit of open file descriptors
SILENT = "silent"  # label of clips whose visible person is silent
BACKGROUND = "background"  # label of clips that serve as backgrounds and surfaces only

Place = tuple[int, int]  # offset and size in the shard, in bytes


@dataclasses.dataclass(frozen=True)
class PoolClip:
    """Index entry of a clip.

    Attributes:
        key: the clip's name in the data set.
        shard: number of its shard.
        person: identity of the speaker: the speaker's name where it is known, else the video's.
        info: see :class:`~cavmae.datasets.format.sample.SampleInfo`.
        times: float64 [frames], seconds from the clip's start.
        frames: int64 [frames, 2], offset and size of each frame in the shard, in bytes.
        masks: int64 [frames, 2], the same of each mask; size 0: none.
        audio: offset and size of the waveform.
    """

    key: str
    shard: int
    person: str
    info: SampleInfo
    times: np.ndarray
    frames: np.ndarray
    masks: np.ndarray
    audio: Place

    @property
    def masked(self) -> bool:
        """Whether every frame has a mask."""
        return bool((self.masks[:, 1] > 0).all())

    @property
    def silent(self) -> bool:
        """Whether the person is silent."""
        return SILENT in self.info.labels

    @property
    def background(self) -> bool:
        """Whether the clip serves as a background only."""
        return BACKGROUND in self.info.labels

    @property
    def without_people(self) -> bool:
        """Whether it is a background that has no masks, or masks that are empty."""
        return self.background and not self.info.mask_values

    def frames_at(self, times: np.ndarray) -> np.ndarray:
        """Indices of the frames nearest to these times, int64."""
        after = np.searchsorted(self.times, times).clip(1, max(1, len(self.times) - 1))
        before = after - 1
        after = np.minimum(after, len(self.times) - 1)
        nearer = np.abs(self.times[after] - times) < np.abs(self.times[before] - times) - 1e-6
        return np.where(nearer, after, before)


class ClipPool:
    """Index of all usable clips of a data set, with random access to their content.

    Args:
        manifest: of the shards, written with `--profile speakers`.
        access: settings for reading shards.
        exclude: labels of clips that are left out; backgrounds may have those of sound
            (:data:`~cavmae.datasets.mixtures.scene_spec.OTHER_SOUND`).

    Raises:
        ShardError: a shard is missing or altered.
        UsageError: no clip is left, or none has audio.
    """

    def __init__(
        self,
        manifest: Manifest,
        access: Access = Access(),  # noqa: B008 - frozen
        exclude: Collection[str] = NOT_SINGLE,
    ):
        self.manifest, self.access = manifest, access
        self.left_out = 0
        self.clips: list[PoolClip] = []
        self._paths: list[Path] = []
        self._files: OrderedDict[int, int] = OrderedDict()  # descriptors of open shards, by number
        if access.verify == "hash":
            manifest.verify("hash")
        opener = ShardOpener(manifest, access)
        try:
            for number in range(len(manifest.shards)):
                shard = opener.get(number)
                self._paths.append(shard.path)
                for entry in shard.entries:
                    clip = _clip(number, entry, shard.read(entry, "json"), exclude)
                    if clip is None:
                        self.left_out += 1
                    else:
                        self.clips.append(clip)
        except SampleError as error:
            raise ShardError(f"{manifest.folder}: {error}. Run `cavmae check`.") from error
        finally:
            opener.close()
        if not self.clips:
            raise UsageError(
                f"{manifest.folder} has no clip to compose from: {self.left_out} left out for "
                f"a label among {', '.join(exclude)}, or for lack of audio or frames."
            )
        self.index_of = {clip.key: number for number, clip in enumerate(self.clips)}

    def __getstate__(self) -> dict[str, Any]:
        """State for another process, which opens the shards itself."""
        return {**self.__dict__, "_files": OrderedDict()}

    def close(self) -> None:
        """Closes the shards."""
        while self._files:
            os.close(self._files.popitem()[1])

    def subsample(self, count: int, seed: int) -> None:
        """Reduces the pool to ``count`` random clips, as evenly over all people as possible.

        Backgrounds stay. With the same seed, a smaller subset is part of a larger one.

        Raises:
            UsageError: the pool has fewer clips.
        """
        people = self.people()
        usable = sum(map(len, people.values()))
        if count > usable:
            raise UsageError(
                f"{self.manifest.folder} has {usable} clips to compose from, not {count}."
            )
        rng = random.Random(seed)
        names = rng.sample(sorted(people), len(people))
        per_person = [rng.sample(people[name], len(people[name])) for name in names]
        rounds = max(len(numbers) for numbers in per_person)
        order = [
            numbers[turn] for turn in range(rounds) for numbers in per_person if turn < len(numbers)
        ]
        backgrounds = [number for number, clip in enumerate(self.clips) if clip.background]
        self.left_out += usable - count
        self.clips = [self.clips[number] for number in sorted(order[:count] + backgrounds)]
        self.index_of = {clip.key: number for number, clip in enumerate(self.clips)}

    def people(self) -> dict[str, list[int]]:
        """Numbers of the clips of each person, backgrounds left out."""
        people: dict[str, list[int]] = {}
        for number, clip in enumerate(self.clips):
            if clip.background:
                continue
            people.setdefault(clip.person, []).append(number)
        return people

    def waveform(self, clip: PoolClip, start: float, samples: int) -> np.ndarray:
        """Waveform float32 [samples] at 16 kHz from ``start`` seconds on, padded with silence.

        Raises:
            SampleError: the waveform is broken.
        """
        waveform = np.zeros(samples, dtype=np.float32)
        data = self._read(clip, clip.audio)
        with _name_clip(clip):
            part = to_float(sample.decode_waveform(data, round(start * SAMPLE_RATE), samples))
        waveform[: len(part)] = part
        return waveform

    def frames(
        self, clip: PoolClip, frames: Sequence[int], grey: bool, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Frames as uint8 [frames, height, width, 3], or without the last axis where ``grey``.

        Args:
            frames: indices of the frames; a repeated one is decoded once.
            size: (height, width) that suffices: frames may be decoded smaller, but not below it.

        Raises:
            SampleError: a frame is broken.
        """
        decoded = {}
        for number in dict.fromkeys(frames):
            data = self._read(clip, clip.frames[number])
            with _name_clip(clip):
                decoded[number] = sample.decode_frame(data, clip.info.frame_size, size, grey)
        return np.stack([decoded[number] for number in frames])

    def masks(self, clip: PoolClip, frames: Sequence[int]) -> np.ndarray:
        """Masks as uint8 [frames, height, width]; 0 is not the person.

        Raises:
            SampleError: a mask is broken or missing.
        """
        decoded = {}
        for number in dict.fromkeys(frames):
            if clip.masks[number, 1] == 0:
                raise SampleError("missing_member", f"{clip.key} has no mask {number}")
            data = self._read(clip, clip.masks[number])
            with _name_clip(clip):
                decoded[number] = sample.decode_mask(data, clip.info.frame_size)
        return np.stack([decoded[number] for number in frames])

    def _read(self, clip: PoolClip, place: Sequence[int]) -> bytes:
        offset, size = int(place[0]), int(place[1])
        data = os.pread(self._descriptor(clip.shard), size, offset)
        if len(data) != size:
            raise ShardError(
                f"Shard {self._paths[clip.shard]} ends inside {clip.key}: it has shrunk."
            )
        return data

    def _descriptor(self, shard: int) -> int:
        """Descriptor of a shard; closes the least recently used one beyond the limit."""
        if shard not in self._files:
            path = self._paths[shard]
            if not path.exists():  # the cache has evicted its copy of a remote shard
                opener = ShardOpener(self.manifest, self.access)
                path = self._paths[shard] = opener.get(shard).path
                opener.close()
            self._files[shard] = os.open(path, os.O_RDONLY)
            if len(self._files) > OPEN_SHARDS:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(shard)
        return self._files[shard]


@contextlib.contextmanager
def _name_clip(clip: PoolClip) -> Iterator[None]:
    """Adds the clip's key to a SampleError."""
    try:
        yield
    except SampleError as error:
        raise SampleError(error.reason, f"{clip.key}: {error.detail}") from error


def _clip(shard: int, entry: Entry, data: bytes, exclude: Collection[str]) -> PoolClip | None:
    """Index entry of a sample; None: it is excluded, or lacks audio or frames."""
    info = SampleInfo.from_bytes(data)
    is_background = BACKGROUND in info.labels
    # A background is not heard.
    unwanted = set(exclude) - set(OTHER_SOUND if is_background else ())
    if unwanted & set(info.labels) or not (is_background or "flac" in entry.members):
        return None
    count = len(info.frame_times)
    missing = (0, 0)
    frames = [entry.members.get(sample.frame_member(i), missing) for i in range(count)]
    if any(size == 0 for _, size in frames):
        return None
    masks = [entry.members.get(sample.mask_member(i), missing) for i in range(count)]
    return PoolClip(
        key=entry.key,
        shard=shard,
        person=info.speaker or info.source,
        info=info,
        times=np.array(info.frame_times),
        frames=np.array(frames, dtype=np.int64),
        masks=np.array(masks, dtype=np.int64),
        audio=entry.members.get("flac", missing),
    )
