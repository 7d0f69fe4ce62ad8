"""Composition of scene specs into frames, audio and ground truth."""

from typing import NamedTuple

import numpy as np

from cavmae.datasets.mixtures.clip_pool import ClipPool, PoolClip
from cavmae.datasets.mixtures.compositing import Compositor
from cavmae.datasets.mixtures.mixing import fade, generate_noise, mix, scale_to_level
from cavmae.datasets.mixtures.paste_canvas import Size
from cavmae.datasets.mixtures.scene_spec import ComposeSettings, SceneSpec, Voice
from cavmae.datasets.mixtures.speech_bank import CUE_CHANNELS
from cavmae.datasets.stream.features import SAMPLE_RATE, resample
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.datasets.synthetic.articulation import at_frames, from_audio
from cavmae.datasets.synthetic.recordings import active_level

QUIETEST_DB = -60.0  # level of a clip's voice below which it is silence


class Scene(NamedTuple):
    """A composed sample with P visible people, numbered as in the spec.

    Attributes:
        frames: uint8 [F, height, width, 3], key frames.
        motion: uint8 [T, h, w], all frames in grey.
        mixture: float32 [samples] at 16 kHz.
        voices: float32 [P, samples], voice of each person in the mixture; zero if not audible.
        articulation: float32 [P, T, 4], articulation cue of the speech that each person's lips
            show, audible or not (see :mod:`cavmae.datasets.synthetic.articulation`).
        articulated: bool [P], whether it is known: the clip is of a voice, and not silent.
        residual: float32 [samples], off-screen voices and noise. ``voices`` and ``residual`` add
            up to ``mixture``.
        speaking: bool [P], whether each person is audible.
        masks: bool [P, F, height, width], visible pixels of each person.
        masked: bool [P], whether the mask is known.
        target: number of the person that a cue refers to; 0 without people.
        reference: float32 [samples], other speech of the target person; silence: there is none.
        labels: of the target person's clip; none without people.
    """

    frames: np.ndarray
    motion: np.ndarray
    mixture: np.ndarray
    voices: np.ndarray
    articulation: np.ndarray
    articulated: np.ndarray
    residual: np.ndarray
    speaking: np.ndarray
    masks: np.ndarray
    masked: np.ndarray
    target: int
    reference: np.ndarray
    labels: tuple[str, ...]


class Composer:
    """Composes scenes from their specs.

    Args:
        pool: clips of the specs.
        settings: size and length of the scenes.
        motion: (height, width) of the grey frames, in pixels.
        keys: F, number of key frames.
    """

    def __init__(self, pool: ClipPool, settings: ComposeSettings, motion: Size, keys: int):
        self.pool = pool
        self.samples = round(settings.seconds * SAMPLE_RATE)
        scene = settings.height, settings.width
        self.compositor = Compositor(
            pool, scene, motion, round(settings.seconds * VIDEO_RATE), keys
        )

    def compose(self, spec: SceneSpec) -> Scene:
        """Composes the scene of a spec, deterministically.

        Raises:
            SampleError: a part of a clip is broken.
        """
        audible = [n for n, person in enumerate(spec.people) if person.level_db is not None]
        voices = [*(spec.people[n] for n in audible), *spec.unseen]
        waves = [self._wave(voice) for voice in voices]
        levels = [voice.level_db or 0.0 for voice in voices]
        if spec.noise is not None:
            rng = np.random.default_rng(spec.seed)
            waves.append(generate_noise(spec.noise, self.samples, rng))
            levels.append(spec.noise_db)
        mixed = mix(waves, levels, self.samples)
        person_voices = np.zeros((len(spec.people), self.samples), dtype=np.float32)
        person_voices[audible] = mixed.parts[: len(audible)]
        composed = self.compositor.compose_frames(spec)
        frames = len(self.compositor.times)
        articulation = np.zeros((len(spec.people), frames, CUE_CHANNELS), dtype=np.float32)
        articulated = np.zeros(len(spec.people), dtype=bool)
        for number, person in enumerate(spec.people):
            articulation[number], articulated[number] = self._articulation(person)
        target = self._clip(spec.people[spec.target].clip) if spec.people else None
        return Scene(
            frames=composed.frames,
            motion=composed.motion,
            mixture=mixed.mixture,
            voices=person_voices,
            articulation=articulation,
            articulated=articulated,
            residual=mixed.parts[len(audible) :].sum(axis=0),
            speaking=np.array([n in audible for n in range(len(spec.people))], dtype=bool),
            masks=composed.masks,
            masked=composed.masked,
            target=spec.target,
            reference=self._reference(spec),
            labels=() if target is None else target.info.labels,
        )

    def _clip(self, key: str) -> PoolClip:
        return self.pool.clips[self.pool.index_of[key]]

    def _reference(self, spec: SceneSpec) -> np.ndarray:
        if spec.reference is None:
            return np.zeros(self.samples, dtype=np.float32)
        return scale_to_level(self._wave(spec.reference), 0.0)

    def _articulation(self, person: Voice) -> tuple[np.ndarray, bool]:
        """Articulation cue at the centers of frames [T, 4], and whether it is known."""
        wave = self._wave(person)
        times = (np.arange(len(wave) * VIDEO_RATE // SAMPLE_RATE) + 0.5) / VIDEO_RATE
        level = active_level(wave)
        if self._clip(person.clip).silent or level < QUIETEST_DB:
            return np.zeros((len(times), CUE_CHANNELS), np.float32), False
        return at_frames(from_audio(wave, level), times), True

    def _wave(self, voice: Voice) -> np.ndarray:
        clip = self._clip(voice.clip)
        wave = self.pool.waveform(clip, voice.start, round(self.samples * voice.speed))
        if voice.speed != 1:
            played = resample(wave, round(SAMPLE_RATE * voice.speed))[: self.samples]
            wave = np.pad(played, (0, self.samples - len(played)))
        first, last = (min(round(t * SAMPLE_RATE), self.samples) for t in voice.active)
        return fade(wave, first, last)
