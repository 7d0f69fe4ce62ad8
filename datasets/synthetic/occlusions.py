"""Mouth occlusions: a hand, a face mask, a microphone. Units: the head's height."""

from collections.abc import Sequence

import skia

from cavmae.datasets.synthetic.appearance import Appearance
from cavmae.datasets.synthetic.canvas import Canvas, Point, oval, paint, pen, shade
from cavmae.datasets.synthetic.face import Face, Pose

RISE = 0.3  # s: a hand takes this long to come up
FAR = 1.2  # head heights below the mouth: out of the way


class CoverUp:
    """Draws the object before a person's mouth.

    Args:
        sleeve: paint of the arm that holds it; None: flat.
    """

    def __init__(self, appearance: Appearance, kind: str, sleeve: skia.Paint | None = None):
        self._kind = kind
        self._skin = paint(shade(appearance.skin, 0.93))
        self._crease = pen(shade(appearance.skin, 0.6), 0.010, 0.8)
        self._sleeve = sleeve or paint(shade(appearance.cloth, 0.85))
        self._cloth = paint((0.72, 0.84, 0.90))
        self._fold = pen((0.52, 0.66, 0.74), 0.010)
        self._ball = paint((0.12, 0.12, 0.13))
        self._mesh = pen((0.35, 0.35, 0.37), 0.006)
        self._handle = pen((0.07, 0.07, 0.08), 0.06)

    def draw(
        self, canvas: Canvas, face: Face, pose: Pose, opening: float, amount: float, label: int
    ) -> None:
        """Draw the occlusion.

        Args:
            opening: of the mouth beneath.
            amount: 0 out of the way to 1 before the mouth.
            label: of its pixels: it belongs to the body, not to the face.
        """
        if amount <= 0:
            return
        mouth = face.at(pose, 0, face.appearance.mouth_y, 0.7)
        if self._kind == "mask":
            self._draw_mask(canvas, face, pose, opening, label)
        elif self._kind == "hand":
            self._draw_hand(canvas, (mouth[0], mouth[1] + FAR * (1 - amount)), label)
        else:
            self._draw_microphone(canvas, (mouth[0], mouth[1] + FAR * (1 - amount)), label)

    def _draw_mask(
        self, canvas: Canvas, face: Face, pose: Pose, opening: float, label: int
    ) -> None:
        # Cloth hides most of the jaw's movement.
        outline = face.outline(pose, 0.3 * opening + 0.35, grown=0.012)
        below = skia.Path()
        below.moveTo(*face.at(pose, -0.9, 0.10, 0.0))
        below.lineTo(*face.at(pose, -0.15, 0.07, 0.5))
        below.quadTo(*face.at(pose, 0, 0.03, 1.0), *face.at(pose, 0.15, 0.07, 0.5))
        below.lineTo(*face.at(pose, 0.9, 0.10, 0.0))
        below.lineTo(0.9, 1.2)
        below.lineTo(-0.9, 1.2)
        below.close()
        with canvas.clipped(below):
            canvas.draw(outline, self._cloth, label)
            folds = skia.Path()
            for y in (0.2, 0.28, 0.36):
                folds.moveTo(*face.at(pose, -0.22, y, 0.3))
                folds.quadTo(*face.at(pose, 0, y + 0.03, 0.7), *face.at(pose, 0.22, y, 0.3))
            canvas.draw(folds, self._fold)

    def _draw_hand(self, canvas: Canvas, at: Point, label: int) -> None:
        x, y = at
        arm = ((0.10, 0.10), (0.30, 1.4), (0.62, 1.4), (0.27, 0.06))
        canvas.draw(_polygon(at, arm), self._sleeve, label)
        canvas.draw(oval(x + 0.12, y + 0.06, 0.17, 0.15), self._skin, label)
        creases = skia.Path()
        for number in range(4):
            top = y - 0.105 + 0.055 * number
            finger = skia.Path()
            reach = (0.20, 0.23, 0.22, 0.17)[number]
            finger.addRoundRect(skia.Rect(x - reach, top, x + 0.18, top + 0.062), 0.031, 0.031)
            canvas.draw(finger, self._skin, label)
            creases.moveTo(x - reach + 0.03, top + 0.062)
            creases.lineTo(x + 0.12, top + 0.062)
        canvas.draw(creases, self._crease)

    def _draw_microphone(self, canvas: Canvas, at: Point, label: int) -> None:
        x, y = at
        handle = skia.Path()
        handle.moveTo(x, y + 0.1)
        handle.lineTo(x + 0.10, y + 0.55)
        canvas.draw(handle, self._handle, label)
        canvas.draw(oval(x, y + 0.01, 0.165, 0.15), self._ball, label)
        mesh = skia.Path()
        for offset in (-0.08, -0.03, 0.03, 0.08):
            mesh.moveTo(x + offset, y - 0.11)
            mesh.lineTo(x + offset, y + 0.13)
            mesh.moveTo(x - 0.13, y + 0.01 + offset)
            mesh.lineTo(x + 0.13, y + 0.01 + offset)
        canvas.draw(mesh, self._mesh)
        arm = ((0.04, 0.45), (0.18, 1.6), (0.50, 1.6), (0.22, 0.42))
        canvas.draw(_polygon(at, arm), self._sleeve, label)
        canvas.draw(oval(x + 0.10, y + 0.42, 0.12, 0.11), self._skin, label)


def _polygon(at: Point, corners: Sequence[Point]) -> skia.Path:
    """Polygon whose corners are relative to ``at``."""
    path = skia.Path()
    path.moveTo(at[0] + corners[0][0], at[1] + corners[0][1])
    for x, y in corners[1:]:
        path.lineTo(at[0] + x, at[1] + y)
    path.close()
    return path
