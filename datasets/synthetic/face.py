"""Face: skin, eyes, brows, nose, ears, beard, glasses. Units: head heights, its middle 0."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import skia

from cavmae.datasets.synthetic.appearance import Appearance
from cavmae.datasets.synthetic.articulation import OPENING
from cavmae.datasets.synthetic.canvas import (
    Canvas,
    Point,
    blend,
    glow,
    gradient,
    oval,
    paint,
    pen,
    shade,
)  # fmt: skip
from cavmae.datasets.synthetic.mouth import GAPE, Mouth
from cavmae.datasets.synthetic.projection import (
    HeadView,
    far_edge,
    foreshortening,
    profile_curve,
    project,
    view_of,
)

BEND = 0.11  # shift of the nearest point when a head bends
EARS = -0.1  # depth; further back they would leave a turned head
DROP = 0.085  # by which an open jaw lowers the chin


class Pose(NamedTuple):
    """One frame of :class:`~cavmae.datasets.synthetic.motion.Poses`, less the head's place."""

    yaw: float
    pitch: float
    blink: float
    brow: float
    gaze_x: float
    gaze_y: float


class Face:
    """Draws a person's face."""

    def __init__(self, appearance: Appearance, light: float, skin_paint: skia.Paint | None = None):
        """
        Args:
            light: -1 from the left to 1 from the right.
            skin_paint: textured skin; None: flat colours.
        """
        self.appearance = appearance
        skin = appearance.skin
        bright, dark = shade(skin, 1.08), shade(skin, 0.72)
        sides = [bright, skin, dark] if light < 0 else [dark, skin, bright]
        self.skin = skin_paint or gradient((-0.42, -0.1), (0.42, 0.1), sides)
        self._socket = shade(skin, 0.45) if skin_paint else None
        self._ear = paint(shade(skin, 0.82))
        self._ear_line = pen(shade(skin, 0.6), 0.012)
        self._line = pen(shade(skin, 0.55), 0.013, 0.8)
        self._fold = pen(shade(skin, 0.6), 0.010, 0.15 + 0.55 * appearance.wrinkles)
        self._blush = blend(skin, (0.85, 0.35, 0.3), 0.5)
        self._white = paint((0.95, 0.94, 0.92))
        self._iris = paint(appearance.eyes)
        self._pupil = paint((0.03, 0.03, 0.03))
        self._spark = paint((1, 1, 1), 0.85)
        self._lid = pen((0.12, 0.08, 0.07), 0.012)
        self._skin_lid = paint(shade(skin, 0.86))
        self._brow = pen(shade(appearance.hair, 0.75), 2 * appearance.brow)
        beard = shade(appearance.hair, 0.9)
        self._beard = paint(beard, 0.28 if appearance.beard == "stubble" else 1.0)
        self._frame = pen((0.08, 0.08, 0.10), 0.018)
        self._glass = paint((0.05, 0.05, 0.07), 0.88 if appearance.glasses == "dark" else 0.08)
        self._mouth = Mouth(appearance)

    def at(self, pose: Pose, x: float, y: float, near: float) -> Point:
        """Project a point of the face into the frame.

        Args:
            near: -1 (back of the head) to 1 (tip of the nose).
        """
        return project(pose.yaw, x, near), y + BEND * near * pose.pitch

    def outline(self, pose: Pose, opening: float, grown: float = 0.0) -> skia.Path:
        """Outline of the face from crown to chin.

        Args:
            grown: margin by which it is widened on all sides.
        """
        view = view_of(pose.yaw)
        if view is not None:
            return self._turned_outline(pose, view, opening, grown)
        appearance, drop = self.appearance, DROP * opening
        path = skia.Path()

        def p(x: float, y: float, near: float) -> Point:
            grow = grown if x > 0 else -grown if x < 0 else 0.0
            return self.at(pose, x + grow, y + (grown if y > 0.3 else 0.0), near)

        c, j, k = appearance.cheek, appearance.jaw, appearance.chin
        crown = self.at(pose, 0, -0.50 - grown, 0.0)
        chin = p(0, 0.48 + drop, 0.35)
        path.moveTo(*p(-c, -0.05, 0.0))
        path.cubicTo(*p(-c, -0.36, 0.0), *self.at(pose, -0.62 * c, -0.50 - grown, 0.0), *crown)
        path.cubicTo(
            *self.at(pose, 0.62 * c, -0.50 - grown, 0.0), *p(c, -0.36, 0.0), *p(c, -0.05, 0)
        )
        for side in (1, -1):
            cheek = (p(side * c, 0.1, 0.05), p(side * (j + 0.03), 0.2, 0.1))
            jaw = p(side * j, 0.29 + 0.5 * drop, 0.15)
            round_ = (
                p(side * (j - 0.04), 0.40 + drop, 0.3),
                p(side * (k + 0.03), 0.48 + drop, 0.35),
            )
            if side > 0:
                path.cubicTo(*cheek[0], *cheek[1], *jaw)
                path.cubicTo(*round_[0], *round_[1], *chin)
            else:
                path.cubicTo(*round_[1], *round_[0], *jaw)
                path.cubicTo(*cheek[1], *cheek[0], *p(-c, -0.05, 0))
        path.close()
        return path

    def front_edge(
        self, pose: Pose, view: HeadView, opening: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Contour of a turned face on the side that it faces, from crown to chin.

        Returns:
            x and y, float64 [points] each.
        """
        appearance, drop = self.appearance, DROP * opening
        c, j, k = appearance.cheek, appearance.jaw, appearance.chin
        y, depth = profile_curve(
            appearance.eye_height, appearance.nose, appearance.mouth_y, appearance.lip,
            GAPE * opening, drop,
        )  # fmt: skip
        heights = (-0.5, -0.48, -0.42, -0.3, -0.05, 0.1, 0.29 + drop / 2, 0.4 + drop, 0.48 + drop)
        halves = (0.0, 0.4 * c, 0.75 * c, 0.95 * c, c, 0.97 * c, j, 0.75 * j, k)
        far = far_edge(view, c) * np.interp(y, heights, halves) / c
        x = view.side * np.maximum(far, depth * view.sin)
        bend = BEND * pose.pitch * np.clip(depth / 0.47, 0, 1)
        return x, y + bend

    def _turned_outline(
        self, pose: Pose, view: HeadView, opening: float, grown: float
    ) -> skia.Path:
        appearance, drop = self.appearance, DROP * opening
        c, j, k = appearance.cheek, appearance.jaw, appearance.chin
        x, y = self.front_edge(pose, view, opening)
        points = list(zip((x + view.side * grown).tolist(), y.tolist(), strict=True))
        points[0] = (points[0][0], points[0][1] - grown)
        # The near side: from the chin along the jaw to the ear and up the temple.
        for half, height, near in (
            (k + 0.03, 0.49 + drop, 0.3), (j - 0.04, 0.43 + drop, 0.12),
            (j + 0.01, 0.29 + 0.5 * drop, 0.02), (c - 0.01, 0.13, 0.0), (c, -0.05, 0.0),
            (0.98 * c, -0.25, 0.0), (0.75 * c, -0.42, 0.0), (0.4 * c, -0.485, 0.0),
        ):  # fmt: skip
            x_near, y_near = self.at(pose, -view.side * (half + grown), height, near)
            points.append((x_near, y_near + (grown if height > 0.3 else 0.0)))
        return rounded(points)

    def draw(self, canvas: Canvas, pose: Pose, shape: tuple[float, ...], label: int) -> skia.Path:
        """Draw the face.

        Args:
            shape: one step of a mouth track.
            label: of the face's pixels.

        Returns:
            the outline of the lips, in the units of the head.
        """
        appearance, opening = self.appearance, shape[OPENING]
        for side in (-1, 1):
            x, y = self.at(pose, side * (appearance.cheek + 0.01), 0.02, EARS)
            canvas.draw(oval(x, y, 0.045, appearance.ear), self._ear, label)
            canvas.draw(oval(x, y, 0.02, 0.6 * appearance.ear), self._ear_line)
        outline = self.outline(pose, opening)
        canvas.draw(outline, self.skin, label)
        view = view_of(pose.yaw)
        if view is not None:  # the near ear lies on the head, not beside it
            x, y = self.at(pose, -view.side * appearance.cheek, 0.03, EARS)
            canvas.draw(oval(x, y, 0.055, appearance.ear), self._ear, label)
            canvas.draw(oval(x, y, 0.028, 0.6 * appearance.ear), self._ear_line)
        with canvas.clipped(outline):
            for side in (-1, 1):
                spot = self.at(pose, side * 0.2, 0.14, 0.4)
                canvas.draw(oval(*spot, 0.12, 0.10), glow(spot, 0.12, self._blush, 0.35))
            self._draw_beard(canvas, pose, opening)
            self._draw_folds(canvas, pose)
        x, y = self.at(pose, 0, appearance.mouth_y, 0.62)
        edge = 1.0
        if view is not None:
            gap = GAPE * opening
            heights = (y - 0.12 * gap - appearance.lip, y, y + gap + appearance.lip)
            edge_x, edge_y = self.front_edge(pose, view, opening)
            edge = float(np.interp(heights, edge_y, view.side * edge_x).min()) - view.side * x
        place = skia.Matrix()
        place.setTranslate(x, y)
        with canvas.transformed(place), canvas.clipped(_moved(outline, -x, -y)):
            lips = self._mouth.draw(canvas, shape, view, edge)
        lips.offset(x, y)
        with canvas.clipped(outline):
            self._draw_nose(canvas, pose)
            for side in (-1, 1):
                self._draw_eye(canvas, pose, side)
            self._draw_glasses(canvas, pose)
        return lips

    def _draw_beard(self, canvas: Canvas, pose: Pose, opening: float) -> None:
        kind, appearance = self.appearance.beard, self.appearance
        y, drop = appearance.mouth_y, DROP * opening
        if kind in ("full", "stubble"):
            path = skia.Path()
            path.moveTo(*self.at(pose, -0.6, 0.02, 0.0))
            path.lineTo(*self.at(pose, -0.8 * appearance.cheek, 0.04, 0.1))
            path.cubicTo(
                *self.at(pose, -0.24, 0.24, 0.3), *self.at(pose, -0.2, y - 0.055, 0.5),
                *self.at(pose, 0, y - 0.06, 0.6),
            )  # fmt: skip
            path.cubicTo(
                *self.at(pose, 0.2, y - 0.055, 0.5), *self.at(pose, 0.24, 0.24, 0.3),
                *self.at(pose, 0.8 * appearance.cheek, 0.04, 0.1),
            )  # fmt: skip
            for x, bottom in ((0.6, 0.02), (0.6, 0.9), (-0.6, 0.9)):
                path.lineTo(*self.at(pose, x, bottom, 0.0))
            path.close()
            canvas.draw(path, self._beard)
        if kind in ("moustache", "goatee"):
            x, top = self.at(pose, 0, y - 0.045, 0.62)
            wide = appearance.mouth_width * 0.95 * foreshortening(pose.yaw, 0)
            canvas.draw(oval(x, top, wide, 0.028), self._beard)
        if kind == "goatee":
            x, low = self.at(pose, 0, 0.44 + drop, 0.5)
            canvas.draw(oval(x, low, 0.10, 0.085), self._beard)

    def _draw_folds(self, canvas: Canvas, pose: Pose) -> None:
        """Draw wrinkles from the nose to the mouth, and on the forehead."""
        path = skia.Path()
        for side in (-1, 1):
            path.moveTo(*self.at(pose, side * (self.appearance.nose_width + 0.03), 0.15, 0.6))
            path.quadTo(
                *self.at(pose, side * 0.15, 0.19, 0.5), *self.at(pose, side * 0.185, 0.27, 0.45)
            )
        if self.appearance.wrinkles > 0.3:
            for y in (-0.24, -0.29):
                path.moveTo(*self.at(pose, -0.14, y, 0.3))
                path.quadTo(*self.at(pose, 0, y - 0.015, 0.35), *self.at(pose, 0.14, y, 0.3))
        canvas.draw(path, self._fold)

    def _draw_nose(self, canvas: Canvas, pose: Pose) -> None:
        appearance = self.appearance
        x, y = self.at(pose, 0, appearance.nose - 0.02, 0.95)
        canvas.draw(oval(x, y, 0.05, 0.045), glow((x, y), 0.05, (1, 1, 1), 0.25))
        w = appearance.nose_width
        path = skia.Path()
        path.moveTo(*self.at(pose, -w, appearance.nose - 0.015, 0.7))
        path.cubicTo(
            *self.at(pose, -w, appearance.nose + 0.03, 0.8),
            *self.at(pose, -0.3 * w, appearance.nose + 0.01, 0.9),
            *self.at(pose, 0, appearance.nose + 0.03, 0.95),
        )  # fmt: skip
        path.cubicTo(
            *self.at(pose, 0.3 * w, appearance.nose + 0.01, 0.9),
            *self.at(pose, w, appearance.nose + 0.03, 0.8),
            *self.at(pose, w, appearance.nose - 0.015, 0.7),
        )  # fmt: skip
        side = 1 if pose.yaw < 0 else -1  # the bridge's shadow lies on the far side
        path.moveTo(*self.at(pose, -side * 0.03, -0.03, 0.6))
        path.quadTo(
            *self.at(pose, -side * 0.02, 0.05, 0.8), *self.at(pose, -side * w * 0.8, 0.1, 0.8)
        )
        canvas.draw(path, self._line)

    def _draw_eye(self, canvas: Canvas, pose: Pose, side: int) -> None:
        appearance = self.appearance
        spot = self.at(pose, side * appearance.eye_gap, appearance.eye_height, 0.45)
        if view_of(pose.yaw) is None:
            self._draw_open_eye(canvas, pose, side, spot)
            return
        x, y = spot
        squeeze = skia.Matrix()
        squeeze.setScale(foreshortening(pose.yaw, side), 1, x, y)
        with canvas.transformed(squeeze):
            self._draw_open_eye(canvas, pose, side, (x, y))

    def _draw_open_eye(self, canvas: Canvas, pose: Pose, side: int, at: Point) -> None:
        appearance, (x, y) = self.appearance, at
        size = appearance.eye_size
        high, low = 0.62 * size * (1 - 0.95 * pose.blink), 0.5 * size * (1 - 0.6 * pose.blink)
        almond = skia.Path()
        almond.moveTo(x - size, y)
        almond.cubicTo(x - 0.5 * size, y - 1.3 * high, x + 0.5 * size, y - 1.3 * high, x + size, y)
        almond.cubicTo(x + 0.5 * size, y + 1.2 * low, x - 0.5 * size, y + 1.2 * low, x - size, y)
        almond.close()
        if self._socket is not None:
            spot = (x - side * 0.02, y - 0.02)
            canvas.draw(oval(*spot, 0.1, 0.08), glow(spot, 0.1, self._socket, 0.5))
        canvas.draw(oval(x, y - 0.012, 1.1 * size, 0.8 * size), self._skin_lid)
        canvas.draw(almond, self._white)
        gx, gy = x + 0.35 * size * pose.gaze_x, y + 0.15 * size * pose.gaze_y - 0.004
        with canvas.clipped(almond):
            canvas.draw(oval(gx, gy, 0.5 * size, 0.5 * size), self._iris)
            canvas.draw(oval(gx, gy, 0.24 * size, 0.24 * size), self._pupil)
            canvas.draw(
                oval(gx + 0.15 * size, gy - 0.18 * size, 0.1 * size, 0.1 * size), self._spark
            )
        lid = skia.Path()
        lid.moveTo(x - size, y)
        lid.cubicTo(x - 0.5 * size, y - 1.3 * high, x + 0.5 * size, y - 1.3 * high, x + size, y)
        canvas.draw(lid, self._lid)
        rise = y - 1.75 * size - 0.022 * pose.brow
        brow = skia.Path()
        brow.moveTo(x - side * 1.0 * size, rise + 0.010 - 0.012 * pose.brow)
        brow.quadTo(x + side * 0.2 * size, rise - 0.022, x + side * 1.35 * size, rise + 0.015)
        canvas.draw(brow, self._brow)

    def _draw_glasses(self, canvas: Canvas, pose: Pose) -> None:
        kind, appearance = self.appearance.glasses, self.appearance
        if kind == "none":
            return
        path = skia.Path()
        wide = {}
        for side in (-1, 1):
            x, y = self.at(pose, side * appearance.eye_gap, appearance.eye_height + 0.01, 0.6)
            wide[side] = 0.10 * foreshortening(pose.yaw, side)
            if kind == "square":
                box = skia.Rect(x - wide[side], y - 0.06, x + wide[side], y + 0.075)
                path.addRoundRect(box, 0.02, 0.02)
            else:
                path.addOval(skia.Rect(x - wide[side], y - 0.085, x + wide[side], y + 0.09))
        canvas.draw(path, self._glass)
        left = self.at(pose, -appearance.eye_gap, appearance.eye_height, 0.6)
        right = self.at(pose, appearance.eye_gap, appearance.eye_height, 0.6)
        path.moveTo(left[0] + wide[-1], left[1])
        path.lineTo(right[0] - wide[1], right[1])
        view = view_of(pose.yaw)
        for side, hinge in ((-1, left), (1, right)):
            if view is not None and side == view.side:
                continue  # the far temple is out of view
            path.moveTo(hinge[0] + side * wide[side], hinge[1])
            path.lineTo(
                *self.at(pose, side * (appearance.cheek + 0.02), appearance.eye_height, -0.1)
            )
        canvas.draw(path, self._frame)


def rounded(points: Sequence[Point]) -> skia.Path:
    """Closed smooth outline near the corners of a polygon."""
    path = skia.Path()
    middles = [
        ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2)
        for a, b in zip(points, [*points[1:], points[0]], strict=True)
    ]
    path.moveTo(*middles[-1])
    for corner, middle in zip(points, middles, strict=True):
        path.quadTo(*corner, *middle)
    path.close()
    return path


def _moved(path: skia.Path, dx: float, dy: float) -> skia.Path:
    moved = skia.Path(path)
    moved.offset(dx, dy)
    return moved
