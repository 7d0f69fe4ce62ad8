"""Coordinate descent of `cavmae expand` on synthetic costs and scores."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cavmae.tools.expanding.search import Axis, Point, Step, doubled_point, expand

AXES = [
    Axis("rate", (1, 2, 4, 8)),
    Axis("length", (1, 2, 4)),
    Axis("width", tuple(range(1, 40))),
]
START = {"rate": 1, "length": 1, "width": 1}


def cost_of(point: Point) -> float:
    return point["rate"] * point["width"] ** 2


def work_of(point: Point) -> float:
    return cost_of(point) * point["length"]


def search(budget: float, weights: dict[str, float], axes: Sequence[Axis] = AXES) -> list[Step]:
    """Search whose score is a weighted sum of logarithms."""

    def score(points: Sequence[Point]) -> list[float]:
        return [sum(weights[name] * math.log(p[name]) for name in p) for p in points]

    return expand(START, axes, cost_of, work_of, budget, score)


def kept(path: Sequence[Step]) -> list[tuple[Any, ...]]:
    return [(step.kept.axis, *step.kept.point.values()) for step in path]


def test_the_best_axis_is_kept_in_each_step_until_the_budget() -> None:
    path = search(64, {"rate": 3, "length": 2, "width": 1})
    assert kept(path) == [
        (None, 1, 1, 1), ("rate", 2, 1, 1), ("rate", 4, 1, 1), ("rate", 8, 1, 1),
        ("length", 8, 2, 1), ("length", 8, 4, 1),
    ]  # fmt: skip
    assert [trial.axis for trial in path[1].tried] == ["rate", "length"]


def test_no_axis_is_tried_that_comes_near_no_doubling() -> None:
    """A width of 2 has four times the work of 1; from 2 on, 3 has 2.25 times."""
    steps = Axis("width", (1, 2, 3))
    assert doubled_point(START, steps, work_of) is None
    assert doubled_point({**START, "width": 2}, steps, work_of) == {**START, "width": 3}
    fine = Axis("width", (1, 1.2, 1.4, 1.45, 1.6))
    assert doubled_point(START, fine, work_of) == {**START, "width": 1.4}
    assert doubled_point({**START, "width": 1.6}, fine, work_of) is None


def test_the_last_axis_is_contracted_to_fit() -> None:
    start = {"rate": 4, "length": 1, "width": 10}
    scores: list[Point] = []

    def score(points: Sequence[Point]) -> list[float]:
        scores.extend(points)
        return [point["width"] for point in points]

    path = expand(start, AXES, cost_of, work_of, 700, score)
    assert [(s.kept.axis, s.kept.point["width"], s.kept.contracted) for s in path] == [
        (None, 10, False), ("width", 13, True),
    ]  # fmt: skip
    assert path[1].kept.cost == 4 * 13**2 <= 700 < 4 * 14**2
    assert [trial.point["width"] for trial in path[1].tried] == [10, 14]  # length, then width
    assert scores[-1] == path[1].kept.point  # a score of its own


def test_an_axis_that_fits_in_no_part_is_left_out() -> None:
    path = search(1.5, {"rate": 9, "length": 1, "width": 9})
    assert kept(path) == [(None, 1, 1, 1), ("length", 1, 2, 1), ("length", 1, 4, 1)]


def test_of_equal_scores_the_first_axis_is_kept() -> None:
    for order in itertools.permutations(AXES[:2]):
        path = search(2, {"rate": 1, "length": 1, "width": 1}, order)
        assert path[1].kept.axis == order[0].name


def test_a_search_that_is_repeated_takes_the_same_path() -> None:
    """A resumed search has the scores of before."""
    asked: list[list[Point]] = []

    def score(points: Sequence[Point]) -> list[float]:
        asked.append(list(points))
        return [hash(tuple(point.values())) % 97 for point in points]

    first = expand(START, AXES, cost_of, work_of, 50, score)
    questions = list(asked)
    asked.clear()
    assert expand(START, AXES, cost_of, work_of, 50, score) == first
    assert asked == questions


@given(
    st.lists(st.floats(0.1, 5), min_size=3, max_size=3),
    st.floats(1.0, 5e3),
    st.permutations(AXES),
)
def test_every_path_keeps_to_budget_and_doubling(
    weights: list[float], budget: float, axes: list[Axis]
) -> None:
    named = dict(zip(("rate", "length", "width"), weights, strict=True))
    path = search(budget, named, axes)
    for before, step in itertools.pairwise(path):
        assert step.kept.cost <= budget
        for trial in step.tried:
            factor = work_of(trial.point) / work_of(before.kept.point)
            assert 2 / 1.5 - 1e-6 <= factor <= 2 * 1.5 + 1e-6
            changed = [name for name in START if trial.point[name] != before.kept.point[name]]
            assert changed == [trial.axis]
        assert step.kept.contracted == (step.kept not in step.tried)
        assert not step.kept.contracted or step is path[-1]
    assert path[-1].kept.point["length"] == 4 or path[-1].kept.contracted


@pytest.mark.parametrize("count", [0, 1, 2, 7, 40])
def test_probing_doubles(count: int) -> None:
    """Values far behind the answer are not measured: they may take long."""
    axis = Axis("width", tuple(range(1, count + 2)))
    measured: list[float] = []

    def work(point: Point) -> float:
        measured.append(point["width"])
        return point["width"]

    doubled_point({"width": 1}, axis, work)
    assert max(measured) <= 4
