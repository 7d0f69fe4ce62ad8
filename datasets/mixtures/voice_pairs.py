"""Pairs of scenes with the same frames: a person's own voice, and another speaker's in its place.

They measure whether a model binds a voice to the mouth that moves with it, beyond seeing a mouth
that moves.
"""

import dataclasses
import itertools
import random
from collections.abc import Sequence
from typing import NamedTuple

from cavmae.common.errors import UsageError
from cavmae.datasets.mixtures.clip_pool import ClipPool
from cavmae.datasets.mixtures.scene_spec import ComposeSettings, SceneSpec, Voice
from cavmae.datasets.stream.rates import VIDEO_RATE


class PairedScene(NamedTuple):
    """Scene of a pair.

    Attributes:
        person: number of the person whose voice is replaced in the second scene of the pair.
        own_voice: whether this is the scene with their own voice.
    """

    person: int
    own_voice: bool


def paired_settings(settings: ComposeSettings) -> ComposeSettings:
    """Settings of scenes in which all visible people, and nothing else, are audible."""
    return dataclasses.replace(
        settings, silent_prob=0.0, off_screen_prob=0.0, noise_prob=0.0, all_off_screen_prob=0.0,
        without_people_prob=0.0,
    )  # fmt: skip


def replace_target_voice(
    spec: SceneSpec, pool: ClipPool, settings: ComposeSettings, rng: random.Random
) -> SceneSpec:
    """Replaces the voice of a scene's target by that of a speaker who is not in the scene.

    Frames stay: the target's lips move to words that are not audible. The other voice is off-screen
    and has the same level and time span.

    Args:
        spec: of :func:`paired_settings`.
        pool: clips of the scene.
        settings: length of the scene.
        rng: source of the speaker, the clip and its offset.

    Raises:
        UsageError: the pool has no other speaking person.
    """
    target = spec.people[spec.target]
    visible = {pool.clips[pool.index_of[person.clip]].person for person in spec.people}
    speech = {
        name: [pool.clips[n] for n in numbers if not pool.clips[n].silent]
        for name, numbers in pool.people().items()
        if name not in visible
    }
    names = sorted(name for name, clips in speech.items() if clips)
    if not names:
        raise UsageError(
            f"{pool.manifest.folder} has no speaking person beside the {len(visible)} of a scene: "
            "add people, or lower compose.people."
        )
    clip = rng.choice(speech[rng.choice(names)])
    steps = max(0, int((clip.info.duration - settings.seconds) * VIDEO_RATE + 1e-6))
    start = rng.randrange(steps + 1) / VIDEO_RATE
    return _with_voice(spec, Voice(clip.key, start, target.active, target.level_db))


def paired_scenes(specs: Sequence[SceneSpec]) -> dict[int, PairedScene]:
    """Scenes of a list that are pairs of neighbours, by their number in the list."""
    pairs: dict[int, PairedScene] = {}
    for number, (first, second) in enumerate(itertools.pairwise(specs)):
        is_audible = bool(first.people) and first.people[first.target].level_db is not None
        if is_audible and second.unseen and second == _with_voice(first, second.unseen[0]):
            pairs[number] = PairedScene(first.target, True)
            pairs[number + 1] = PairedScene(first.target, False)
    return pairs


def _with_voice(spec: SceneSpec, voice: Voice) -> SceneSpec:
    """The scene with an off-screen voice in place of its target's."""
    people = list(spec.people)
    people[spec.target] = dataclasses.replace(people[spec.target], level_db=None)
    return dataclasses.replace(spec, people=tuple(people), unseen=(voice,))
