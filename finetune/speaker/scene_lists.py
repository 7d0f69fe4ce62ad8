"""Lists of scenes that a model is measured on."""

from pathlib import Path
from typing import Any

from cavmae.common.errors import UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.mixtures.clip_pool import ClipPool
from cavmae.datasets.mixtures.scene_stream import FixedSceneStream, read_list
from cavmae.finetune.speaker.model import SpeakerConfig


def listed_stream(
    path: str, shards: str, config: SpeakerConfig, batch: int, **where: Any
) -> FixedSceneStream:
    """The scenes of a list, as the model takes them.

    Args:
        path: of the list.
        shards: that it was made of.
        config: of the model.
        batch: scenes at a time.
        where: options of :class:`~cavmae.datasets.stream.stream.Stream`.

    Raises:
        UsageError: its scenes are of another size or length, show more people than the model has
            places for, or are not of these shards.
    """
    compose, recipes = read_list(Path(path))
    told = compose.height, compose.width, round(compose.seconds, 6)
    wanted = *config.encoder.image_size, round(config.seconds, 6)
    if told != wanted:
        raise UsageError(
            f"{path} has scenes of {told} (height, width, seconds), the model is made for "
            f"{wanted}: make a list of those."
        )
    most = max((len(recipe.people) for recipe in recipes), default=0)
    if most > config.slots - 1:
        raise UsageError(
            f"{path} has scenes of {most} people, the model has places for {config.slots - 1} "
            "(model.slots, less one for the rest): make a list of fewer."
        )
    # Whatever the list names is taken: training may leave out more kinds of clips than it did.
    return FixedSceneStream(
        Manifest.load(shards), compose, recipes, config.motion_size, config.key_frames, batch,
        exclude=(), **where,
    )  # fmt: skip


def in_both(one: ClipPool, other: ClipPool) -> list[str]:
    """People and videos that two sets of clips share; measured on them, a model only remembers."""

    def names(pool: ClipPool) -> set[str]:
        clips = [pool.clips[n] for numbers in pool.people().values() for n in numbers]
        return {clip.person for clip in clips} | {clip.info.source for clip in clips}

    return sorted(names(one) & names(other))
