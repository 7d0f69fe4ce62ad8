"""Random sampling of what stands in front of people: tables, armrests, and things on them.

Cut-out people end at the lower edge of a scene. A model that never saw anybody behind a table takes
whatever is at that edge for a body.
"""

import dataclasses
import math
import random
from collections.abc import Sequence

from cavmae.common.boxes import Box
from cavmae.datasets.mixtures.clip_pool import ClipPool
from cavmae.datasets.mixtures.paste_canvas import Size
from cavmae.datasets.mixtures.placement import MAX_OCCLUSION, PeoplePlacer, max_occlusion
from cavmae.datasets.mixtures.scene_spec import Kind, Occluder, Place, Point

# Upper fraction of a person that stays free: where little more than a head is in a clip, its mouth
# is at two thirds of the height, its chin at 0.8.
FREE_FRACTION = 0.8
TABLE_PROB = 0.7  # otherwise only armrests
ARMREST_PROB = 0.5  # beside a table
TABLE_TOP = (0.5, 0.95)  # range of its upper edge, as fractions of the scene's height
TABLE_SLOPE = 0.08  # of its upper edge at most, pixels of height per pixel of width
ARMREST_WIDTH = (0.08, 0.4)  # range, as fractions of the scene's width
ARMREST_TOP = (0.35, 0.95)  # range, as fractions of the scene's height
CORNER_POINTS = 5  # of an armrest's rounded corner
MAX_OBJECTS = 4  # on a table
OBJECT_WIDTH = (0.05, 0.3)  # range, as fractions of the scene's width
OBJECT_HEIGHT = (0.03, 0.2)  # range, as fractions of the scene's height
SURFACE_SIDE = (0.03, 0.5)  # range of the part of a picture that is a surface: small ones are plain
BRIGHTNESS = (0.3, 1.7)  # range of a surface's factor
LIFT_PROB = 0.7  # of people behind a table ending above the scene's lower edge
LIFT_TRIES = 6  # attempts at lifts by which heads do not hide each other
MIN_OVERLAP = 2  # pixels by which lifted people end below the table's edge
MIN_TOP = 0.98  # fraction of the scene's height below which an occluder would be a line


class OccluderSampler:
    """Samples occluders that leave heads free.

    Args:
        placer: of the people.
        surfaces: numbers of the clips whose backgrounds are surfaces.
    """

    def __init__(self, placer: PeoplePlacer, surfaces: Sequence[int]):
        self.placer, self.surfaces = placer, surfaces

    @property
    def pool(self) -> ClipPool:
        """Clips of people and surfaces."""
        return self.placer.pool

    def sample(
        self,
        kind: Kind,
        numbers: Sequence[int],
        places: Sequence[Place],
        order: Sequence[int],
        scene_size: Size,
        rng: random.Random,
    ) -> tuple[list[Place], tuple[Occluder, ...]]:
        """Samples occluders of a scene.

        A table may have people behind it who end above the scene's lower edge, as people do who sit
        at one: with kind ``pasted`` they are lifted.

        Args:
            kind: layout, ``own_background`` or ``pasted``.
            numbers: of the people's clips.
            places: of the people.
            order: of the people, from the farthest to the nearest.
            scene_size: (height, width) in pixels.

        Returns:
            the places, lifted or not, and the occluders from the farthest to the nearest.
        """
        height, width = scene_size
        places = list(places)
        has_table = rng.random() < TABLE_PROB
        occluders: list[Occluder] = []
        if has_table:
            top = rng.uniform(*TABLE_TOP) * height
            slope = rng.uniform(-TABLE_SLOPE, TABLE_SLOPE) * width / 2
            if kind == "pasted" and places and rng.random() < LIFT_PROB:
                lifted = self._lift(numbers, places, order, height, abs(slope), rng)
                places, top = lifted or (places, top)
            outline = self._table(numbers, places, scene_size, top, slope, rng)
            if outline is not None:
                occluders = [self._covered(outline, rng), *self._objects(outline, scene_size, rng)]
        if not has_table or rng.random() < ARMREST_PROB:
            outline = self._armrest(numbers, places, scene_size, rng)
            if outline is not None:
                occluders.append(self._covered(outline, rng))
        return places, tuple(occluders)

    def _lift(
        self,
        numbers: Sequence[int],
        places: Sequence[Place],
        order: Sequence[int],
        height: int,
        slope: float,
        rng: random.Random,
    ) -> tuple[list[Place], float] | None:
        """Lifts people to where a table hides their ends, and nothing their heads.

        Args:
            height: of the scene.
            slope: pixels by which the table's upper edge is higher or lower at its ends.

        Returns:
            the places, and the row of the table's upper edge; None: there is no room for that.
        """
        margin = MIN_OVERLAP + 2 * slope
        heads = self._free_boxes(numbers, places)
        first = max(head[3] - max(0.0, head[1]) for head in heads)
        last = TABLE_TOP[1] * height - margin
        for _ in range(LIFT_TRIES if first < last else 0):
            top = rng.uniform(first, last)
            lifted = []
            for number, place, head in zip(numbers, places, heads, strict=True):
                least = max(0.0, head[3] - top)
                most = min(max(0.0, head[1]), self._end(number, place) - top - margin)
                if least <= most:
                    lift = round(rng.uniform(least, most))
                    lifted.append(dataclasses.replace(place, top=place.top - lift))
            if len(lifted) < len(places):
                continue
            boxes = [self.placer.head_box(numbers[n], lifted[n]) for n in order]
            if max_occlusion(boxes) <= MAX_OCCLUSION:
                return lifted, top
        return None

    def _free_boxes(self, numbers: Sequence[int], places: Sequence[Place]) -> list[Box]:
        """Boxes of people's heads, which stay free, in pixels of the scene."""
        return [
            self.placer.head_box(number, place, FREE_FRACTION)
            for number, place in zip(numbers, places, strict=True)
        ]

    def _end(self, number: int, place: Place) -> float:
        """Row at which a clip ends."""
        return place.top + place.scale * self.pool.clips[number].info.frame_size[0]

    def _highest_end(self, numbers: Sequence[int], places: Sequence[Place], height: int) -> float:
        """Row at which the first of all people ends, at most the scene's height."""
        ends = [self._end(number, place) for number, place in zip(numbers, places, strict=True)]
        return min([*ends, float(height)])

    def _lowest_head(
        self, numbers: Sequence[int], places: Sequence[Place], columns: tuple[float, float]
    ) -> float:
        """Row of the lowest end of a head that is partly within these columns; 0: there is none."""
        boxes = self._free_boxes(numbers, places)
        return max((b[3] for b in boxes if b[0] < columns[1] and b[2] > columns[0]), default=0.0)

    def _table(
        self,
        numbers: Sequence[int],
        places: Sequence[Place],
        scene_size: Size,
        top: float,
        slope: float,
        rng: random.Random,
    ) -> tuple[Point, ...] | None:
        """Outline of a table below all heads; None: there is no room for one.

        It reaches from one side of the scene to the other where people end above its lower edge.
        """
        height, width = scene_size
        is_whole = rng.random() < 0.5 or self._highest_end(numbers, places, height) < height
        left, right = 0.0, float(width)
        if not is_whole:
            left = rng.uniform(-0.2, 0.6) * width
            right = left + rng.uniform(0.3, 0.9) * width
        spread = 0.0 if is_whole else rng.uniform(0, 0.3) * (right - left)
        heads = self._lowest_head(numbers, places, (left - spread, right + spread))
        top = max(top, heads + abs(slope))
        if top > MIN_TOP * height:
            return None
        return (
            (round(left), round(top + slope)),
            (round(right), round(top - slope)),
            (round(right + spread), height),
            (round(left - spread), height),
        )

    def _objects(
        self, table: tuple[Point, ...], scene_size: Size, rng: random.Random
    ) -> list[Occluder]:
        """Flat things on a table: quadrangles within its outline."""
        height, width = scene_size
        (left, left_top), (right, right_top) = table[:2]
        top = max(left_top, right_top)
        objects = []
        for _ in range(rng.randint(0, MAX_OBJECTS)):
            half = min(rng.uniform(*OBJECT_WIDTH) * width, right - left) / 2
            x = rng.uniform(left + half, right - half)
            y = rng.uniform(top, height)
            end = y + rng.uniform(*OBJECT_HEIGHT) * height
            shift = rng.uniform(max(-half, left - x + half), min(half, right - x - half))
            outline = (
                (round(x - half), round(y)),
                (round(x + half), round(y)),
                (round(x + half + shift), round(end)),
                (round(x - half + shift), round(end)),
            )
            objects.append(self._covered(outline, rng))
        return objects

    def _armrest(
        self,
        numbers: Sequence[int],
        places: Sequence[Place],
        scene_size: Size,
        rng: random.Random,
    ) -> tuple[Point, ...] | None:
        """Outline of an armrest or a chair at one side, with a rounded corner; None: no room."""
        height, width = scene_size
        is_right = rng.random() < 0.5
        reach, foot = rng.uniform(*ARMREST_WIDTH) * width, rng.uniform(0.8, 1.2)
        widest = reach * max(1.0, foot)
        columns = (width - widest, float(width)) if is_right else (0.0, widest)
        top = rng.uniform(*ARMREST_TOP) * height
        top = max(top, self._lowest_head(numbers, places, columns))
        if top > MIN_TOP * height:
            return None
        radius = rng.uniform(0.1, 1.0) * min(reach, height - top)
        angles = [math.pi / 2 * n / (CORNER_POINTS - 1) for n in range(CORNER_POINTS)]
        corner = [
            (reach - radius + radius * math.sin(a), top + radius - radius * math.cos(a))
            for a in angles
        ]
        points = [(0.0, top), *corner, (reach * foot, float(height))]
        points.append((0.0, float(height)))
        return tuple((round(width - x if is_right else x), round(y)) for x, y in points)

    def _covered(self, outline: tuple[Point, ...], rng: random.Random) -> Occluder:
        """An occluder with a surface."""
        clip = self.pool.clips[rng.choice(self.surfaces)]
        sides = [rng.uniform(*SURFACE_SIDE) for _ in range(2)]
        left, top = (rng.uniform(0, 1 - side) for side in sides)
        crop: Box = (left, top, left + sides[0], top + sides[1])
        brightness = rng.uniform(*BRIGHTNESS)
        red, green, blue = (brightness * rng.uniform(0.7, 1.3) for _ in range(3))
        return Occluder(outline, clip.key, crop, (red, green, blue))
