"""Whole scenes: what a recipe shows and sounds like, and the truth about it."""

from typing import NamedTuple

import numpy as np

from cavmae.datasets.mixtures.clip_pool import ClipPool, PoolClip
from cavmae.datasets.mixtures.compositing import Compositor, Size
from cavmae.datasets.mixtures.mixing import scale_to_level, fade, mix, generate_noise
from cavmae.datasets.mixtures.scene_spec import GRID, ComposeSettings, SceneSpec, Voice
from cavmae.datasets.stream.features import SAMPLE_RATE, resample


class Scene(NamedTuple):
    """A composed sample. P people are seen, numbered as in the recipe.

    Attributes:
        frames: uint8 [F, height, width, 3], key frames.
        motion: uint8 [T, h, w], all frames in grey.
        mixture: float32 [samples] at 16 kHz.
        voices: float32 [P, samples], of each person in the mixture; zero for who is not heard.
        rest: float32 [samples], what belongs to nobody who is seen. The voices and it add up to the
            mixture.
        speaking: bool [P], who is heard.
        masks: bool [P, F, height, width], what is seen of each.
        masked: bool [P], whether that is known.
        target: number of the person whom a cue means.
        reference: float32 [samples], that person's voice elsewhere; silence where there is none.
        labels: of that person's clip.
    """

    frames: np.ndarray
    motion: np.ndarray
    mixture: np.ndarray
    voices: np.ndarray
    rest: np.ndarray
    speaking: np.ndarray
    masks: np.ndarray
    masked: np.ndarray
    target: int
    reference: np.ndarray
    labels: tuple[str, ...]


class Composer:
    """Makes scenes of recipes.

    Args:
        pool: that their clips are in.
        settings: size and length of the scenes.
        motion: size of the grey frames.
        keys: F, key frames.
    """

    def __init__(self, pool: ClipPool, settings: ComposeSettings, motion: Size, keys: int):
        self.pool = pool
        self.samples = round(settings.seconds * SAMPLE_RATE)
        scene = settings.height, settings.width
        self.compositor = Compositor(pool, scene, motion, round(settings.seconds * GRID), keys)

    def compose(self, spec: SceneSpec) -> Scene:
        """The scene of a recipe, the same every time.

        Raises:
            SampleError: a part of a clip is broken.
        """
        heard = [n for n, person in enumerate(spec.people) if person.level_db is not None]
        voices = [*(spec.people[n] for n in heard), *spec.unseen]
        waves = [self._wave(voice) for voice in voices]
        levels = [voice.level_db or 0.0 for voice in voices]
        if spec.noise is not None:
            chance = np.random.default_rng(spec.seed)
            waves.append(generate_noise(spec.noise, self.samples, chance))
            levels.append(spec.noise_db)
        mixed = mix(waves, levels, self.samples)
        parts = np.zeros((len(spec.people), self.samples), dtype=np.float32)
        parts[heard] = mixed.parts[: len(heard)]
        pictures = self.compositor.compose_frames(spec)
        return Scene(
            frames=pictures.frames,
            motion=pictures.motion,
            mixture=mixed.mixture,
            voices=parts,
            rest=mixed.parts[len(heard) :].sum(axis=0),
            speaking=np.array([n in heard for n in range(len(spec.people))]),
            masks=pictures.masks,
            masked=pictures.masked,
            target=spec.target,
            reference=self._reference(spec),
            labels=self._clip(spec.people[spec.target].clip).info.labels,
        )

    def _clip(self, key: str) -> PoolClip:
        return self.pool.clips[self.pool.index_of[key]]

    def _reference(self, recipe: SceneSpec) -> np.ndarray:
        if recipe.reference is None:
            return np.zeros(self.samples, dtype=np.float32)
        return scale_to_level(self._wave(recipe.reference), 0.0)

    def _wave(self, voice: Voice) -> np.ndarray:
        clip = self._clip(voice.clip)
        wave = self.pool.waveform(clip, voice.start, round(self.samples * voice.speed))
        if voice.speed != 1:
            played = resample(wave, round(SAMPLE_RATE * voice.speed))[: self.samples]
            wave = np.pad(played, (0, self.samples - len(played)))
        first, last = (min(round(t * SAMPLE_RATE), self.samples) for t in voice.active)
        return fade(wave, first, last)
