"""Coordinate descent of X3D (Feichtenhofer, CVPR 2020, section 3.2), apart from any training.

A point has a value for each axis. A step tries each axis, expanded to about twice the work of a
clip, and keeps the point with the best score, until the cost reaches the budget; if the kept axis
overshoots, it is contracted to the largest value that fits.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

FACTOR = 2.0  # of the work of a clip, from one step to the next
TOLERANCE = 1.5  # largest factor between that and the work of a point that is tried

Point = Mapping[str, float]  # value of each axis
Measure = Callable[[Point], float]


@dataclasses.dataclass(frozen=True)
class Axis:
    """Axis of the expansion.

    Attributes:
        name: of the values in a point.
        values: that it may take, from the least to the most work.
    """

    name: str
    values: tuple[float, ...]

    def larger(self, value: float) -> tuple[float, ...]:
        """Values of more work than this one."""
        return self.values[self.values.index(value) + 1 :]


@dataclasses.dataclass(frozen=True)
class Trial:
    """A point that was tried.

    Attributes:
        axis: that was changed; None: the start.
        point: values of all axes.
        cost: of a second of video.
        score: validation score; higher is better.
        contracted: whether the doubled value of the axis was contracted to the budget.
    """

    axis: str | None
    point: Point
    cost: float
    score: float
    contracted: bool = False


@dataclasses.dataclass(frozen=True)
class Step:
    """Step of the path.

    Attributes:
        kept: where the path goes on.
        tried: points of this step in the order of the axes, the kept one among them unless it was
            contracted.
    """

    kept: Trial
    tried: tuple[Trial, ...]


def expand(
    start: Point,
    axes: Sequence[Axis],
    cost: Measure,
    work: Measure,
    budget: float,
    score: Callable[[Sequence[Point]], Sequence[float]],
) -> list[Step]:
    """Path of points from the start to the budget, the start first.

    Args:
        start: point within the budget.
        axes: axes in the order in which they are tried; the first of equal scores is kept.
        cost: cost of a point for a second of video, which the budget limits.
        work: cost of a point for a clip, which each step doubles.
        budget: largest cost.
        score: validation scores of several points; the same for the same point.
    """
    first = Trial(None, start, cost(start), score([start])[0])
    path = [Step(first, (first,))]
    while not path[-1].kept.contracted:
        point = path[-1].kept.point
        doubled: dict[str, Point] = {}
        final: dict[str, Point] = {}  # the same, or contracted to the budget
        for axis in axes:
            other = doubled_point(point, axis, work)
            if other is None:
                continue
            fits = cost(other) <= budget
            fitting = other if fits else contracted_point(other, point, axis, cost, budget)
            if fitting is not None:
                doubled[axis.name], final[axis.name] = other, fitting
        if not doubled:
            break
        scores = score(list(doubled.values()))
        tried = tuple(
            Trial(name, other, cost(other), value)
            for (name, other), value in zip(doubled.items(), scores, strict=True)
        )
        best = max(tried, key=lambda trial: trial.score)  # the first of equal ones
        assert best.axis is not None
        fitting = final[best.axis]
        if fitting is not best.point:
            best = Trial(best.axis, fitting, cost(fitting), score([fitting])[0], contracted=True)
        path.append(Step(best, tried))
    return path


def doubled_point(point: Point, axis: Axis, work: Measure) -> Point | None:
    """Point with the value of an axis that comes nearest to twice the work; None: none is near.

    Args:
        work: rises along the axis.
    """
    larger, least = axis.larger(point[axis.name]), work(point)

    def error_of(value: float) -> float:
        return math.log(work({**point, axis.name: value}) / (FACTOR * least))

    above = _first(larger, lambda value: error_of(value) >= 0)
    near = larger[max(0, above - 1) : above + 1]
    value = min(near, key=lambda value: abs(error_of(value)), default=None)
    if value is None or abs(error_of(value)) > math.log(TOLERANCE) + 1e-9:
        return None
    return {**point, axis.name: value}


def contracted_point(
    doubled: Point, point: Point, axis: Axis, cost: Measure, budget: float
) -> Point | None:
    """Point with the largest value between two of an axis that fits a budget; None: none does."""
    larger = axis.larger(point[axis.name])
    between = larger[: larger.index(doubled[axis.name])]
    fitting = _first(between, lambda value: cost({**point, axis.name: value}) > budget)
    return {**point, axis.name: between[fitting - 1]} if fitting else None


def _first(values: Sequence[float], condition: Callable[[float], bool]) -> int:
    """Index of the first value with a condition that holds from there on; else their number.

    Steps double from the first value on: the condition may take long for values far behind.
    """
    low, step = 0, 1
    while low + step - 1 < len(values) and not condition(values[low + step - 1]):
        low, step = low + step, 2 * step
    high = min(low + step - 1, len(values))
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if condition(values[middle]) else (middle + 1, high)
    return low
