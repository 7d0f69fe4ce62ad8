"""Random sampling of tables, armrests and objects in front of the people of a scene.

Cut-out people end at the lower edge of a scene. A model that never saw anybody behind a table takes
whatever is at that edge for a body: masks of two real musicians had pieces of a table and a sofa
(docs/benchmarks/box-model.md). Ranges are wider than what rooms look like, so that no size or place
of a surface says what it is.
"""

import dataclasses
import math
import random
from collections.abc import Sequence

from cavmae.common.boxes import Box
from cavmae.datasets.mixtures.clip_pool import ClipPool
from cavmae.datasets.mixtures.paste_canvas import Size
from cavmae.datasets.mixtures.placement import MAX_OCCLUSION, PeoplePlacer, max_occlusion
from cavmae.datasets.mixtures.scene_spec import Corner, Occluder, Place, SceneSpec

# Upper fraction of a person that stays free. In the tightest clips, those of GRID, the chin is at
# 0.8 of the visible height, the mouth at two thirds.
FREE_FRACTION = 0.8
TABLE_PROB = 0.7  # otherwise only armrests
ARMREST_PROB = 0.5  # beside a table
TABLE_TOP = (0.35, 0.95)  # range of its upper edge, as fractions of the scene's height
TABLE_GRADIENT = 0.08  # of its upper edge at most
LIFTED_GRADIENT = 0.02  # likewise, with lifted people behind it: small ones have little to hide
WHOLE_PROB = 0.5  # of a table reaching from one side of the scene to the other
TABLE_LEFT = (-0.2, 0.6)  # range of another table's left end, as fractions of the scene's width
TABLE_WIDTH = (0.3, 0.9)  # range, as fractions of the scene's width
TABLE_SPREAD = (0.0, 0.3)  # range of how much wider it is below, on each side
ARMREST_WIDTH = (0.08, 0.4)  # range, as fractions of the scene's width
ARMREST_TOP = (0.35, 0.95)  # range, as fractions of the scene's height
ARMREST_FOOT = (0.8, 1.2)  # range of its width below over that above
CORNER_RADIUS = (0.1, 1.0)  # range, as fractions of an armrest's shorter side
CORNER_POINTS = 5  # of an armrest's rounded corner
MAX_OBJECTS = 4  # on a table
OBJECT_WIDTH = (0.05, 0.3)  # range, as fractions of the scene's width
OBJECT_HEIGHT = (0.03, 0.2)  # range, as fractions of the scene's height
SURFACE_SIDE = (0.03, 0.5)  # range of the part of a picture that is a surface: small ones are plain
BRIGHTNESS = (0.3, 1.7)  # range of a surface's factor
TINT = (0.7, 1.3)  # range of each colour's factor beside it
TEXTURE = (0.0, 0.6)  # range of the contrast of noise on it, such as wood and fabric have
LIFT_PROB = 0.7  # of people behind a table ending above the scene's lower edge
LIFT_TRIES = 6  # attempts at lifts by which heads do not hide each other
# Pixels by which lifted people end below the table's edge: places, outlines and sizes are rounded,
# on grey frames of half the size, too.
MIN_OVERLAP = 5


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

    def sample(self, spec: SceneSpec, scene_size: Size, rng: random.Random) -> SceneSpec:
        """Adds occluders to a scene, or none where heads leave no room.

        A table may have people behind it who end above the scene's lower edge, as people do who sit
        at one: with kind ``pasted`` they are lifted.

        Args:
            spec: of kind ``own_background`` or ``pasted``.
            scene_size: (height, width) in pixels.
        """
        numbers = [self.pool.index_of[person.clip] for person in spec.people]
        scene = _Scene(self.placer, numbers, list(spec.people), scene_size)
        surface = self._sample_surface(spec, rng)
        outlines: list[tuple[Corner, ...]] = []
        has_table = rng.random() < TABLE_PROB
        if has_table:
            steepest, top = TABLE_GRADIENT, rng.uniform(*TABLE_TOP) * scene.height
            if spec.kind == "pasted" and numbers and rng.random() < LIFT_PROB:
                lifted = _lift(scene, spec.order, rng)
                if lifted is not None:
                    scene, top = lifted
                    steepest = LIFTED_GRADIENT
            table = _sample_table(scene, top, rng.uniform(-steepest, steepest), rng)
            if table is not None:
                outlines += [table, *_sample_objects(table, scene, rng)]
        if not has_table or rng.random() < ARMREST_PROB:
            armrest = _sample_armrest(scene, rng)
            outlines += [] if armrest is None else [armrest]
        people = tuple(
            dataclasses.replace(person, top=place.top)
            for person, place in zip(spec.people, scene.places, strict=True)
        )
        occluders = tuple(_with_surface(outline, surface, rng) for outline in outlines)
        return dataclasses.replace(spec, people=people, occluders=occluders)

    def _sample_surface(self, spec: SceneSpec, rng: random.Random) -> str:
        """Key of the clip of all surfaces of a scene: one, since its picture takes time to make."""
        clips = self.pool.clips
        used = {spec.background, *(person.clip for person in spec.people)}
        others = [number for number in self.surfaces if clips[number].key not in used]
        return clips[rng.choice(others or self.surfaces)].key


@dataclasses.dataclass(frozen=True)
class _Scene:
    """People of a scene and its size.

    Attributes:
        placer: of the people.
        numbers: of their clips.
        places: of the people.
        size: (height, width) in pixels.
    """

    placer: PeoplePlacer
    numbers: Sequence[int]
    places: Sequence[Place]
    size: Size

    @property
    def height(self) -> int:
        return self.size[0]

    @property
    def width(self) -> int:
        return self.size[1]

    def boxes(self, fraction: float) -> list[Box]:
        """Boxes of the upper ``fraction`` of each person, in pixels of the scene."""
        people = zip(self.numbers, self.places, strict=True)
        return [self.placer.head_box(number, place, fraction) for number, place in people]

    def ends(self) -> list[float]:
        """Row at which each person ends, which may be below the scene."""
        return [box[3] for box in self.boxes(1.0)]

    def lowest_head(self, columns: tuple[float, float]) -> float:
        """Row at which the lowest head ends that is partly within these columns; 0: none is."""
        boxes = self.boxes(FREE_FRACTION)
        return max((b[3] for b in boxes if b[0] < columns[1] and b[2] > columns[0]), default=0.0)


def _lift(scene: _Scene, order: Sequence[int], rng: random.Random) -> tuple[_Scene, float] | None:
    """Lifts people to where a table hides their ends, but not their heads.

    Args:
        order: of the people, from the farthest to the nearest.

    Returns:
        the scene with lifted people, and the row of the middle of the table's upper edge; None:
        there is no room for that.
    """
    margin = MIN_OVERLAP + LIFTED_GRADIENT * scene.width
    heads, ends = scene.boxes(FREE_FRACTION), scene.ends()
    first = max(head[3] - max(0.0, head[1]) for head in heads)
    first = max(first, TABLE_TOP[0] * scene.height)
    last = TABLE_TOP[1] * scene.height - margin
    for _ in range(LIFT_TRIES if first < last else 0):
        top = rng.uniform(first, last)
        places = []
        for place, head, end in zip(scene.places, heads, ends, strict=True):
            least = max(0.0, head[3] - top)
            most = min(max(0.0, head[1]), end - top - margin)
            if least <= most:
                lift = round(rng.uniform(least, most))
                places.append(dataclasses.replace(place, top=place.top - lift))
        if len(places) < len(scene.places):
            continue
        lifted = dataclasses.replace(scene, places=places)
        boxes = [scene.placer.head_box(scene.numbers[n], places[n]) for n in order]
        if max_occlusion(boxes) <= MAX_OCCLUSION:
            return lifted, top
    return None


def _sample_table(
    scene: _Scene, top: float, gradient: float, rng: random.Random
) -> tuple[Corner, ...] | None:
    """Outline of a table below all heads; None: there is no room for one.

    It reaches from one side of the scene to the other where people end above its lower edge.

    Args:
        top: row of the middle of its upper edge, or less than that.
        gradient: of its upper edge.
    """
    left, right = 0.0, float(scene.width)
    is_whole = rng.random() < WHOLE_PROB
    spread = 0.0
    if not is_whole and min(scene.ends(), default=scene.height) > scene.height - 1:
        left = rng.uniform(*TABLE_LEFT) * scene.width
        right = left + rng.uniform(*TABLE_WIDTH) * scene.width
        spread = rng.uniform(*TABLE_SPREAD) * (right - left)
    rise = gradient * (right - left) / 2
    top = max(top, scene.lowest_head((left - spread, right + spread)) + abs(rise))
    if top > TABLE_TOP[1] * scene.height:
        return None
    return (
        (round(left), round(top + rise)),
        (round(right), round(top - rise)),
        (round(right + spread), scene.height),
        (round(left - spread), scene.height),
    )


def _sample_objects(
    table: tuple[Corner, ...], scene: _Scene, rng: random.Random
) -> list[tuple[Corner, ...]]:
    """Outlines of flat objects: quadrangles that begin on a table, within its columns."""
    (left, left_top), (right, right_top) = table[:2]
    first, end = max(0, left), min(scene.width, right)
    highest = max(left_top, right_top)
    lowest = scene.height - OBJECT_HEIGHT[0] * scene.height
    outlines: list[tuple[Corner, ...]] = []
    if first >= end or highest >= lowest:
        return outlines
    for _ in range(rng.randint(0, MAX_OBJECTS)):
        half = min(rng.uniform(*OBJECT_WIDTH) * scene.width, end - first) / 2
        x, y = rng.uniform(first + half, end - half), rng.uniform(highest, lowest)
        bottom = y + rng.uniform(*OBJECT_HEIGHT) * scene.height
        shift = rng.uniform(max(-half, first - x + half), min(half, end - x - half))
        outlines.append(
            (
                (round(x - half), round(y)),
                (round(x + half), round(y)),
                (round(x + half + shift), round(bottom)),
                (round(x - half + shift), round(bottom)),
            )
        )
    return outlines


def _sample_armrest(scene: _Scene, rng: random.Random) -> tuple[Corner, ...] | None:
    """Outline of an armrest or a chair at one side, with a rounded corner; None: no room."""
    is_right = rng.random() < 0.5
    reach, foot = rng.uniform(*ARMREST_WIDTH) * scene.width, rng.uniform(*ARMREST_FOOT)
    widest = reach * max(1.0, foot)
    columns = (scene.width - widest, float(scene.width)) if is_right else (0.0, widest)
    top = max(rng.uniform(*ARMREST_TOP) * scene.height, scene.lowest_head(columns))
    if top > ARMREST_TOP[1] * scene.height:
        return None
    radius = rng.uniform(*CORNER_RADIUS) * min(reach, scene.height - top)
    angles = [math.pi / 2 * n / (CORNER_POINTS - 1) for n in range(CORNER_POINTS)]
    points = [
        (0.0, top),
        *(
            (reach - radius + radius * math.sin(a), top + radius - radius * math.cos(a))
            for a in angles
        ),
        (reach * foot, float(scene.height)),
        (0.0, float(scene.height)),
    ]
    return tuple((round(scene.width - x if is_right else x), round(y)) for x, y in points)


def _with_surface(outline: tuple[Corner, ...], surface: str, rng: random.Random) -> Occluder:
    """Gives an outline a part of a clip's picture as its surface."""
    sides = [rng.uniform(*SURFACE_SIDE) for _ in range(2)]
    left, top = (rng.uniform(0, 1 - side) for side in sides)
    brightness = rng.uniform(*BRIGHTNESS)
    red, green, blue = (brightness * rng.uniform(*TINT) for _ in range(3))
    crop: Box = (left, top, left + sides[0], top + sides[1])
    texture, seed = rng.uniform(*TEXTURE), rng.getrandbits(32)
    return Occluder(outline, surface, crop, (red, green, blue), texture, seed)
