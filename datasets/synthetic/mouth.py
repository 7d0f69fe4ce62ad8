"""Mouth: lips, teeth and tongue."""

import skia

from cavmae.datasets.synthetic.appearance import Appearance
from cavmae.datasets.synthetic.articulation import OPENING, SPREAD, TEETH, TONGUE
from cavmae.datasets.synthetic.canvas import Canvas, paint, pen, shade
from cavmae.datasets.synthetic.projection import HeadView

GAPE = 0.14  # height of a wide open mouth, as a share of the head's
CURVATURE = 4.0  # of the lips around the teeth, seen from above
LIPS_PART = 0.006  # a smaller gap is a line between the lips


class Mouth:
    """Draws a person's mouth, in units of the head's height around its own middle."""

    def __init__(self, appearance: Appearance):
        self._appearance = appearance
        self._lip = paint(appearance.lips)
        self._upper = paint(shade(appearance.lips, 0.86))
        self._line = pen(shade(appearance.lips, 0.45), 0.009)
        self._inside = paint((0.16, 0.04, 0.05))
        self._tongue = paint((0.72, 0.32, 0.34))
        self._teeth = paint((appearance.teeth, appearance.teeth, appearance.teeth * 0.93))
        self._gap = pen((0.45, 0.40, 0.38), 0.004, 0.5)

    def draw(
        self, canvas: Canvas, shape: tuple[float, ...], view: HeadView | None, edge: float = 1.0
    ) -> skia.Path:
        """Draw a mouth and return the outline of its lips.

        Args:
            shape: one step of a mouth track.
            view: of a head that is turned; None: seen from the front.
            edge: distance of the turned face's edge from the middle of the mouth.
        """
        appearance = self._appearance
        spread = shape[SPREAD]
        gap = GAPE * shape[OPENING]
        width = appearance.mouth_width * (1 + (0.24 * spread if spread > 0 else 0.42 * spread))
        lip = appearance.lip * (1 + (-0.15 * spread if spread > 0 else -0.35 * spread))
        corner = 0.30 * gap - 0.022 * max(spread, 0)
        top, bottom = -0.12 * gap, 0.88 * gap
        outer = _turned(_lips(width, corner, top - lip, bottom + 1.3 * lip), view, edge)
        canvas.draw(outer, self._lip)
        with canvas.clipped(outer):
            upper = skia.Path()
            upper.addRect(skia.Rect(-1, -1, 1, corner + 0.1 * gap))
            canvas.draw(upper, self._upper)
        inner = _turned(_opening(0.88 * width, corner, top, bottom), view)
        if gap < LIPS_PART and shape[TEETH] < 0.3:
            line = skia.Path()
            line.moveTo(-0.92 * width, corner)
            line.quadTo(0, 0.006, 0.92 * width, corner)
            canvas.draw(_turned(line, view), self._line)
            return outer
        with canvas.clipped(inner):
            canvas.draw(inner, self._inside)
            self._fill(canvas, width, gap, top, bottom, shape, view)
        return outer

    def _fill(
        self,
        canvas: Canvas,
        width: float,
        gap: float,
        top: float,
        bottom: float,
        shape: tuple[float, ...],
        view: HeadView | None,
    ) -> None:
        """Draw tongue and teeth between the lips."""
        tongue = skia.Path()
        lift = 0.45 * gap * shape[TONGUE]
        tongue.addOval(
            skia.Rect(-0.6 * width, bottom - 0.40 * gap - lift, 0.6 * width, bottom + 0.3 * gap)
        )
        canvas.draw(_turned(tongue, view), self._tongue)
        upper = min(0.012 + 0.045 * shape[TEETH], 0.75 * gap)
        row = skia.Path()
        row.addRoundRect(
            skia.Rect(-0.75 * width, top - 0.03, 0.75 * width, top + upper), 0.01, 0.01
        )
        canvas.draw(_turned(row, view), self._teeth)
        gaps = skia.Path()
        for place in (-0.45, -0.22, 0.0, 0.22, 0.45):
            gaps.moveTo(place * width, top)
            gaps.lineTo(place * width, top + 0.8 * upper)
        canvas.draw(_turned(gaps, view), self._gap)
        lower = min(0.032 * max(shape[TEETH] - 0.3, 0), 0.3 * gap)
        if lower > 0:
            row = skia.Path()
            row.addRect(skia.Rect(-0.6 * width, bottom - lower, 0.6 * width, bottom + 0.03))
            canvas.draw(_turned(row, view), self._teeth)


def _turned(path: skia.Path, view: HeadView | None, edge: float = 1.0) -> skia.Path:
    """Bend a flat shape around the front of a turned head; its far part folds into the edge."""
    if view is None:
        return path
    curve = CURVATURE * view.roundness * view.sin
    farthest = view.cos / (2 * curve) if curve else 1.0
    bent = skia.Path()
    add = {
        skia.Path.Verb.kMove_Verb: bent.moveTo, skia.Path.Verb.kLine_Verb: bent.lineTo,
        skia.Path.Verb.kQuad_Verb: bent.quadTo, skia.Path.Verb.kCubic_Verb: bent.cubicTo,
    }  # fmt: skip
    for verb, points in path:
        if verb == skia.Path.Verb.kClose_Verb:
            bent.close()
            continue
        ends = points[:1] if verb == skia.Path.Verb.kMove_Verb else points[1:]
        moved = []
        for point in ends:
            x = min(view.side * point.x(), farthest)
            moved += [view.side * min(x * view.cos - curve * x * x, edge), point.y()]
        if verb == skia.Path.Verb.kConic_Verb:  # of ovals and round corners
            bent.quadTo(*moved)
        else:
            add[verb](*moved)
    return bent


def _lips(width: float, corner: float, top: float, bottom: float) -> skia.Path:
    """Outline of the lips with the cupid's bow."""
    path = skia.Path()
    path.moveTo(-width, corner)
    path.cubicTo(-0.62 * width, 0.4 * corner + 0.6 * top, -0.35 * width, top, -0.16 * width, top)
    path.quadTo(0, top + 0.010, 0.16 * width, top)
    path.cubicTo(0.35 * width, top, 0.62 * width, 0.4 * corner + 0.6 * top, width, corner)
    path.cubicTo(0.72 * width, bottom * 0.72, 0.40 * width, bottom, 0, bottom)
    path.cubicTo(-0.40 * width, bottom, -0.72 * width, bottom * 0.72, -width, corner)
    path.close()
    return path


def _opening(width: float, corner: float, top: float, bottom: float) -> skia.Path:
    path = skia.Path()
    path.moveTo(-width, corner)
    path.cubicTo(-0.55 * width, top, -0.25 * width, top, 0, top)
    path.cubicTo(0.25 * width, top, 0.55 * width, top, width, corner)
    path.cubicTo(0.62 * width, bottom, 0.30 * width, bottom, 0, bottom)
    path.cubicTo(-0.30 * width, bottom, -0.62 * width, bottom, -width, corner)
    path.close()
    return path
