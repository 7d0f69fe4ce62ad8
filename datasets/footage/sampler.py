"""Random sampling of footage specs: people, shots, entrances and exits, camera."""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cavmae.common.errors import UsageError
from cavmae.datasets.footage.spec import (
    FootageKind,
    FootageSettings,
    FootageShot,
    FootageSpec,
    HandheldCamera,
    PlacedTalker,
    Talker,
)
from cavmae.datasets.mixtures.clip_pool import ClipPool
from cavmae.datasets.mixtures.paste_canvas import Size
from cavmae.datasets.mixtures.placement import PeoplePlacer
from cavmae.datasets.mixtures.scene_spec import Kind, Place
from cavmae.datasets.stream.rates import VIDEO_RATE

PEOPLE = 3  # most people of a recording
SCALES = (0.7, 1.1)  # of a cut-out person, relative to a clip that fills the picture's height
PAIR_SCALES = (0.3, 0.45)  # of two people beside each other in a portrait picture
INSET_SIDE = (0.28, 0.4)  # range of an inset's height over the picture's
INSET_MARGIN = 0.04  # between an inset and the edges, as a fraction of the picture's height
WALK_SECONDS = 0.8  # of a walk into the frame or out of it
PAN = 0.15  # largest pan, as a fraction of the picture's width
SHAKE = 0.012  # largest shake, as a fraction of the picture's width
CENTERS = (0.15, 0.3, 0.5, 0.7, 0.85)  # places of a return, as fractions of the width
APART = 0.3  # distance from the other person at such a place, likewise
LIGHT = (0.85, 1.15)  # range of the factors of brightness and contrast of a shot after a cut

Span = tuple[float, float]


class _Plan(NamedTuple):
    """Shots, camera, and absences of people from the picture in seconds, by their indices."""

    shots: tuple[FootageShot, ...]
    camera: HandheldCamera | None = None
    absences: Mapping[int, Span] = {}


class FootageSampler:
    """Samples footage specs from the clips of a pool.

    Args:
        pool: clips to sample from.
        settings: distribution of the recordings.

    Raises:
        UsageError: the pool has too few speaking people with masks.
    """

    def __init__(self, pool: ClipPool, settings: FootageSettings):
        self.pool, self.settings = pool, settings
        self._placer = PeoplePlacer(pool, *SCALES)
        self._pair_placer = PeoplePlacer(pool, *PAIR_SCALES)
        clips = pool.clips
        self._speaking = {
            name: speaking
            for name, numbers in pool.people().items()
            if (speaking := [n for n in numbers if clips[n].masked and not clips[n].silent])
        }
        self._backgrounds = [n for n, clip in enumerate(clips) if clip.background]
        self._backgrounds = self._backgrounds or [n for n, clip in enumerate(clips) if clip.masked]
        if len(self._speaking) < PEOPLE:
            raise UsageError(
                f"{pool.manifest.folder} has clips with masks of {len(self._speaking)} speaking "
                f"people; recordings take up to {PEOPLE}: add people, as `cavmae render-talkers` "
                "makes them."
            )

    def sample(self, name: str, kind: FootageKind, rng: random.Random) -> FootageSpec:
        """Samples a recording. All randomness comes from ``rng``, in a fixed order of draws.

        Args:
            name: of its files.
        """
        settings = self.settings
        seconds = rng.uniform(settings.min_seconds, settings.max_seconds)
        frames = max(1, round(seconds * VIDEO_RATE))
        size = settings.size[::-1] if kind == "portrait" else settings.size
        numbers = self._sample_people(kind, rng)
        plan = {
            "plain": self._plain, "return": self._return, "cut": self._cut, "inset": self._inset,
            "portrait": self._portrait,
        }[kind](numbers, frames, size, rng)  # fmt: skip
        numbers, plan = _without_unseen(numbers, plan)
        talkers = self._sample_talkers(numbers, plan, rng)
        feather = rng.uniform(0.5, 1.5)
        return FootageSpec(name, kind, size, talkers, plan.shots, plan.camera, feather)

    def _sample_people(self, kind: FootageKind, rng: random.Random) -> list[int]:
        """Clips of different people."""
        least, most = {"cut": (2, 3), "inset": (2, 3), "portrait": (1, 2)}.get(kind, (2, 2))
        names = rng.sample(sorted(self._speaking), rng.randint(least, most))
        return [rng.choice(self._speaking[name]) for name in names]

    def _sample_talkers(
        self, numbers: Sequence[int], plan: _Plan, rng: random.Random
    ) -> tuple[Talker, ...]:
        """Levels and positions in the clips; a voice is audible while its person is in a shot."""
        has_silent = len(numbers) > 1 and rng.random() < self.settings.silent_prob
        silent = rng.randrange(len(numbers)) if has_silent else None
        talkers = []
        for index, number in enumerate(numbers):
            clip = self.pool.clips[number]
            level_db = rng.uniform(-self.settings.snr_db, self.settings.snr_db) if index else 0.0
            offset = rng.randrange(max(1, int(clip.info.duration * VIDEO_RATE))) / VIDEO_RATE
            spans = _spans(index, plan)
            talkers.append(Talker(clip.key, offset, None if index == silent else level_db, spans))
        return tuple(talkers)

    def _plain(self, numbers: Sequence[int], frames: int, size: Size, rng: random.Random) -> _Plan:
        layout: Kind = rng.choice(("pasted", "own_background", "split_screen"))
        return _Plan((self._shot(layout, numbers, (0, 1), frames, 0, size, rng),))

    def _return(self, numbers: Sequence[int], frames: int, size: Size, rng: random.Random) -> _Plan:
        """The second person walks out of the frame, and back to the same place or to another."""
        shot = self._shot("pasted", numbers, (0, 1), frames, 0, size, rng)
        absence = rng.uniform(self.settings.min_absence_seconds, self.settings.max_absence_seconds)
        leaves = rng.uniform(0.2, 0.8) * (frames / VIDEO_RATE - absence)
        other, moving = sorted(shot.appearances, key=lambda a: a.talker)
        _, left, top = moving.path[0]
        back = left
        if rng.random() < 0.5:
            back = self._corner_beside(numbers, moving, other, size, rng)
        exits, enters = rng.choice((-1, 1)), rng.choice((-1, 1))
        clip_width = self.pool.clips[numbers[1]].info.frame_size[1] * moving.scale
        outside = {-1: -round(clip_width) - 1, 1: size[1] + 1}
        returns = leaves + absence
        path = (
            (leaves - WALK_SECONDS, left, top), (leaves, outside[exits], top),
            (leaves, outside[enters], top), (returns, outside[enters], top),
            (returns + WALK_SECONDS, back, top),
        )  # fmt: skip
        walking = dataclasses.replace(moving, path=path)
        appearances = tuple(walking if a is moving else a for a in shot.appearances)
        moved = dataclasses.replace(shot, appearances=appearances)
        return _Plan((moved,), absences={1: (leaves, returns)})

    def _corner_beside(
        self, numbers: Sequence[int], moving: PlacedTalker, other: PlacedTalker, size: Size,
        rng: random.Random,
    ) -> float:  # fmt: skip
        """Left edge of a person's frame at another place, away from the other person."""
        centers = []
        for appearance in (moving, other):
            left, _, right, _ = self._placer.person_box(numbers[appearance.talker])
            width = self.pool.clips[numbers[appearance.talker]].info.frame_size[1]
            middle = width - (left + right) / 2 if appearance.flip else (left + right) / 2
            centers.append(middle * appearance.scale)
        taken = other.path[0][1] + centers[1]
        free = [c for c in CENTERS if abs(c * size[1] - taken) >= APART * size[1]]
        return round(rng.choice(free) * size[1] - centers[0])

    def _cut(self, numbers: Sequence[int], frames: int, size: Size, rng: random.Random) -> _Plan:
        """Shots of one or two people, who change from shot to shot and come back."""
        shots: list[FootageShot] = []
        for length in self._sample_lengths(frames, rng):
            present = rng.sample(range(len(numbers)), rng.choice((1, 2)))
            layouts: tuple[Kind, ...] = ("own_background", "pasted", "split_screen")
            layout = rng.choice(layouts if len(present) == 2 else layouts[:2])
            shots.append(self._shot(layout, numbers, present, length, len(shots), size, rng))
        return _Plan(tuple(shots))

    def _inset(self, numbers: Sequence[int], frames: int, size: Size, rng: random.Random) -> _Plan:
        """The first person in a corner of all shots, over shots of another person or of none."""
        side = rng.uniform(*INSET_SIDE) * size[0]
        height, width = self.pool.clips[numbers[0]].info.frame_size
        scale = side / height
        margin = round(INSET_MARGIN * size[0])
        left = rng.choice((margin, size[1] - margin - round(width * scale)))
        top = rng.choice((margin, size[0] - margin - round(height * scale)))
        corner = PlacedTalker(0, scale, False, None, False, ((0.0, left, top),))
        shots = []
        for number, length in enumerate(self._sample_lengths(frames, rng)):
            present = rng.sample(range(1, len(numbers)), 0 if number and rng.random() < 0.3 else 1)
            layout: Kind = rng.choice(("own_background", "pasted")) if present else "pasted"
            under = self._shot(layout, numbers, present, length, number, size, rng)
            shots.append(dataclasses.replace(under, appearances=(*under.appearances, corner)))
        return _Plan(tuple(shots))

    def _portrait(
        self, numbers: Sequence[int], frames: int, size: Size, rng: random.Random
    ) -> _Plan:
        shot = self._shot("pasted", numbers, range(len(numbers)), frames, 0, size, rng)
        shake = rng.uniform(0.2, 1.0) * SHAKE * size[1]
        pan = rng.choice((0.0, rng.uniform(-PAN, PAN) * size[1]))
        camera = HandheldCamera(pan, shake, (rng.uniform(0.5, 2.5), rng.uniform(0.5, 2.5)))
        # Lower, so that the shake does not bare the edge at which the people are cut off.
        appearances = tuple(
            dataclasses.replace(a, path=tuple((t, x, y + round(shake) + 1) for t, x, y in a.path))
            for a in shot.appearances
        )
        return _Plan((dataclasses.replace(shot, appearances=appearances),), camera)

    def _sample_lengths(self, frames: int, rng: random.Random) -> list[int]:
        """Numbers of frames of shots; a rest too short for a shot is part of the last."""
        least = max(1, round(self.settings.min_shot_seconds * VIDEO_RATE))
        most = max(least, round(self.settings.max_shot_seconds * VIDEO_RATE))
        lengths: list[int] = []
        while frames >= 2 * least:
            lengths.append(min(rng.randint(least, most), frames - least))
            frames -= lengths[-1]
        return [*lengths, frames]

    def _shot(
        self,
        layout: Kind,
        numbers: Sequence[int],
        present: Sequence[int],
        frames: int,
        place_in_order: int,
        size: Size,
        rng: random.Random,
    ) -> FootageShot:
        """Samples a shot.

        Args:
            layout: see :class:`~cavmae.datasets.mixtures.scene_spec.SceneSpec`.
            numbers: clips of all people of the recording.
            present: indices of the people in the shot.
            frames: of the shot.
            place_in_order: number of shots before it; the first keeps the light of its clips.
        """
        narrow = size[0] > size[1] and len(present) > 1
        placer = self._pair_placer if narrow else self._placer
        places: Sequence[Place] = []
        order: Sequence[int] = []
        if present:
            places, order = placer.place(layout, [numbers[n] for n in present], size, rng)
        appearances = tuple(
            PlacedTalker(
                talker=present[n], scale=places[n].scale, flip=places[n].flip,
                window=places[n].window,
                cutout=layout == "pasted" or (layout == "own_background" and depth > 0),
                path=((0.0, places[n].left, places[n].top),),
            )
            for depth, n in enumerate(order)
        )  # fmt: skip
        background = None
        if layout == "pasted":
            others = [n for n in self._backgrounds if n not in numbers]
            background = self.pool.clips[rng.choice(others or self._backgrounds)].key
        light = (rng.uniform(*LIGHT), rng.uniform(*LIGHT)) if place_in_order else (1.0, 1.0)
        return FootageShot(frames, background, appearances, light)


def _without_unseen(numbers: Sequence[int], plan: _Plan) -> tuple[list[int], _Plan]:
    """Clips and shots without the people who are in no shot, with the others numbered anew."""
    seen = sorted({a.talker for shot in plan.shots for a in shot.appearances})
    shots = tuple(
        dataclasses.replace(
            shot,
            appearances=tuple(
                dataclasses.replace(a, talker=seen.index(a.talker)) for a in shot.appearances
            ),
        )
        for shot in plan.shots
    )
    absences = {seen.index(talker): span for talker, span in plan.absences.items()}
    return [numbers[n] for n in seen], _Plan(shots, plan.camera, absences)


def _spans(talker: int, plan: _Plan) -> tuple[Span, ...]:
    """Spans in which a person is in the picture, in seconds; adjoining ones are joined."""
    spans: list[Span] = []
    first = 0
    for shot in plan.shots:
        start, end = first / VIDEO_RATE, (first + shot.frames) / VIDEO_RATE
        first += shot.frames
        if all(a.talker != talker for a in shot.appearances):
            continue
        leaves, returns = plan.absences.get(talker, (end, end))
        for begin, stop in ((start, leaves), (returns, end)):
            if spans and spans[-1][1] == begin:
                begin = spans.pop()[0]
            if stop > begin:
                spans.append((begin, stop))
    return tuple(spans)
