"""Streams of batches of composed scenes: endless for training, fixed lists for evaluation."""

import dataclasses
import random
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cavmae.common.errors import CavmaeError, SampleError, UsageError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import REMEDY, json_bytes, read_records, typed, value_as
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.mixtures.clip_pool import ClipPool
from cavmae.datasets.mixtures.composer import Composer, Scene
from cavmae.datasets.mixtures.paste_canvas import Size
from cavmae.datasets.mixtures.sampler import SceneSampler
from cavmae.datasets.mixtures.scene_spec import NOT_SINGLE, ComposeSettings, SceneSpec
from cavmae.datasets.stream.base import EndlessStream, Position, Stream, WorkerBatch
from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.shard_reader import quarantine
from cavmae.datasets.stream.shuffle import rest_of_epoch

LIST_SCHEMA = 2
LIST_LIMIT_BYTES = 256 << 20


def collate(samples: Sequence[dict[str, Any]]) -> Batch:
    """Batches N scenes, padded to the largest number of people, P, at least 1.

    Args:
        samples: ``key`` and ``scene`` of each.

    Returns:
        lists ``key`` and ``labels``; ``frames``, ``motion``, ``mixture``, ``residual`` and
        ``reference`` of :class:`~cavmae.datasets.mixtures.composer.Scene`, stacked; ``voices``
        [N, P, samples], ``articulation`` [N, P, T, 4], ``masks`` [N, P, F, height, width];
        ``present``, ``speaking``, ``masked``, ``articulated``: bool [N, P]; ``target``: int64 [N].
    """
    scenes: list[Scene] = [sample["scene"] for sample in samples]
    max_people = max(1, *(len(scene.voices) for scene in scenes))

    def pad_people(name: str) -> torch.Tensor:
        arrays = [getattr(scene, name) for scene in scenes]
        padded = np.zeros((len(arrays), max_people, *arrays[0].shape[1:]), dtype=arrays[0].dtype)
        for row, array in zip(padded, arrays, strict=True):
            row[: len(array)] = array
        return torch.from_numpy(padded)

    batch: Batch = {
        "key": [sample["key"] for sample in samples],
        "labels": [scene.labels for scene in scenes],
    }
    for name in ("frames", "motion", "mixture", "residual", "reference"):
        batch[name] = torch.from_numpy(np.stack([getattr(scene, name) for scene in scenes]))
    for name in ("voices", "articulation", "articulated", "masks", "speaking", "masked"):
        batch[name] = pad_people(name)
    people = torch.tensor([len(scene.voices) for scene in scenes])
    batch["present"] = torch.arange(max_people) < people[:, None]
    batch["target"] = torch.tensor([scene.target for scene in scenes])
    return batch


class SceneStream(Stream):
    """Base class of streams of scenes.

    Args:
        manifest: of clips of single people.
        compose: length and size of the scenes, and the settings for sampling them.
        motion: (height, width) of the grey frames.
        keys: F, number of key frames in colour.
        batch_size: scenes of a batch on this rank.
        exclude: labels of clips that are left out, as :class:`ClipPool` takes them.
        options: of :class:`~cavmae.datasets.stream.stream.Stream`.

    Raises:
        ShardError: shards are missing or altered.
        UsageError: no clip is usable.
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
        # The base class has verified the hashes: every rank has read its part of the shards.
        verified = dataclasses.replace(self.access, verify="size")
        self.pool = ClipPool(manifest, verified, exclude)
        self.collate = collate
        self.composer = Composer(self.pool, compose, motion, keys)

    def _scene(self, key: str, spec: SceneSpec, broken: Counter[str]) -> dict[str, Any] | None:
        """Composes a scene; None: a clip is broken, which is counted and quarantined."""
        try:
            return {"key": key, "scene": self.composer.compose(spec)}
        except SampleError as error:
            broken[error.reason] += 1
            quarantine(self.access, error, data_set=self.manifest.folder, key=key)
            return None


class ComposedStream(EndlessStream, SceneStream):
    """Endless stream of random scenes: scene n of epoch e is a pure function of (seed, e, n).

    An epoch has as many scenes as there are usable clips. Reader r of R has scenes r, r + R, ...

    Args:
        clips: number of usable clips to compose from, a random subset that is as even over all
            people as possible; 0: all.
        arguments, options: of :class:`SceneStream`.

    Raises:
        UsageError: there are too few people, or clips, for such scenes.
    """

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
        """Number of scenes of an epoch: that of the clips of people."""
        return sum(map(len, self.pool.people().values()))

    def signature(self, workers: int) -> dict[str, Any]:
        """See :meth:`cavmae.datasets.stream.stream.Stream.signature`."""
        own = {"compose": repr(self.compose), "clips": self.samples}
        return super().signature(workers) | own

    def spec(self, epoch: int, number: int) -> SceneSpec:
        """Spec of a scene."""
        return self.sampler.sample(random.Random(f"{self.seed} {epoch} {number}"))

    def samples_from(
        self, worker: int, workers: int, position: Position, broken: Counter[str]
    ) -> Generator[dict[str, Any], None, None]:
        """See :meth:`EndlessStream.samples_from`."""
        first, readers = self.rank * workers + worker, self.world_size * workers
        while True:
            rest = rest_of_epoch(self.samples, self.seed, position.epoch, self.history)
            for number in rest[first::readers][position.samples :].tolist():
                spec = self.spec(position.epoch, number)
                sample = self._scene(f"{position.epoch}-{number}", spec, broken)
                position.samples += 1
                if sample is not None:
                    yield sample
                    continue
                position.broken += 1
                self.check_broken(position.broken, broken)
            position.epoch += 1
            position.samples = position.broken = 0


class FixedSceneStream(SceneStream):
    """Stream of a list of scenes, each exactly once over all ranks and workers.

    Args:
        manifest: of the clips that the list names.
        compose: settings that the list was sampled with; see :func:`read_list`.
        specs: the list.
        arguments, options: of :class:`SceneStream`.

    Raises:
        UsageError: the list names clips that the data set lacks.
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
        for spec in self.specs:
            for key in clip_keys(spec):
                if key not in self.pool.index_of:
                    raise UsageError(
                        f"The list names the clip {key}, which {manifest.folder} does not have: "
                        "use the data set that the list was sampled from."
                    )

    @property
    def samples(self) -> int:
        """Number of scenes of the list."""
        return len(self.specs)

    def worker_batches(self, worker: int, workers: int) -> Iterator[WorkerBatch | CavmaeError]:
        broken: Counter[str] = Counter()
        position = Position()
        first, readers = self.rank * workers + worker, self.world_size * workers

        def scenes() -> Iterator[dict[str, Any]]:
            for number in range(first, len(self.specs), readers):
                sample = self._scene(f"{number:05d}", self.specs[number], broken)
                position.samples += 1
                if sample is not None:
                    yield sample
                    continue
                position.broken += 1
                self.check_broken(position.broken, broken)

        try:
            yield from self._batch(worker, scenes(), [position], [broken], partial=True)
        except CavmaeError as error:
            yield error


def clip_keys(spec: SceneSpec) -> set[str]:
    """Keys of all clips that a spec uses."""
    keys = {voice.clip for voice in (*spec.people, *spec.unseen)}
    keys |= {spec.background} if spec.background is not None else set()
    keys |= {occluder.surface for occluder in spec.occluders}
    return keys | ({spec.reference.clip} if spec.reference is not None else set())


def write_list(path: Path, compose: ComposeSettings, specs: Sequence[SceneSpec]) -> None:
    """Writes a list of scenes as JSON lines, the settings that it was sampled with first."""
    head = {"schema": LIST_SCHEMA, "compose": dataclasses.asdict(compose)}
    with write_atomically(path) as file:
        for record in (head, *(r.to_record() for r in specs)):
            file.write(json_bytes(record))


def read_list(path: Path) -> tuple[ComposeSettings, list[SceneSpec]]:
    """Reads a list of scenes that :func:`write_list` wrote.

    Raises:
        CavmaeError: the list is missing, damaged, or of another version.
    """
    try:
        head, records = read_records(path, LIST_SCHEMA, LIST_LIMIT_BYTES)
        compose: ComposeSettings = value_as(
            ComposeSettings, typed(head, "compose", dict), "compose"
        )
        return compose, [SceneSpec.from_record(record) for record in records]
    except FileNotFoundError as error:
        raise CavmaeError(f"There is no list of scenes {path}.") from error
    except (OSError, ValueError, UsageError) as error:
        raise CavmaeError(f"{path} is no readable list of scenes ({error}): {REMEDY}.") from error
