"""Clips of single people, any part of any of them at once: what mixtures are composed of.

Training sets of speakers are small, and a mixture takes several clips at random: so here is no
stream, but an index of where in the shards every frame, mask and sound lies.
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
from cavmae.datasets.stream.features import SAMPLE_RATE, to_float
from cavmae.datasets.stream.shard_reader import Access, ShardOpener

# What the clip of a person who is to be heard must not have; see docs/talkers.md. Scenes of several
# people have no single voice.
NOT_SINGLE = (
    "people-2", "people-3", "people-4", "noise", "music", "off_screen_voice", "desync",
)  # fmt: skip
OPEN_SHARDS = 64  # descriptors that are kept
SILENT = "silent"  # label of somebody who is seen and says nothing
BACKGROUND = "background"  # label of what is only to stand behind people

Place = tuple[int, int]  # offset and size in the shard, in bytes


@dataclasses.dataclass(frozen=True)
class PoolClip:
    """Where a clip lies, and what is told of it.

    Attributes:
        key: its name in the data set.
        shard: number of its shard.
        person: who speaks: the speaker where that is known, else the video.
        info: see :class:`~cavmae.datasets.format.sample.SampleInfo`.
        times: float64 [frames], seconds from its start.
        frames: int64 [frames, 2], places of the pictures.
        masks: int64 [frames, 2], places of the masks; size 0: none.
        sound: place of the waveform.
    """

    key: str
    shard: int
    person: str
    info: SampleInfo
    times: np.ndarray
    frames: np.ndarray
    masks: np.ndarray
    sound: Place

    @property
    def masked(self) -> bool:
        """Whether every frame has a mask."""
        return bool((self.masks[:, 1] > 0).all())

    @property
    def silent(self) -> bool:
        """Whether the person says nothing."""
        return SILENT in self.info.labels

    @property
    def background(self) -> bool:
        """Whether it is only to stand behind people."""
        return BACKGROUND in self.info.labels

    def frames_at(self, times: np.ndarray) -> np.ndarray:
        """Numbers of the frames that are shown at these times: the nearest ones, int64."""
        after = np.searchsorted(self.times, times).clip(1, max(1, len(self.times) - 1))
        before = after - 1
        after = np.minimum(after, len(self.times) - 1)
        nearer = np.abs(self.times[after] - times) < np.abs(self.times[before] - times) - 1e-6
        return np.where(nearer, after, before)


class ClipPool:
    """All usable clips of a data set.

    Args:
        manifest: of the shards, made with `--profile speakers`.
        access: how shards are reached.
        exclude: labels of clips that are left out.

    Raises:
        ShardError: a shard is missing or altered.
        UsageError: no clip is left, or none has sound.
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
        self._files: OrderedDict[int, int] = OrderedDict()  # descriptors of shards read from
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
                f"a label among {', '.join(exclude)}, or for want of sound or frames."
            )
        self.number = {clip.key: number for number, clip in enumerate(self.clips)}

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which opens the shards itself."""
        return {**self.__dict__, "_files": OrderedDict()}

    def close(self) -> None:
        """Closes the shards."""
        while self._files:
            os.close(self._files.popitem()[1])

    def keep(self, count: int, seed: int) -> None:
        """Leaves out all clips but so many, drawn as evenly from all people as can be.

        Backgrounds stay. A smaller number keeps a part of what a larger one keeps.

        Raises:
            UsageError: there are not so many.
        """
        everyone = self.people()
        usable = sum(map(len, everyone.values()))
        if count > usable:
            raise UsageError(
                f"{self.manifest.folder} has {usable} clips to compose from, not {count}."
            )
        chance = random.Random(seed)
        names = chance.sample(sorted(everyone), len(everyone))
        turns = [chance.sample(everyone[name], len(everyone[name])) for name in names]
        most = max(len(numbers) for numbers in turns)
        order = [numbers[turn] for turn in range(most) for numbers in turns if turn < len(numbers)]
        behind = [number for number, clip in enumerate(self.clips) if clip.background]
        self.left_out += usable - count
        self.clips = [self.clips[number] for number in sorted(order[:count] + behind)]
        self.number = {clip.key: number for number, clip in enumerate(self.clips)}

    def people(self) -> dict[str, list[int]]:
        """Numbers of the clips of each person, backgrounds left out."""
        found: dict[str, list[int]] = {}
        for number, clip in enumerate(self.clips):
            if clip.background:
                continue
            found.setdefault(clip.person, []).append(number)
        return found

    def waveform(self, clip: PoolClip, start: float, samples: int) -> np.ndarray:
        """float32 [samples] at 16 kHz from ``start`` seconds on; silence after its end.

        Raises:
            SampleError: it is broken.
        """
        found = np.zeros(samples, dtype=np.float32)
        data = self._read(clip, clip.sound)
        with _named(clip):
            wave = to_float(sample.decode_waveform(data, round(start * SAMPLE_RATE), samples))
        found[: len(wave)] = wave
        return found

    def pictures(
        self, clip: PoolClip, frames: Sequence[int], grey: bool, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Frames as uint8 [frames, height, width, 3], or without the last axis where ``grey``.

        Args:
            frames: their numbers; one that repeats is decoded once.
            size: (height, width) that is enough: they may come smaller, though not than this.

        Raises:
            SampleError: one is broken.
        """
        shown = {}
        for number in dict.fromkeys(frames):
            data = self._read(clip, clip.frames[number])
            with _named(clip):
                shown[number] = sample.decode_frame(data, clip.info.frame_size, size, grey)
        return np.stack([shown[number] for number in frames])

    def masks(self, clip: PoolClip, frames: Sequence[int]) -> np.ndarray:
        """Masks as uint8 [frames, height, width]; 0 is not the person.

        Raises:
            SampleError: one is broken or missing.
        """
        shown = {}
        for number in dict.fromkeys(frames):
            if clip.masks[number, 1] == 0:
                raise SampleError("missing_member", f"{clip.key} has no mask {number}")
            data = self._read(clip, clip.masks[number])
            with _named(clip):
                shown[number] = sample.decode_mask(data, clip.info.frame_size)
        return np.stack([shown[number] for number in frames])

    def _read(self, clip: PoolClip, place: Sequence[int]) -> bytes:
        offset, size = int(place[0]), int(place[1])
        data = os.pread(self._opened(clip.shard), size, offset)
        if len(data) != size:
            raise ShardError(
                f"Shard {self._paths[clip.shard]} ends inside {clip.key}: it has shrunk."
            )
        return data

    def _opened(self, shard: int) -> int:
        """Descriptor of a shard; the one that was longest not asked for is closed in its place."""
        if shard not in self._files:
            path = self._paths[shard]
            if not path.exists():  # the copy of a remote one, which the cache has given up
                opener = ShardOpener(self.manifest, self.access)
                path = self._paths[shard] = opener.get(shard).path
                opener.close()
            self._files[shard] = os.open(path, os.O_RDONLY)
            if len(self._files) > OPEN_SHARDS:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(shard)
        return self._files[shard]


@contextlib.contextmanager
def _named(clip: PoolClip) -> Iterator[None]:
    """Says of which clip it is that a part is broken."""
    try:
        yield
    except SampleError as error:
        raise SampleError(error.reason, f"{clip.key}: {error.detail}") from error


def _clip(shard: int, entry: Entry, data: bytes, exclude: Collection[str]) -> PoolClip | None:
    """The clip of a sample; None where it is of no use."""
    info = SampleInfo.from_bytes(data)
    behind = BACKGROUND in info.labels
    if set(exclude) & set(info.labels) or not (behind or "flac" in entry.members):
        return None
    count = len(info.frame_times)
    nothing = (0, 0)
    frames = [entry.members.get(sample.frame_member(i), nothing) for i in range(count)]
    if any(size == 0 for _, size in frames):
        return None
    masks = [entry.members.get(sample.mask_member(i), nothing) for i in range(count)]
    return PoolClip(
        key=entry.key,
        shard=shard,
        person=info.speaker or info.source,
        info=info,
        times=np.array(info.frame_times),
        frames=np.array(frames, dtype=np.int64),
        masks=np.array(masks, dtype=np.int64),
        sound=entry.members.get("flac", nothing),
    )
