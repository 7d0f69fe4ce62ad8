"""Recipes drawn at random: who is seen and heard, where they stand, what is behind them."""

import contextlib
import dataclasses
import random
from collections.abc import Sequence

import numpy as np

from cavmae.common.errors import SampleError, UsageError
from cavmae.datasets.mixtures.clip_pool import ClipPool, PoolClip
from cavmae.datasets.mixtures.mixing import Noise
from cavmae.datasets.mixtures.scene_spec import (
    GRID,
    ComposeSettings,
    Kind,
    Place,
    SceneSpec,
    Seen,
    Voice,
)

PLACEMENT_TRIES = 12  # to place people so that their heads do not hide each other
HEAD_FRACTION = 0.5  # the upper share of a person
MAX_OCCLUSION = 0.25  # share of a head that somebody else may hide
HEADROOM = 0.08  # above a head, of the scene's height
INNER_FRACTION = (0.5, 0.85)  # how much of the picture a scene of another shape has of it
WIDE_PROB = 0.7  # of such scenes are wider than the picture, as most videos are
SIDE_STEP = 16  # pixels that sides of such scenes are multiples of: whole patches
SPEED_STEP = 0.02  # from speed to speed: few ratios, whose filters are kept

Box = tuple[float, float, float, float]  # left, top, right, bottom


class SceneSampler:
    """Draws recipes.

    Args:
        pool: clips to draw from.
        settings: how.

    Raises:
        UsageError: the pool has too few people for them.
    """

    def __init__(self, pool: ClipPool, settings: ComposeSettings):
        self.pool, self.settings = pool, settings
        everyone = pool.people()
        clips = pool.clips
        self._speaking = {
            name: [n for n in numbers if not clips[n].silent] for name, numbers in everyone.items()
        }
        self._speaking = {name: numbers for name, numbers in self._speaking.items() if numbers}
        self._silent = [n for n, clip in enumerate(clips) if clip.silent and not clip.background]
        # What is meant to stand behind people does, or else whatever people can be cut out of.
        self._behind = [n for n, clip in enumerate(clips) if clip.background]
        self._behind = self._behind or [n for n, clip in enumerate(clips) if clip.masked]
        self._names = sorted(self._speaking)
        self._person_boxes: dict[int, Box] = {}
        most = max(k + 1 for k, share in enumerate(settings.people) if share)
        wanted = most + bool(settings.off_screen_prob or settings.all_off_screen_prob)
        if len(self._names) < wanted:
            told = ", ".join(self._names[:3]) or "nobody"
            raise UsageError(
                f"{pool.manifest.folder} has clips of {len(self._names)} speaking people ({told}); "
                f"these mixtures take up to {wanted}: add people, or lower compose.people, "
                "compose.off_screen_prob and compose.unrelated."
            )

    def sample(self, rng: random.Random) -> SceneSpec:
        """A recipe; all chance in it comes from ``chance``."""
        how = self.settings
        count = rng.choices((1, 2, 3), how.people)[0]
        names = rng.sample(self._names, min(count + 1, len(self._names)))
        chosen = [rng.choice(self._speaking[name]) for name in names]
        unrelated = rng.random() < how.all_off_screen_prob
        quiet = rng.randrange(count) if rng.random() < how.silent_prob else None
        noisy = rng.random() < how.noise_prob
        off_screen = rng.random() < how.off_screen_prob
        if unrelated:  # something is heard all the same
            noisy, off_screen = (True, False) if rng.random() < 0.5 else (noisy, True)
        heard = [not unrelated and number != quiet for number in range(count)]
        moving = [sounds or rng.random() < how.mismatched_lips_prob for sounds in heard]
        seen = self._replace_silent(chosen[:count], moving, set(names), rng)
        kind = self._sample_kind(seen, rng)
        voices = self._sample_voices(
            [*seen, *chosen[count:]], [*heard, off_screen], [*moving, off_screen], rng
        )
        room = self._sample_inner_size(rng)
        people, order = self._place_people(kind, seen, voices, room or (how.height, how.width), rng)
        noises: tuple[Noise, ...] = ("white", "pink", "hum")
        target = rng.randrange(count)
        return SceneSpec(
            kind=kind,
            people=people,
            order=order,
            background=self._sample_background(seen, rng) if kind == "pasted" else None,
            unseen=tuple(voices[count:]) if off_screen else (),
            target=target,
            reference=self._sample_reference(people[target], rng),
            noise=rng.choice(noises) if noisy else None,
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
            room=room,
        )

    def _sample_inner_size(self, chance: random.Random) -> tuple[int, int] | None:
        """The shape of a scene that does not fill the picture; None: it does."""
        how = self.settings
        share = chance.uniform(*INNER_FRACTION)
        wide, boxed = chance.random() < WIDE_PROB, chance.random() < how.letterbox_prob
        side = how.height if wide else how.width
        inner = max(SIDE_STEP, round(share * side / SIDE_STEP) * SIDE_STEP)
        if not boxed or inner >= side:
            return None
        return (inner, how.width) if wide else (how.height, inner)

    def _replace_silent(
        self, chosen: Sequence[int], moving: Sequence[bool], names: set[str], chance: random.Random
    ) -> list[int]:
        """Whoever says nothing is seen in a clip of silence, as far as there are other people's."""
        seen = []
        for number, moves in zip(chosen, moving, strict=True):
            others = [n for n in self._silent if self.pool.clips[n].person not in names]
            if not moves and others:
                number = chance.choice(others)
                names.add(self.pool.clips[number].person)
            seen.append(number)
        return seen

    def _sample_kind(self, seen: Sequence[int], chance: random.Random) -> Kind:
        """A picture without masks cannot be cut out: it goes in as a rectangle."""
        how, clips = self.settings, self.pool.clips
        kinds: tuple[Kind, ...] = ("own_background", "pasted", "split_screen")
        kind = chance.choices(kinds, (how.own_background, how.pasted, how.split_screen))[0]
        if kind == "pasted" and not all(clips[n].masked for n in seen):
            return "own_background" if len(seen) == 1 else "split_screen"
        if kind == "own_background" and not all(clips[n].masked for n in seen) and len(seen) > 1:
            return "split_screen"
        return kind

    def _sample_voices(
        self,
        numbers: Sequence[int],
        heard: Sequence[bool],
        moving: Sequence[bool],
        chance: random.Random,
    ) -> list[Voice]:
        how = self.settings
        together = chance.random() < how.overlap
        found: list[Voice] = []
        for number, sounds, moves in zip(numbers, heard, moving, strict=False):
            clip = self.pool.clips[number]
            speed = self._sample_speed(clip, chance)
            steps = max(0, int((clip.info.duration - how.seconds * speed) * GRID + 1e-6))
            first, last = 0.0, how.seconds
            if not moves and not clip.silent:
                last = 0.0
            elif moves and not together:
                cut = round(chance.uniform(0.3, 1.0) * how.seconds * GRID) / GRID
                first, last = chance.choice([(0.0, cut), (how.seconds - cut, how.seconds)])
            first_heard = all(voice.level_db is None for voice in found)
            level = 0.0 if first_heard else chance.uniform(-how.snr_db, how.snr_db)
            start = chance.randrange(steps + 1) / GRID
            heard_at = level if sounds else None
            found.append(Voice(clip.key, start, (first, last), heard_at, speed=speed))
        return found

    def _sample_speed(self, clip: PoolClip, chance: random.Random) -> float:
        """How fast a clip plays: never so that it ends before the scene."""
        most = round(self.settings.speed / SPEED_STEP)
        if not most:
            return 1.0
        speed = 1 + chance.randint(-most, most) * SPEED_STEP
        return speed if self.settings.seconds * speed <= clip.info.duration + 1e-6 else 1.0

    def _person_box(self, number: int) -> Box:
        """Where the person is in the middle of a clip, in pixels; without masks all of it."""
        if number not in self._person_boxes:
            clip = self.pool.clips[number]
            height, width = clip.info.frame_size
            box: Box = (0.0, 0.0, float(width), float(height))
            if clip.masked:
                # A mask that is broken is found again, counted and named when it is composed.
                with contextlib.suppress(SampleError):
                    mask = self.pool.masks(clip, [len(clip.times) // 2])[0] > 0
                    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                    if len(rows):
                        box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            self._person_boxes[number] = (*(float(x) for x in box),)  # type: ignore[assignment]
        return self._person_boxes[number]

    def _place_people(
        self,
        kind: Kind,
        numbers: Sequence[int],
        voices: Sequence[Voice],
        room: tuple[int, int],
        chance: random.Random,
    ) -> tuple[tuple[Seen, ...], tuple[int, ...]]:
        """Where people stand, and their order of depth."""
        count = len(numbers)
        if kind == "split_screen":
            cuts = [round(n * room[1] / count) for n in range(count + 1)]
            places = [
                self._place_full(number, room, (left, right), chance)
                for number, left, right in zip(numbers, cuts, cuts[1:], strict=False)
            ]
            order = list(range(count))
        else:
            order = chance.sample(range(count), count)
            best: list[Place] = []
            least = float("inf")
            for _ in range(PLACEMENT_TRIES):
                tried: list[Place] = [None] * count  # type: ignore[list-item]
                for depth, number in enumerate(order):
                    own = kind == "own_background" and depth == 0
                    tried[number] = (
                        self._place_full(numbers[number], room, None, chance)
                        if own
                        else self._place_cutout(numbers[number], room, chance)
                    )
                hidden = self._max_occlusion([self._head_box(numbers[n], tried[n]) for n in order])
                if hidden < least:
                    best, least = tried, hidden
                if least <= MAX_OCCLUSION:
                    break
            places = best
        people = tuple(
            Seen(**dataclasses.asdict(voice), **dataclasses.asdict(place))
            for voice, place in zip(voices, places, strict=False)
        )
        return people, tuple(order)

    def _place_full(
        self,
        number: int,
        room: tuple[int, int],
        window: tuple[int, int] | None,
        chance: random.Random,
    ) -> "Place":
        """The clip fills the scene or some of its columns, its person in their middle if it can."""
        clip = self.pool.clips[number]
        height, width = clip.info.frame_size
        first, last = window or (0, room[1])
        scale = max(room[0] / height, (last - first) / width)
        flip = chance.random() < 0.5
        left, upper, right, _ = self._person_box(number)
        middle = (left + right) / 2
        corner = (first + last) / 2 - scale * (width - middle if flip else middle)
        corner = min(first, max(last - scale * width, corner))
        lowest = room[0] - scale * height
        # Of what is too tall the head is to be seen, or the middle where no mask tells of heads.
        top = min(0, max(lowest, HEADROOM * room[0] - scale * upper)) if clip.masked else lowest / 2
        return Place(scale, round(corner), round(top), flip, window)

    def _place_cutout(self, number: int, room: tuple[int, int], chance: random.Random) -> "Place":
        """A person cut out, whose picture ends at the scene's lower edge or below it."""
        how = self.settings
        height, width = self.pool.clips[number].info.frame_size
        left, upper, right, _ = self._person_box(number)
        flip = chance.random() < 0.5
        middle = width - (left + right) / 2 if flip else (left + right) / 2
        scale = chance.uniform(how.min_scale, how.max_scale) * room[0] / height
        # Not so low that a head of usual size (an upper third) leaves the picture.
        lowest = max(room[0] - scale * height, -scale * upper)
        sink = max(0.0, room[0] - scale * (upper + (height - upper) / 2) - lowest)
        top = lowest + chance.random() * min(sink, 0.2 * room[0])
        corner = chance.uniform(0.12, 0.88) * room[1] - scale * middle
        return Place(scale, round(corner), round(top), flip, None)

    def _head_box(self, number: int, place: "Place") -> Box:
        """The upper half of a person, in pixels of the scene."""
        left, top, right, bottom = self._person_box(number)
        if place.flip:
            width = self.pool.clips[number].info.frame_size[1]
            left, right = width - right, width - left
        bottom = top + HEAD_FRACTION * (bottom - top)
        x, y, scale = place.left, place.top, place.scale
        return (x + scale * left, y + scale * top, x + scale * right, y + scale * bottom)

    @staticmethod
    def _max_occlusion(heads: Sequence[Box]) -> float:
        """The largest share of a head that nearer heads and bodies below them hide.

        Args:
            heads: from the farthest to the nearest.
        """
        most = 0.0
        for depth, (left, top, right, bottom) in enumerate(heads):
            for other in heads[depth + 1 :]:
                wide = max(0.0, min(right, other[2]) - max(left, other[0]))
                high = max(0.0, bottom - max(top, other[1]))  # a body reaches down from its head
                most = max(most, wide * high / max(1.0, (right - left) * (bottom - top)))
        return most

    def _sample_reference(self, person: Voice, chance: random.Random) -> Voice | None:
        """Something else that somebody says, of another clip or of another part of this one."""
        seconds = self.settings.seconds
        shown = self.pool.clips[self.pool.index_of[person.clip]]
        said = [self.pool.clips[n] for n in self._speaking.get(shown.person, [])]
        others = [clip for clip in said if clip.key != shown.key]
        if others:
            clip = chance.choice(others)
            speed = person.speed if seconds * person.speed <= clip.info.duration + 1e-6 else 1.0
            steps = max(0, int((clip.info.duration - seconds * speed) * GRID + 1e-6))
            start = chance.randrange(steps + 1) / GRID
        elif shown in said and shown.info.duration >= 2 * seconds * person.speed - 1e-6:
            clip, speed = shown, person.speed
            last = shown.info.duration - seconds * speed
            start = 0.0 if person.start >= last / 2 else last
            if (
                abs(start - person.start) < seconds * speed - 1e-6
            ):  # it would hold what is to be found
                return None
        else:
            return None
        return Voice(clip.key, start, (0.0, seconds), 0.0, speed=speed)

    def _sample_background(self, seen: Sequence[int], chance: random.Random) -> str:
        clips = self.pool.clips
        others = [n for n in self._behind if n not in seen]
        return clips[chance.choice(others or list(seen))].key
