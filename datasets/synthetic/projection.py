"""Projection of heads that turn: a yaw of 1 is 20 degrees, up to 3.

Up to a yaw of 1 a head is a flat drawing whose parts shift; beyond that it passes over, by a yaw of
2, into a round one whose nose, lips and chin stand out against the background.
"""

import bisect
import functools
import math
from typing import NamedTuple

import numpy as np

DEGREES = 20.0  # of a yaw of 1
TURN = 0.16  # shift of the nearest point at a yaw of 1
NARROWING = 0.10  # of the face at a yaw of 1
LATERAL = 0.33  # depth of the far cheek's contour
# Nearness (-1 back of the head, 1 tip of the nose) to depth in head heights.
_NEAR = (-1.0, -0.6, -0.1, 0.0, 0.3, 0.45, 0.6, 0.95, 1.0)
_DEPTH = (-0.42, -0.30, -0.06, 0.0, 0.24, 0.30, 0.42, 0.53, 0.54)
_BACKWARD, _BACK, _LOW = 0.10, 0.40, -0.12  # skull: its middle's depth, half depth, middle's y


class HeadView(NamedTuple):
    """View of a turned head.

    Attributes:
        side: 1 turned to the right of the frame, -1 to the left.
        cos, sin: of the angle; positive.
        roundness: 0 flat to 1 round.
    """

    side: int
    cos: float
    sin: float
    roundness: float


@functools.lru_cache(maxsize=16)
def view_of(yaw: float) -> HeadView | None:
    """View of a head with this yaw; None: turned so little that it is drawn flat."""
    if abs(yaw) <= 1:
        return None
    angle = math.radians(DEGREES * abs(yaw))
    part = min(abs(yaw) - 1, 1.0)
    narrow = (1 - NARROWING) / math.cos(math.radians(DEGREES))
    return HeadView(
        1 if yaw > 0 else -1,
        math.cos(angle) * narrow,
        math.sin(angle),
        part * part * (3 - 2 * part),
    )


@functools.lru_cache(maxsize=256)
def _depth(near: float) -> float:
    last = len(_NEAR) - 2
    place = min(max(bisect.bisect_right(_NEAR, near) - 1, 0), last)
    part = (near - _NEAR[place]) / (_NEAR[place + 1] - _NEAR[place])
    return _DEPTH[place] + part * (_DEPTH[place + 1] - _DEPTH[place])


def project(yaw: float, x: float, near: float) -> float:
    """Horizontal place of a point of a turned head, from its middle.

    Args:
        near: -1 (back of the head) to 1 (tip of the nose).
    """
    view = view_of(yaw)
    if view is None:
        return x * (1 - NARROWING * abs(yaw)) + TURN * near * yaw
    flat = TURN / math.sin(math.radians(DEGREES)) * near
    depth = flat + view.roundness * (_depth(near) - flat)
    return x * view.cos + view.side * depth * view.sin


def foreshortening(yaw: float, side: int) -> float:
    """Share of its width that a part on the front of the face keeps.

    Args:
        side: -1 left, 0 middle, 1 right of the face, which curves backwards to both sides.
    """
    view = view_of(yaw)
    if view is None:
        return 1.0
    angle = abs(yaw) * DEGREES + DEGREES * side * view.side
    return 1 + view.roundness * (max(math.cos(math.radians(angle)), 0.02) - 1)


def far_edge(view: HeadView, cheek: float) -> float:
    """Distance of the far side's contour from the middle, at the eyes.

    Args:
        cheek: half width of the face at the eyes.
    """
    return math.hypot(cheek * view.cos, LATERAL * view.roundness * view.sin)


def skull(view: HeadView, cheek: float, grown: float) -> tuple[float, float, float, float]:
    """Ellipse of a turned skull: middle's x and y, half width, half height."""
    width = math.hypot(cheek * view.cos, _BACK * view.roundness * view.sin)
    x = -view.side * _BACKWARD * view.roundness * view.sin
    return x, _LOW, width + grown, 0.38 + grown


def profile_curve(
    eye: float, nose: float, mouth: float, lip: float, gap: float, drop: float
) -> tuple[np.ndarray, np.ndarray]:
    """Midline of a face from crown to chin: heights and depths, float64 [points] each.

    Args:
        eye: height of the eyes.
        nose: height of the nose's lower edge.
        mouth: height of the mouth.
        lip: thickness of the lips.
        gap: between the lips.
        drop: by which the jaw is lowered.
    """
    points = (
        (-0.50, 0.0), (-0.46, 0.17), (-0.38, 0.30), (-0.26, 0.37), (eye - 0.08, 0.405),
        (eye + 0.01, 0.385), (nose - 0.07, 0.46), (nose - 0.02, 0.545), (nose + 0.02, 0.51),
        (nose + 0.04, 0.435), (mouth - 0.12 * gap - 0.9 * lip, 0.445),
        (mouth - 0.12 * gap - 0.3 * lip, 0.468), (mouth + 0.25 * gap, 0.452),
        (mouth + 0.88 * gap + 0.7 * lip, 0.462), (mouth + 0.05 + drop, 0.415),
        (0.435 + drop, 0.43), (0.475 + drop, 0.39), (0.495 + drop, 0.28),
    )  # fmt: skip
    y, z = np.array(points).T
    return np.maximum.accumulate(y), z
