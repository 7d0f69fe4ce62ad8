"""Whole person: torso, hair, face and mouth occlusion. Units: the head's height."""

from collections.abc import Sequence

import numpy as np
import skia

from cavmae.datasets.synthetic.appearance import Appearance
from cavmae.datasets.synthetic.articulation import OPENING
from cavmae.datasets.synthetic.canvas import Canvas, Point, gradient, oval, paint, pen, shade
from cavmae.datasets.synthetic.face import Face, Pose, rounded
from cavmae.datasets.synthetic.hands import Hands, HandTrack
from cavmae.datasets.synthetic.occlusions import CoverUp
from cavmae.datasets.synthetic.population import rng_for
from cavmae.datasets.synthetic.projection import HeadView, skull, view_of
from cavmae.datasets.synthetic.surface import Surface, fold_lines

FOLD_PENS = ((0.09, 0.07), (0.05, 0.09), (0.02, 0.14))  # width, alpha: soft from sharp lines
LOW = 8.0  # lower end of a torso
# Heights of the left temple, left, middle, right, right temple.
HAIRLINES = {
    "short": (-0.06, -0.27, -0.33, -0.27, -0.06),
    "side": (-0.02, -0.34, -0.22, -0.16, -0.05),
    "long": (0.12, -0.26, -0.36, -0.26, 0.12),
    "bob": (0.14, -0.14, -0.17, -0.14, 0.14),
    "curly": (0.0, -0.22, -0.26, -0.22, 0.0),
    "bun": (-0.08, -0.30, -0.36, -0.30, -0.08),
    "cap": (-0.14, -0.19, -0.20, -0.19, -0.14),
}
THICKNESS = {"cap": 0.045, "curly": 0.07}  # of hair above the skull


class Figure:
    """Draws a person.

    Args:
        appearance: of the person.
        labels: of the pixels of their body and of their face.
        light: -1 from the left to 1 from the right.
        cover: kind of the mouth occlusion; None: no occlusion.
        hands: movements of the hands that gesture.
        surface: seed of the texture of skin, hair and cloth; None: flat colours.
    """

    def __init__(
        self,
        appearance: Appearance,
        labels: tuple[int, int],
        light: float,
        cover: str | None,
        hands: Sequence[HandTrack] = (),
        surface: int | None = None,
    ):
        self.appearance = appearance
        rng = rng_for("surface", surface or 0)
        textures = None if surface is None else Surface(appearance, light, rng)
        self.face = Face(appearance, light, textures and textures.skin)
        self._body, self._face = labels
        sleeve = textures and textures.cloth
        self._cover = None if cover is None else CoverUp(appearance, cover, sleeve)
        tones = [shade(appearance.cloth, 1.12), shade(appearance.cloth, 0.72)]
        if light > 0:
            tones.reverse()
        self._cloth = gradient((-0.8, 0.6), (0.8, 1.0), tones)
        self._cloth2 = paint(appearance.cloth2)
        self._seam = pen(shade(appearance.cloth, 0.6), 0.015)
        self._neck = paint(shade(appearance.skin, 0.78))
        self._hair = gradient(
            (-0.4, -0.6),
            (0.4, 0.2),
            [shade(appearance.hair, 1.25), appearance.hair, shade(appearance.hair, 0.7)],
        )
        self._strand = pen(shade(appearance.hair, 1.5), 0.012, 0.35)
        self._back = paint(shade(appearance.hair, 0.62))
        self._wrap = gradient(
            (-0.5, -0.5), (0.5, 0.6), [appearance.cloth2, shade(appearance.cloth2, 0.65)]
        )

        self._folds: skia.Path | None = None
        if textures is not None:
            self._cloth, self._neck, self._wrap = textures.cloth, textures.neck, textures.wrap
            self._hair, self._back = textures.hair, textures.back
            self._folds = fold_lines(rng, appearance.shoulders)
        self._hands = Hands(appearance, self._cloth, hands, self._body)

    def draw_torso(self, canvas: Canvas, breath: float) -> None:
        """Draw shoulders and chest, below a head whose middle is at 0."""
        appearance = self.appearance
        rise = -0.008 * breath
        s = appearance.shoulders
        path = skia.Path()
        path.moveTo(-0.15, 0.54 + rise)
        path.cubicTo(-0.3, 0.64 + rise, -s * 0.9, 0.62 + rise, -s, 0.95 + rise)
        path.cubicTo(-s - 0.05, 1.2, -s - 0.05, 1.6, -s - 0.02, 3.2)
        path.lineTo(-s - 0.02, LOW)  # people in the distance reach further down
        path.lineTo(s + 0.02, LOW)
        path.lineTo(s + 0.02, 3.2)
        path.cubicTo(s + 0.05, 1.6, s + 0.05, 1.2, s, 0.95 + rise)
        path.cubicTo(s * 0.9, 0.62 + rise, 0.3, 0.64 + rise, 0.15, 0.54 + rise)
        path.close()
        canvas.draw(path, self._cloth, self._body)
        with canvas.clipped(path):
            self._draw_clothes(canvas, rise)
            if self._folds is not None:
                for width, alpha in FOLD_PENS:
                    canvas.draw(self._folds, pen((0, 0, 0), width, alpha))

    def _draw_clothes(self, canvas: Canvas, rise: float) -> None:
        kind = self.appearance.clothes
        path = skia.Path()
        if kind == "stripes":
            for y in (0.72, 0.9, 1.08, 1.26, 1.44):
                path.addRect(skia.Rect(-1.2, y + rise, 1.2, y + 0.08 + rise))
            canvas.draw(path, self._cloth2)
        elif kind == "suit":
            for x, y in ((-0.17, 0.5), (0.17, 0.5), (0, 1.35)):
                (path.lineTo if path.countPoints() else path.moveTo)(x, y + rise)
            path.close()
            canvas.draw(path, paint((0.93, 0.93, 0.94)))
            tie = skia.Path()
            for x, y in ((-0.035, 0.66), (0.035, 0.66), (0.06, 1.2), (0, 1.32), (-0.06, 1.2)):
                (tie.lineTo if tie.countPoints() else tie.moveTo)(x, y + rise)
            tie.close()
            canvas.draw(tie, self._cloth2)
        elif kind == "shirt":
            for side in (-1, 1):
                path.moveTo(side * 0.16, 0.54 + rise)
                path.lineTo(side * 0.02, 0.72 + rise)
                path.lineTo(side * 0.20, 0.80 + rise)
                path.lineTo(side * 0.27, 0.60 + rise)
                path.close()
            canvas.draw(path, self._cloth2)
            line = skia.Path()
            line.moveTo(0, 0.72 + rise)
            line.lineTo(0, 2)
            canvas.draw(line, self._seam)
        elif kind == "hoodie":
            for side in (-1, 1):
                path.moveTo(side * 0.09, 0.72 + rise)
                path.lineTo(side * 0.11, 1.15 + rise)
            canvas.draw(path, pen(self.appearance.cloth2, 0.025))
        depth = 0.86 if kind == "v" else 0.66
        if kind in ("v", "round", "stripes", "hoodie"):
            neckline = skia.Path()
            neckline.moveTo(-0.19, 0.5)
            neckline.quadTo(-0.08 if kind == "v" else -0.16, depth + rise, 0, depth + rise)
            neckline.quadTo(0.08 if kind == "v" else 0.16, depth + rise, 0.19, 0.5)
            neckline.close()
            canvas.draw(neckline, self._neck)

    def draw_neck(self, canvas: Canvas, head: Point) -> None:
        """Draw the neck from the head to the torso, in the torso's units.

        Args:
            head: the head's middle.
        """
        x, y = head
        path = skia.Path()
        path.moveTo(x - 0.17, y + 0.2)
        path.cubicTo(x - 0.16, y + 0.45, -0.17, 0.5, -0.20, 0.62)
        path.quadTo(0, 0.72, 0.20, 0.62)
        path.cubicTo(0.17, 0.5, x + 0.16, y + 0.45, x + 0.17, y + 0.2)
        path.close()
        canvas.draw(path, self._neck, self._body)

    def draw_back(self, canvas: Canvas, pose: Pose) -> None:
        """Draw hair and cloth behind the face and neck."""
        style, appearance = self.appearance.style, self.appearance
        view = view_of(pose.yaw)
        if view is not None:
            self._draw_skull(canvas, pose, view)
        x, y = self.face.at(pose, 0, 0, -0.6)
        path = skia.Path()
        wide = appearance.cheek + 0.09
        if view is not None:
            x += view.side * 0.12 * view.roundness
            wide -= 0.1 * view.roundness
        if style == "long":
            path.addRoundRect(skia.Rect(x - wide, y - 0.48, x + wide, y + 0.78), 0.26, 0.3)
        elif style == "bob":
            path.addRoundRect(
                skia.Rect(x - wide - 0.02, y - 0.5, x + wide + 0.02, y + 0.36), 0.3, 0.26
            )
        elif style == "curly":
            for dx, dy, r in (
                (-0.34, -0.2, 0.17), (0.34, -0.2, 0.17), (-0.37, 0.02, 0.14), (0.37, 0.02, 0.14),
                (-0.2, -0.42, 0.18), (0.2, -0.42, 0.18), (0, -0.48, 0.2),
            ):  # fmt: skip
                canvas.draw(oval(x + dx, y + dy, r, r), self._back, self._body)
            return
        elif style == "bun":
            path.addOval(skia.Rect(x - 0.17, y - 0.78, x + 0.17, y - 0.44))
        elif style == "scarf":
            path.addOval(skia.Rect(x - wide - 0.02, y - 0.6, x + wide + 0.02, y + 0.7))
            canvas.draw(path, self._wrap, self._body)
            return
        else:
            return
        canvas.draw(path, self._back, self._body)

    def _draw_skull(self, canvas: Canvas, pose: Pose, view: HeadView) -> None:
        """Draw the back of a turned head, which a face seen from the front hides."""
        x, y, rx, ry = skull(view, self.appearance.cheek, 0.0)
        if self.appearance.style == "bald":
            canvas.draw(oval(x, y, rx, ry), self.face.skin, self._face)
        else:
            canvas.draw(oval(x, y, rx + 0.02, ry + 0.02), self._back, self._body)

    def draw_head(
        self, canvas: Canvas, pose: Pose, shape: tuple[float, ...], covered: float
    ) -> skia.Path:
        """Draw face, front hair and mouth occlusion; returns the lips' outline."""
        lips = self.face.draw(canvas, pose, shape, self._face)
        self._draw_front(canvas, pose, shape[OPENING])
        if self._cover is not None:
            self._cover.draw(canvas, self.face, pose, shape[OPENING], covered, self._body)
        return lips

    def draw_hands(self, canvas: Canvas, number: int) -> None:
        """Draw the gesturing hands of frame ``number``, in the torso's units."""
        self._hands.draw(canvas, number)

    def _draw_front(self, canvas: Canvas, pose: Pose, opening: float) -> None:
        style = self.appearance.style
        if style == "bald":
            return
        view = view_of(pose.yaw)
        if style == "scarf":
            if view is None:
                self._draw_scarf(canvas, pose)
            else:
                self._draw_turned_scarf(canvas, pose, view, opening)
            return
        if view is not None:
            self._draw_turned_hair(canvas, pose, view, opening)
            return
        path = self._crown(pose, THICKNESS.get(style, 0.03))
        lines = HAIRLINES[style]
        c = self.appearance.cheek
        at = self.face.at
        path.lineTo(*at(pose, c + 0.02, lines[4], 0.0))
        path.quadTo(*at(pose, 0.86 * c, lines[3], 0.2), *at(pose, 0.5 * c, lines[3], 0.3))
        path.quadTo(*at(pose, 0.2 * c, lines[2], 0.4), *at(pose, 0, lines[2], 0.4))
        path.quadTo(*at(pose, -0.3 * c, lines[2], 0.4), *at(pose, -0.5 * c, lines[1], 0.3))
        path.quadTo(*at(pose, -0.86 * c, lines[1], 0.2), *at(pose, -c - 0.02, lines[0], 0.0))
        path.close()
        canvas.draw(path, self._wrap if style == "cap" else self._hair, self._body)
        with canvas.clipped(path):
            if style == "cap":
                return
            strands = skia.Path()
            for x in (-0.25, -0.15, -0.05, 0.08, 0.18, 0.28):
                strands.moveTo(*at(pose, 0.3 * x, -0.55, 0.0))
                strands.quadTo(*at(pose, x, -0.45, 0.1), *at(pose, 1.15 * x, -0.2, 0.3))
            canvas.draw(strands, self._strand)

    def _draw_turned_hair(self, canvas: Canvas, pose: Pose, view: HeadView, opening: float) -> None:
        """Draw hair or a cap of a turned head: from the hairline over ear and nape to the crown."""
        style, c = self.appearance.style, self.appearance.cheek
        thick = THICKNESS.get(style, 0.03)
        lines = HAIRLINES[style] if view.side < 0 else HAIRLINES[style][::-1]
        at, near = self.face.at, -view.side
        x, y = self.face.front_edge(pose, view, opening)
        edge = float(np.interp(lines[2], y, view.side * x))
        points = [
            (view.side * (edge + 0.2 * thick), lines[2]),
            at(pose, near * 0.25 * c, lines[2], 0.32), at(pose, near * 0.55 * c, lines[3], 0.25),
            at(pose, near * 0.9 * c, lines[3], 0.12), at(pose, near * c, lines[4], 0.03),
            at(pose, near * c, lines[4], -0.08), at(pose, near * c, -0.07, -0.15),
            at(pose, near * c, 0.08, -0.3),
        ]  # fmt: skip
        points += self._skull_arc(view, thick, 0.95)
        for height in (-0.45, -0.4):
            points.append(
                (view.side * (float(np.interp(height, y, view.side * x)) + thick), height - thick)
            )
        path = rounded(points)
        canvas.draw(path, self._wrap if style == "cap" else self._hair, self._body)
        if style == "cap":
            visor = [
                (view.side * (edge - 0.06), lines[2] - 0.03), (view.side * (edge + 0.2), lines[2]),
                (view.side * (edge + 0.2), lines[2] + 0.035), (view.side * edge, lines[2] + 0.02),
            ]  # fmt: skip
            canvas.draw(rounded(visor), self._wrap, self._body)
            return
        with canvas.clipped(path):
            strands = skia.Path()
            cx, cy, rx, ry = skull(view, c, 0.0)
            for part in (0.35, 0.55, 0.75, 0.92):
                strands.addOval(skia.Rect(cx - part * rx, cy - part * ry, cx + part * rx, cy + ry))
            canvas.draw(strands, self._strand)

    def _skull_arc(self, view: HeadView, grown: float, start: float) -> list[Point]:
        """Points around the back of a turned skull, from the nape over the crown.

        Args:
            start: angle of the nape below the horizontal, in radians.
        """
        x, y, rx, ry = skull(view, self.appearance.cheek, grown)
        angles = np.linspace(start, -1.75, 9)
        return [(x - view.side * rx * float(np.cos(a)), y + ry * float(np.sin(a))) for a in angles]

    def _draw_turned_scarf(
        self, canvas: Canvas, pose: Pose, view: HeadView, opening: float
    ) -> None:
        """Draw cloth around a turned face, over skull and neck."""
        c, j = self.appearance.cheek, self.appearance.jaw
        at, near = self.face.at, -view.side
        x, y = self.face.front_edge(pose, view, opening)
        edge = float(np.interp(-0.3, y, view.side * x))
        chin = float(np.interp(0.46, y, view.side * x))
        points = [
            (view.side * (edge + 0.02), -0.3), at(pose, near * 0.5 * c, -0.26, 0.28),
            at(pose, near * 0.85 * c, -0.05, 0.15), at(pose, near * 0.85 * c, 0.15, 0.12),
            at(pose, near * (j - 0.02), 0.36, 0.15), (view.side * (chin - 0.05), 0.5),
            (view.side * (chin - 0.02), 0.58), (view.side * 0.2, 0.72), (-view.side * 0.3, 0.72),
            (-view.side * 0.4, 0.4),
        ]  # fmt: skip
        points += self._skull_arc(view, 0.06, 0.4)
        points.append((view.side * (float(np.interp(-0.42, y, view.side * x)) + 0.05), -0.46))
        canvas.draw(rounded(points), self._wrap, self._body)

    def _crown(self, pose: Pose, high: float) -> skia.Path:
        """Outline of the hair from the left temple to the right, a little outside the skull."""
        c = self.appearance.cheek + 0.02
        at = self.face.at
        top = -0.5 - high
        path = skia.Path()
        path.moveTo(*at(pose, -c, -0.05, 0.0))
        path.cubicTo(
            *at(pose, -c - 0.02, -0.4, 0), *at(pose, -0.62 * c, top, 0), *at(pose, 0, top, 0)
        )
        path.cubicTo(
            *at(pose, 0.62 * c, top, 0), *at(pose, c + 0.02, -0.4, 0), *at(pose, c, -0.05, 0)
        )
        return path

    def _draw_scarf(self, canvas: Canvas, pose: Pose) -> None:
        """Draw a ring of cloth around the face and over the neck."""
        c = self.appearance.cheek
        x, y = self.face.at(pose, 0, 0.02, 0.1)
        path = skia.Path()
        path.addOval(skia.Rect(x - c - 0.09, y - 0.6, x + c + 0.09, y + 0.68))
        path.addOval(skia.Rect(x - c + 0.03, y - 0.34, x + c - 0.03, y + 0.52))
        path.setFillType(skia.PathFillType.kEvenOdd)
        canvas.draw(path, self._wrap, self._body)
