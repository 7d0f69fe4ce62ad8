"""Fixed lists of held-out scenes for evaluation."""

from pathlib import Path
from typing import Any

from cavmae.common.errors import UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.mixtures.clip_pool import ClipPool
from cavmae.datasets.mixtures.scene_stream import FixedSceneStream, read_list
from cavmae.finetune.speaker.config import SpeakerConfig


def listed_stream(
    path: str, shards: str, config: SpeakerConfig, batch: int, **stream_options: Any
) -> FixedSceneStream:
    """Stream of the scenes of a list, in the format of the model.

    Args:
        path: of the list.
        shards: folder or URL of the shards that the list was made of.
        config: of the model.
        batch: batch size in scenes.
        stream_options: options of :class:`~cavmae.datasets.stream.stream.Stream`.

    Raises:
        UsageError: the scenes differ from the model in size or length, have more people than the
            model has slots, or are not of these shards.
    """
    compose, recipes = read_list(Path(path))
    listed = compose.height, compose.width, round(compose.seconds, 6)
    expected = *config.encoder.image_size, round(config.seconds, 6)
    if listed != expected:
        raise UsageError(
            f"{path} has scenes of {listed} (height, width, seconds), the model is made for "
            f"{expected}: make a list of those."
        )
    most = max((len(recipe.people) for recipe in recipes), default=0)
    if most > config.slots - 1:
        raise UsageError(
            f"{path} has scenes of {most} people, the model has places for {config.slots - 1} "
            "(model.slots, less one for the residual): make a list of fewer people."
        )
    # The list decides which clips are used, even those that training excludes.
    return FixedSceneStream(
        Manifest.load(shards), compose, recipes, config.motion_size, config.key_frames, batch,
        exclude=(), **stream_options,
    )  # fmt: skip


def shared_sources(pool: ClipPool, other: ClipPool) -> list[str]:
    """Names of people and videos that two clip pools share: evaluation on them measures memory."""

    def names(pool: ClipPool) -> set[str]:
        clips = [pool.clips[n] for numbers in pool.people().values() for n in numbers]
        return {clip.person for clip in clips} | {clip.info.source for clip in clips}

    return sorted(names(pool) & names(other))
