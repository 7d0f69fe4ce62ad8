"""Random sampling of scene specs: people, voices, background and noise.

People are placed by :mod:`.placement`, tables in front of them by :mod:`.occluders`.
"""

import dataclasses
import random
from collections.abc import Sequence

from cavmae.common.errors import UsageError
from cavmae.datasets.mixtures.clip_pool import ClipPool, PoolClip
from cavmae.datasets.mixtures.occluders import OccluderSampler
from cavmae.datasets.mixtures.placement import PeoplePlacer
from cavmae.datasets.mixtures.scene_spec import (
    ComposeSettings,
    Kind,
    Noise,
    SceneSpec,
    VisiblePerson,
    Voice,
)
from cavmae.datasets.stream.rates import VIDEO_RATE

INNER_FRACTION = (0.5, 0.85)  # range of a letterboxed scene's shorter side over the frame's side
WIDE_PROB = 0.7  # of a letterboxed scene being wider than the frame, as most videos are
SIDE_STEP = 16  # pixels: sides of letterboxed scenes are whole patches
SPEED_STEP = 0.02  # between playback speeds: few ratios, so that resampling filters are reused


class SceneSampler:
    """Samples scene specs from the clips of a pool.

    Args:
        pool: clips to sample from.
        settings: probabilities and ranges of the scenes.

    Raises:
        UsageError: the pool has too few speaking people for these settings.
    """

    def __init__(self, pool: ClipPool, settings: ComposeSettings):
        self.pool, self.settings = pool, settings
        clips = pool.clips
        self._speaking = {
            name: [n for n in numbers if not clips[n].silent]
            for name, numbers in pool.people().items()
        }
        self._speaking = {name: numbers for name, numbers in self._speaking.items() if numbers}
        self._silent = [n for n, clip in enumerate(clips) if clip.silent and not clip.background]
        # Clips with masks serve as backgrounds, without their person, if no clip is labelled so.
        self._backgrounds = [n for n, clip in enumerate(clips) if clip.background]
        self._backgrounds = self._backgrounds or [n for n, clip in enumerate(clips) if clip.masked]
        self._names = sorted(self._speaking)
        self._placer = PeoplePlacer(pool, settings.min_scale, settings.max_scale)
        # Neither a person nor a part of one is on a surface.
        surfaces = [n for n in self._backgrounds if clips[n].masked or clips[n].without_people]
        self._occluder_sampler = OccluderSampler(self._placer, surfaces)
        max_people = max(k + 1 for k, weight in enumerate(settings.people) if weight)
        if settings.without_people_prob == 1:
            max_people = 0
        required = max_people + bool(
            settings.off_screen_prob or settings.all_off_screen_prob or not max_people
        )
        if len(self._names) < required:
            examples = ", ".join(self._names[:3]) or "none"
            raise UsageError(
                f"{pool.manifest.folder} has clips of {len(self._names)} speaking people "
                f"({examples}); these mixtures take up to {required}: add people, or lower "
                "compose.people, compose.off_screen_prob and compose.all_off_screen_prob."
            )
        for option, sources, lack in (
            ("without_people_prob", self._backgrounds, "no background"),
            ("occluder_prob", surfaces, "no background whose people can be removed"),
        ):
            if getattr(settings, option) and not sources:
                raise UsageError(
                    f"compose.{option} {getattr(settings, option)}: {pool.manifest.folder} has "
                    f"{lack}, neither clips labelled `background` that show nobody nor people with "
                    "masks in all frames; add one of them, or set the option to 0."
                )

    def sample(self, rng: random.Random) -> SceneSpec:
        """Samples a spec. All randomness comes from ``rng``, in a fixed order of draws."""
        settings = self.settings
        # A probability of 0 draws nothing, so that other options draw the same scenes.
        if settings.without_people_prob and rng.random() < settings.without_people_prob:
            count = 0
        else:
            count = rng.choices((1, 2, 3), settings.people)[0]
        names = rng.sample(self._names, min(count + 1, len(self._names)))
        chosen = [rng.choice(self._speaking[name]) for name in names]
        all_off_screen = not count or rng.random() < settings.all_off_screen_prob
        has_silent = count > 0 and rng.random() < settings.silent_prob
        silent_number = rng.randrange(count) if has_silent else None
        has_noise = rng.random() < settings.noise_prob
        has_off_screen = rng.random() < settings.off_screen_prob
        if all_off_screen:  # the mixture is not silent all the same
            has_noise, has_off_screen = (True, False) if rng.random() < 0.5 else (has_noise, True)
        audible = [not all_off_screen and number != silent_number for number in range(count)]
        moving = [
            is_audible or rng.random() < settings.mismatched_lips_prob for is_audible in audible
        ]
        visible = self._replace_silent(chosen[:count], moving, set(names), rng)
        kind = self._sample_kind(visible, rng) if visible else "pasted"
        voices = self._sample_voices(
            [*visible, *chosen[count:]], [*audible, has_off_screen], [*moving, has_off_screen], rng
        )
        inner_size = self._sample_inner_size(rng)
        scene_size = inner_size or (settings.height, settings.width)
        places, order = self._placer.place(kind, visible, scene_size, rng)
        people = tuple(
            VisiblePerson(**dataclasses.asdict(voice), **dataclasses.asdict(place))
            for voice, place in zip(voices, places, strict=False)
        )
        has_background = kind == "pasted" or (
            kind == "inset" and all(place.rows is not None for place in places)
        )
        background = self._sample_background(visible, rng) if has_background else None
        noises: tuple[Noise, ...] = ("white", "pink", "hum")
        target = rng.randrange(count) if people else 0
        spec = SceneSpec(
            kind=kind,
            people=people,
            order=order,
            background=background,
            unseen=tuple(voices[count:]) if has_off_screen else (),
            target=target,
            reference=self._sample_reference(people[target], rng) if people else None,
            noise=rng.choice(noises) if has_noise else None,
            noise_db=-20 * rng.random(),
            light=(rng.uniform(0.8, 1.25), rng.uniform(0.8, 1.25), rng.uniform(0.7, 1.3)),
            tint=(
                rng.uniform(0.93, 1.07),
                rng.uniform(0.93, 1.07),
                rng.uniform(0.93, 1.07),
            ),
            quality=rng.randint(50, 95),
            feather=rng.uniform(0.5, 2.0),
            seed=rng.getrandbits(32),
            room=inner_size,
            background_start=self._sample_background_start(background, rng),
        )
        # Drawn last, so that all else is as without them.
        is_one_picture = kind in ("own_background", "pasted")
        if is_one_picture and settings.occluder_prob and rng.random() < settings.occluder_prob:
            spec = self._occluder_sampler.sample(spec, scene_size, rng)
        return spec

    def _sample_inner_size(self, rng: random.Random) -> tuple[int, int] | None:
        """(height, width) in pixels of a letterboxed scene; None: the scene fills the frame."""
        settings = self.settings
        fraction = rng.uniform(*INNER_FRACTION)
        is_wide, is_letterboxed = rng.random() < WIDE_PROB, rng.random() < settings.letterbox_prob
        side = settings.height if is_wide else settings.width
        inner_side = max(SIDE_STEP, round(fraction * side / SIDE_STEP) * SIDE_STEP)
        if not is_letterboxed or inner_side >= side:
            return None
        return (inner_side, settings.width) if is_wide else (settings.height, inner_side)

    def _replace_silent(
        self, chosen: Sequence[int], moving: Sequence[bool], names: set[str], rng: random.Random
    ) -> list[int]:
        """Replaces people with still lips by silent clips of other people, if there are any.

        Args:
            chosen: numbers of the clips of the visible people.
            moving: for each, whether lips move.
            names: people of the scene; those of silent clips are added.
        """
        visible = []
        for number, is_moving in zip(chosen, moving, strict=True):
            others = [n for n in self._silent if self.pool.clips[n].person not in names]
            if not is_moving and others:
                number = rng.choice(others)
                names.add(self.pool.clips[number].person)
            visible.append(number)
        return visible

    def _sample_kind(self, visible: Sequence[int], rng: random.Random) -> Kind:
        """Samples the layout; clips without masks cannot be cut out and stay rectangles."""
        settings, clips = self.settings, self.pool.clips
        kinds: tuple[Kind, ...] = ("own_background", "pasted", "split_screen", "inset")
        weights = (
            settings.own_background, settings.pasted, settings.split_screen, settings.inset
        )  # fmt: skip
        kind = rng.choices(kinds, weights)[0]
        if all(clips[n].masked for n in visible):
            return kind
        if kind == "pasted":
            return "own_background" if len(visible) == 1 else "split_screen"
        if kind == "own_background" and len(visible) > 1:
            return "split_screen"
        return kind

    def _sample_voices(
        self,
        numbers: Sequence[int],
        audible: Sequence[bool],
        moving: Sequence[bool],
        rng: random.Random,
    ) -> list[Voice]:
        """Samples level, speed and time span of each clip's voice.

        Args:
            numbers: of the clips, the visible people's first.
            audible: for each, whether its voice is in the mixture.
            moving: for each, whether lips move.
        """
        settings = self.settings
        full_overlap = rng.random() < settings.overlap
        voices: list[Voice] = []
        for number, is_audible, is_moving in zip(numbers, audible, moving, strict=False):
            clip = self.pool.clips[number]
            speed = self._sample_speed(clip, rng)
            steps = max(0, int((clip.info.duration - settings.seconds * speed) * VIDEO_RATE + 1e-6))
            first, last = 0.0, settings.seconds
            if not is_moving and not clip.silent:
                last = 0.0
            elif is_moving and not full_overlap:
                cut = round(rng.uniform(0.3, 1.0) * settings.seconds * VIDEO_RATE) / VIDEO_RATE
                first, last = rng.choice([(0.0, cut), (settings.seconds - cut, settings.seconds)])
            is_first = all(voice.level_db is None for voice in voices)
            level = 0.0 if is_first else rng.uniform(-settings.snr_db, settings.snr_db)
            start = rng.randrange(steps + 1) / VIDEO_RATE
            level_db = level if is_audible else None
            voices.append(Voice(clip.key, start, (first, last), level_db, speed=speed))
        return voices

    def _sample_speed(self, clip: PoolClip, rng: random.Random) -> float:
        """Playback speed of a clip; 1 if the clip would otherwise end before the scene."""
        max_steps = round(self.settings.speed / SPEED_STEP)
        if not max_steps:
            return 1.0
        speed = 1 + rng.randint(-max_steps, max_steps) * SPEED_STEP
        return speed if self.settings.seconds * speed <= clip.info.duration + 1e-6 else 1.0

    def _sample_reference(self, person: Voice, rng: random.Random) -> Voice | None:
        """Reference voice of a person: from another clip, or from another part of the same clip.

        None: there is no such speech.
        """
        seconds = self.settings.seconds
        own_clip = self.pool.clips[self.pool.index_of[person.clip]]
        speech = [self.pool.clips[n] for n in self._speaking.get(own_clip.person, [])]
        others = [clip for clip in speech if clip.key != own_clip.key]
        if others:
            clip = rng.choice(others)
            speed = person.speed if seconds * person.speed <= clip.info.duration + 1e-6 else 1.0
            steps = max(0, int((clip.info.duration - seconds * speed) * VIDEO_RATE + 1e-6))
            start = rng.randrange(steps + 1) / VIDEO_RATE
        elif own_clip in speech and own_clip.info.duration >= 2 * seconds * person.speed - 1e-6:
            clip, speed = own_clip, person.speed
            last = own_clip.info.duration - seconds * speed
            start = 0.0 if person.start >= last / 2 else last
            # A reference that overlaps the target would hand over the target voice.
            if abs(start - person.start) < seconds * speed - 1e-6:
                return None
        else:
            return None
        return Voice(clip.key, start, (0.0, seconds), 0.0, speed=speed)

    def _sample_background(self, visible: Sequence[int], rng: random.Random) -> str:
        clips = self.pool.clips
        others = [n for n in self._backgrounds if n not in visible]
        return clips[rng.choice(others or list(visible))].key

    def _sample_background_start(self, background: str | None, rng: random.Random) -> float | None:
        """Seconds from which on a background plays; None: it has a person, and stands still."""
        clip = None if background is None else self.pool.clips[self.pool.index_of[background]]
        if clip is None or not clip.without_people:
            return None
        return rng.random() * max(0.0, clip.info.duration - self.settings.seconds)
