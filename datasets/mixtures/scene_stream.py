"""Streams of batches of composed scenes: endless for training, a fixed list for evaluation."""

import dataclasses
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cavmae.common.errors import CavmaeError, SampleError, UsageError
from cavmae.common.files import read_bytes, write_atomically
from cavmae.common.json_files import json_bytes, parse_json, typed, value_as
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.mixtures.clip_pool import NOT_SINGLE, ClipPool
from cavmae.datasets.mixtures.composer import Composer, Scene
from cavmae.datasets.mixtures.compositing import Size
from cavmae.datasets.mixtures.sampler import SceneSampler
from cavmae.datasets.mixtures.scene_spec import ComposeSettings, SceneSpec
from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.shard_reader import quarantine
from cavmae.datasets.stream.stream import Position, Stream, WorkerBatch

LIST_SCHEMA = 1
LIST_LIMIT_BYTES = 256 << 20


def collate(shown: Sequence[dict[str, Any]]) -> Batch:
    """Scenes in a batch of N, people padded to the most of them, P.

    Args:
        shown: ``key`` and ``scene`` of each.

    Returns:
        lists ``key`` and ``labels``; ``frames``, ``motion``, ``mixture``, ``rest``, ``reference``
        of :class:`~cavmae.datasets.mixtures.composer.Scene`, stacked; ``voices`` [N, P, samples],
        ``masks`` [N, P, F, height, width]; ``present``, ``speaking``, ``masked``: bool [N, P];
        ``target``: int64 [N].
    """
    scenes: list[Scene] = [one["scene"] for one in shown]
    most = max(len(scene.voices) for scene in scenes)

    def padded(name: str) -> torch.Tensor:
        arrays = [getattr(scene, name) for scene in scenes]
        found = np.zeros((len(arrays), most, *arrays[0].shape[1:]), dtype=arrays[0].dtype)
        for row, array in zip(found, arrays, strict=True):
            row[: len(array)] = array
        return torch.from_numpy(found)

    batch: Batch = {
        "key": [one["key"] for one in shown],
        "labels": [scene.labels for scene in scenes],
    }
    for name in ("frames", "motion", "mixture", "rest", "reference"):
        batch[name] = torch.from_numpy(np.stack([getattr(scene, name) for scene in scenes]))
    for name in ("voices", "masks", "speaking", "masked"):
        batch[name] = padded(name)
    people = torch.tensor([len(scene.voices) for scene in scenes])
    batch["present"] = torch.arange(most) < people[:, None]
    batch["target"] = torch.tensor([scene.target for scene in scenes])
    return batch


class SceneStream(Stream):
    """What both streams of scenes share.

    Args:
        manifest: of clips of single people.
        compose: length and size of the scenes, and how they are drawn.
        motion: (height, width) of the grey frames.
        keys: F, key frames in colour.
        batch_size: scenes of a batch on this rank.
        exclude: labels of clips that are left out.
        options: of :class:`~cavmae.datasets.stream.stream.Stream`.

    Raises:
        ShardError: shards are missing or altered.
        UsageError: no clip is of use.
    """

    def __init__(
        self,
        manifest: Manifest,
        compose: ComposeSettings,
        motion: Size,
        keys: int,
        batch_size: int,
        *,
        exclude: Sequence[str] = NOT_SINGLE,
        **options: Any,
    ):
        super().__init__(manifest, batch_size, **options)
        # Its bytes are verified: every rank has read its share of the shards.
        known = dataclasses.replace(self.access, verify="size")
        self.pool = ClipPool(manifest, known, exclude)
        self.composer = Composer(self.pool, compose, motion, keys)

    def _scene(self, key: str, recipe: SceneSpec, broken: Counter[str]) -> dict[str, Any] | None:
        """A scene; None where a clip is broken, which is counted and named."""
        try:
            return {"key": key, "scene": self.composer.compose(recipe)}
        except SampleError as error:
            broken[error.reason] += 1
            quarantine(self.access, error, key=key)
            return None


class ComposedStream(SceneStream):
    """Endless scenes, each drawn anew: number n of epoch e is a pure function of (seed, e, n).

    An epoch has as many scenes as there are usable clips. Reader r of R has scenes r, r + R, ...

    Args:
        clips: so many of the usable clips are composed from, drawn by the seed, as evenly from all
            people as can be; 0: all.
        arguments, options: of :class:`SceneStream`.

    Raises:
        UsageError: there are too few people, or clips, for such scenes.
    """

    endless = True

    def __init__(
        self,
        manifest: Manifest,
        compose: ComposeSettings,
        *arguments: Any,
        clips: int = 0,
        **options: Any,
    ):
        super().__init__(manifest, compose, *arguments, **options)
        if clips:
            self.pool.subsample(clips, self.seed)
        self.compose = compose
        self.sampler = SceneSampler(self.pool, compose)

    @property
    def samples(self) -> int:
        """Scenes of an epoch: as many as there are clips of people."""
        return sum(map(len, self.pool.people().values()))

    def signature(self, workers: int) -> dict[str, Any]:
        """See :meth:`cavmae.datasets.stream.stream.Stream.signature`."""
        told = {"compose": repr(self.compose), "clips": self.samples}
        return super().signature(workers) | told

    def spec(self, epoch: int, number: int) -> SceneSpec:
        """The recipe of a scene."""
        return self.sampler.sample(random.Random(f"{self.seed} {epoch} {number}"))

    def worker_batches(self, worker: int, workers: int) -> Iterator[WorkerBatch | CavmaeError]:
        worker, position = self._starting(worker, workers)
        broken: Counter[str] = Counter()
        first, readers = self.rank * workers + worker, self.world_size * workers

        def scenes() -> Iterator[dict[str, Any]]:
            while True:
                start = first + position.samples * readers
                for number in range(start, self.samples, readers):
                    recipe = self.spec(position.epoch, number)
                    shown = self._scene(f"{position.epoch}-{number}", recipe, broken)
                    position.samples += 1
                    if shown is not None:
                        yield shown
                        continue
                    position.broken += 1
                    self.check_broken(position.broken, broken)
                position.epoch += 1
                position.samples = position.broken = 0

        try:
            yield from self._batched(worker, scenes(), collate, position, broken, partial=False)
        except CavmaeError as error:
            yield error


class FixedSceneStream(SceneStream):
    """The scenes of a list, each exactly once over all ranks and workers.

    Args:
        manifest: whose clips the list names.
        compose: how it was drawn; see :func:`read_list`.
        recipes: the list.
        arguments, options: of :class:`SceneStream`.

    Raises:
        UsageError: it names clips that there are not.
    """

    def __init__(
        self,
        manifest: Manifest,
        compose: ComposeSettings,
        specs: Sequence[SceneSpec],
        *arguments: Any,
        **options: Any,
    ):
        super().__init__(manifest, compose, *arguments, **options)
        self.specs = list(specs)
        for recipe in self.specs:
            for key in clip_keys(recipe):
                if key not in self.pool.index_of:
                    raise UsageError(
                        f"The list names the clip {key}, which {manifest.folder} does not have: "
                        "use the data set that the list was made of."
                    )

    @property
    def samples(self) -> int:
        """Scenes of the list."""
        return len(self.specs)

    def worker_batches(self, worker: int, workers: int) -> Iterator[WorkerBatch | CavmaeError]:
        broken: Counter[str] = Counter()
        position = Position()
        first, readers = self.rank * workers + worker, self.world_size * workers

        def scenes() -> Iterator[dict[str, Any]]:
            for number in range(first, len(self.specs), readers):
                shown = self._scene(f"{number:05d}", self.specs[number], broken)
                position.samples += 1
                if shown is not None:
                    yield shown
                    continue
                position.broken += 1
                self.check_broken(position.broken, broken)

        try:
            yield from self._batched(worker, scenes(), collate, position, broken, partial=True)
        except CavmaeError as error:
            yield error


def clip_keys(spec: SceneSpec) -> set[str]:
    """The clips that a recipe takes parts of."""
    named = {voice.clip for voice in (*spec.people, *spec.unseen)}
    named |= {spec.background} if spec.background is not None else set()
    return named | ({spec.reference.clip} if spec.reference is not None else set())


def write_list(path: Path, compose: ComposeSettings, specs: Sequence[SceneSpec]) -> None:
    """Writes a list of scenes: JSON lines, first the settings that it was drawn by."""
    head = {"schema": LIST_SCHEMA, "compose": dataclasses.asdict(compose)}
    with write_atomically(path) as file:
        for record in (head, *(r.to_record() for r in specs)):
            file.write(json_bytes(record))


def read_list(path: Path) -> tuple[ComposeSettings, list[SceneSpec]]:
    """Reads what :func:`write_list` wrote.

    Raises:
        CavmaeError: it is missing, damaged, or of another version.
    """
    try:
        lines = read_bytes(str(path), LIST_LIMIT_BYTES).splitlines()
        head, *records = [
            parse_json(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)
        ]
        schema = typed(head, "schema", int)
        if schema != LIST_SCHEMA:
            raise CavmaeError(
                f"{path} is a list of version {schema}, this program reads {LIST_SCHEMA}."
            )
        compose: ComposeSettings = value_as(
            ComposeSettings, typed(head, "compose", dict), "compose"
        )
        return compose, [SceneSpec.from_record(record) for record in records]
    except FileNotFoundError as error:
        raise CavmaeError(f"There is no list of scenes {path}.") from error
    except (OSError, ValueError, UsageError) as error:
        raise CavmaeError(f"{path} is no list of scenes ({error}): make it anew.") from error
