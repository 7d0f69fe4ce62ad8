"""Random placement of people in a scene: layouts, and heads that do not hide each other."""

import contextlib
import random
from collections.abc import Sequence

from cavmae.common.boxes import Box, pixel_box
from cavmae.common.errors import SampleError
from cavmae.datasets.mixtures.clip_pool import ClipPool
from cavmae.datasets.mixtures.paste_canvas import Size
from cavmae.datasets.mixtures.scene_spec import Kind, Place

PLACEMENT_TRIES = 12  # attempts at a placement in which heads do not hide each other
HEAD_FRACTION = 0.5  # upper fraction of a person's box that counts as the head
MAX_OCCLUSION = 0.25  # fraction of a head that another person may hide
HEADROOM = 0.08  # above a head, as a fraction of the scene's height
INSET_HEIGHT = (0.25, 0.45)  # range, as fractions of the scene's height
INSET_SHAPE = (0.8, 1.6)  # range of width over height
INSET_WIDTH = 0.45  # of the scene's at most: two lie beside each other
INSET_MARGIN = 0.05  # to the scene's edges at most, as a fraction of its height
INSET_FILLED_PROB = 0.6  # of several people, that one of them fills the scene
CORNERS = ((False, False), (False, True), (True, False), (True, True))  # lower, right


class PeoplePlacer:
    """Samples positions of people in scenes of any size.

    Args:
        pool: clips of the people.
        min_scale: scale of a cut-out person, relative to a clip that fills the scene's height.
        max_scale: likewise.
    """

    def __init__(self, pool: ClipPool, min_scale: float, max_scale: float):
        self.pool, self.scales = pool, (min_scale, max_scale)
        self._person_boxes: dict[int, Box] = {}

    def person_box(self, number: int) -> Box:
        """Box of the person in a clip's middle frame, in pixels; without masks the whole frame."""
        if number not in self._person_boxes:
            clip = self.pool.clips[number]
            height, width = clip.info.frame_size
            box: Box = (0.0, 0.0, float(width), float(height))
            if clip.masked:
                # The composer reads a broken mask again, and then counts and reports it.
                with contextlib.suppress(SampleError):
                    mask = self.pool.masks(clip, [len(clip.times) // 2])[0] > 0
                    box = pixel_box(mask) or box
            self._person_boxes[number] = box
        return self._person_boxes[number]

    def place(
        self, kind: Kind, numbers: Sequence[int], scene_size: Size, rng: random.Random
    ) -> tuple[list[Place], tuple[int, ...]]:
        """Samples the positions of the people of a scene.

        Args:
            kind: layout of the scene.
            numbers: of the people's clips.
            scene_size: (height, width) in pixels.

        Returns:
            the positions, and the indices of the people from the farthest to the nearest.
        """
        count = len(numbers)
        if kind == "split_screen":
            cuts = [round(n * scene_size[1] / count) for n in range(count + 1)]
            places = [
                self.place_full(number, scene_size, (left, right), rng)
                for number, left, right in zip(numbers, cuts, cuts[1:], strict=False)
            ]
            order = list(range(count))
        elif kind == "inset":
            order = rng.sample(range(count), count)
            places = self._place_insets(numbers, order, scene_size, rng)
        else:
            order = rng.sample(range(count), count)
            places = []
            min_occlusion = float("inf")
            for _ in range(PLACEMENT_TRIES):
                candidate: list[Place] = [None] * count  # type: ignore[list-item]
                for depth, number in enumerate(order):
                    has_own_background = kind == "own_background" and depth == 0
                    candidate[number] = (
                        self.place_full(numbers[number], scene_size, None, rng)
                        if has_own_background
                        else self.place_cutout(numbers[number], scene_size, rng)
                    )
                heads = [self.head_box(numbers[n], candidate[n]) for n in order]
                occlusion = max_occlusion(heads)
                if occlusion < min_occlusion:
                    places, min_occlusion = candidate, occlusion
                if min_occlusion <= MAX_OCCLUSION:
                    break
        return places, tuple(order)

    def _place_insets(
        self, numbers: Sequence[int], order: Sequence[int], scene_size: Size, rng: random.Random
    ) -> list[Place]:
        """Samples corners for people, of whom the farthest may fill the scene instead."""
        places: list[Place] = [None] * len(order)  # type: ignore[list-item]
        insets = list(order)
        head: Box | None = None
        if len(order) > 1 and rng.random() < INSET_FILLED_PROB:
            first = insets.pop(0)
            places[first] = self.place_full(numbers[first], scene_size, None, rng)
            head = self.head_box(numbers[first], places[first])
        corners = rng.sample(CORNERS, len(CORNERS))
        for number in insets:
            height = round(rng.uniform(*INSET_HEIGHT) * scene_size[0])
            width = round(min(rng.uniform(*INSET_SHAPE) * height, INSET_WIDTH * scene_size[1]))
            margin = round(rng.uniform(0, INSET_MARGIN) * scene_size[0])
            bounds = []
            for lower, right in corners:
                top = scene_size[0] - margin - height if lower else margin
                left = scene_size[1] - margin - width if right else margin
                bounds.append(((left, left + width), (top, top + height)))
            # The first corner in which the head behind stays free, or else the best of them.
            hidden = [_covered_fraction(head, *bound) if head else 0.0 for bound in bounds]
            chosen = next((n for n, x in enumerate(hidden) if x <= MAX_OCCLUSION), None)
            chosen = hidden.index(min(hidden)) if chosen is None else chosen
            corners.pop(chosen)
            window, rows = bounds[chosen]
            places[number] = self.place_full(numbers[number], scene_size, window, rng, rows)
        return places

    def place_full(
        self,
        number: int,
        scene_size: Size,
        window: tuple[int, int] | None,
        rng: random.Random,
        rows: tuple[int, int] | None = None,
    ) -> Place:
        """Places a clip so that it fills the scene or a window of it, person centred.

        Args:
            window: (first, end) column in pixels; None: all columns.
            rows: (first, end) row in pixels; None: all rows.
        """
        clip = self.pool.clips[number]
        height, width = clip.info.frame_size
        first, last = window or (0, scene_size[1])
        upper_row, lower_row = rows or (0, scene_size[0])
        window_height = lower_row - upper_row
        scale = max(window_height / height, (last - first) / width)
        flip = rng.random() < 0.5
        left, upper, right, _ = self.person_box(number)
        middle = (left + right) / 2
        corner = (first + last) / 2 - scale * (width - middle if flip else middle)
        corner = min(first, max(last - scale * width, corner))
        lowest = window_height - scale * height
        # A clip taller than the scene shows the head, or its middle where no mask locates the head.
        top = lowest / 2
        if clip.masked:
            top = min(0, max(lowest, HEADROOM * window_height - scale * upper))
        return Place(scale, round(corner), upper_row + round(top), flip, window, rows=rows)

    def place_cutout(self, number: int, scene_size: Size, rng: random.Random) -> Place:
        """Places a cut-out person whose clip ends at the scene's lower edge or below it."""
        height, width = self.pool.clips[number].info.frame_size
        left, upper, right, _ = self.person_box(number)
        flip = rng.random() < 0.5
        middle = width - (left + right) / 2 if flip else (left + right) / 2
        scale = rng.uniform(*self.scales) * scene_size[0] / height
        # Not so low that a head of usual size (an upper third) leaves the scene.
        lowest = max(scene_size[0] - scale * height, -scale * upper)
        sink = max(0.0, scene_size[0] - scale * (upper + (height - upper) / 2) - lowest)
        top = lowest + rng.random() * min(sink, 0.2 * scene_size[0])
        corner = rng.uniform(0.12, 0.88) * scene_size[1] - scale * middle
        return Place(scale, round(corner), round(top), flip, None)

    def head_box(self, number: int, place: Place, fraction: float = HEAD_FRACTION) -> Box:
        """Box of the upper ``fraction`` of a person, in pixels of the scene."""
        left, top, right, bottom = self.person_box(number)
        if place.flip:
            width = self.pool.clips[number].info.frame_size[1]
            left, right = width - right, width - left
        bottom = top + fraction * (bottom - top)
        x, y, scale = place.left, place.top, place.scale
        return (x + scale * left, y + scale * top, x + scale * right, y + scale * bottom)


def _covered_fraction(box: Box, window: tuple[int, int], rows: tuple[int, int]) -> float:
    """Fraction of a box that a rectangle of columns and rows covers."""
    left, top, right, bottom = box
    width = max(0.0, min(right, window[1]) - max(left, window[0]))
    height = max(0.0, min(bottom, rows[1]) - max(top, rows[0]))
    return width * height / max(1.0, (right - left) * (bottom - top))


def max_occlusion(heads: Sequence[Box]) -> float:
    """Largest fraction of a head that nearer heads, and the bodies below them, hide.

    Args:
        heads: boxes from the farthest to the nearest.
    """
    max_fraction = 0.0
    for depth, (left, top, right, bottom) in enumerate(heads):
        for other in heads[depth + 1 :]:
            width = max(0.0, min(right, other[2]) - max(left, other[0]))
            height = max(0.0, bottom - max(top, other[1]))  # a body reaches down from its head
            fraction = width * height / max(1.0, (right - left) * (bottom - top))
            max_fraction = max(max_fraction, fraction)
    return max_fraction
