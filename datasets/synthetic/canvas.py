"""Colour image and label mask, drawn at once.

Every shape that adds to a person's outline is filled into both through one call, so the masks
cannot drift from the drawing: the label mask gets the pixels whose centre lies in the shape.
"""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import skia

Color = tuple[float, float, float]  # red, green, blue in [0, 1]
Point = tuple[float, float]


def paint(color: Color, alpha: float = 1.0, blur: float = 0.0) -> skia.Paint:
    """Antialiased filling.

    Args:
        blur: standard deviation of its soft edge, in the units of the drawing.
    """
    filling = skia.Paint(AntiAlias=True, Color4f=skia.Color4f(*_clipped(color), alpha))
    if blur:
        filling.setMaskFilter(skia.MaskFilter.MakeBlur(skia.kNormal_BlurStyle, blur))
    return filling


def pen(color: Color, width: float, alpha: float = 1.0) -> skia.Paint:
    """Antialiased line with round ends."""
    filling = paint(color, alpha)
    filling.setStyle(skia.Paint.kStroke_Style)
    filling.setStrokeWidth(width)
    filling.setStrokeCap(skia.Paint.kRound_Cap)
    filling.setStrokeJoin(skia.Paint.kRound_Join)
    return filling


def gradient(start: Point, end: Point, colors: Sequence[Color]) -> skia.Paint:
    """Antialiased linear gradient along a line."""
    filling = skia.Paint(AntiAlias=True)
    packed = [skia.Color4f(*_clipped(c), 1).toColor() for c in colors]
    filling.setShader(skia.GradientShader.MakeLinear([start, end], packed))
    return filling


def glow(middle: Point, radius: float, color: Color, alpha: float) -> skia.Paint:
    """Radial gradient that fades from the middle outwards."""
    filling = skia.Paint(AntiAlias=True)
    inner = skia.Color4f(*_clipped(color), alpha).toColor()
    outer = skia.Color4f(*_clipped(color), 0).toColor()
    filling.setShader(skia.GradientShader.MakeRadial(middle, radius, [inner, outer]))
    return filling


def shade(color: Color, factor: float) -> Color:
    """Scale a colour's brightness."""
    return _clipped((color[0] * factor, color[1] * factor, color[2] * factor))


def blend(first: Color, second: Color, fraction: float) -> Color:
    """Blend two colours; ``fraction`` is the weight of the second."""
    return tuple(a + (b - a) * fraction for a, b in zip(first, second, strict=True))  # type: ignore[return-value]


def _clipped(color: Color) -> Color:
    return tuple(float(min(max(c, 0.0), 1.0)) for c in color)  # type: ignore[return-value]


def oval(x: float, y: float, rx: float, ry: float) -> skia.Path:
    path = skia.Path()
    path.addOval(skia.Rect(x - rx, y - ry, x + rx, y + ry))
    return path


class Canvas:
    """Image with a label mask.

    Args:
        size: (width, height) in pixels.

    Attributes:
        pixels: uint8 [height, width, 4]: red, green, blue, coverage.
        labels: uint8 [height, width].
    """

    def __init__(self, size: tuple[int, int]):
        width, height = size
        self.pixels = np.zeros((height, width, 4), np.uint8)
        self.labels = np.zeros((height, width), np.uint8)
        color_info = skia.ImageInfo.Make(
            width, height, skia.kRGBA_8888_ColorType, skia.kPremul_AlphaType
        )
        self._surfaces = (
            skia.Surface.MakeRasterDirect(color_info, self.pixels, width * 4),
            skia.Surface.MakeRasterDirect(skia.ImageInfo.MakeA8(width, height), self.labels, width),
        )
        self.color_canvas, self._label_canvas = (s.getCanvas() for s in self._surfaces)
        self._label = skia.Paint(AntiAlias=False, BlendMode=skia.BlendMode.kSrc)

    def clear(self) -> None:
        self.color_canvas.clear(skia.ColorTRANSPARENT)
        self._label_canvas.clear(skia.ColorTRANSPARENT)

    def draw(self, path: skia.Path, filling: skia.Paint, label: int | None = None) -> None:
        """Fill a shape or draw its line.

        Args:
            label: marks the pixels of the shape; None: a detail within shapes drawn before.
        """
        self.color_canvas.drawPath(path, filling)
        if label is not None:
            self._label.setAlpha(label)
            self._label.setStyle(filling.getStyle())
            self._label.setStrokeWidth(filling.getStrokeWidth())
            self._label.setStrokeCap(filling.getStrokeCap())
            self._label.setStrokeJoin(filling.getStrokeJoin())
            self._label_canvas.drawPath(path, self._label)

    @contextlib.contextmanager
    def clipped(self, path: skia.Path) -> Iterator[None]:
        """Clip drawing to a shape within the context."""
        with self.transformed(skia.Matrix()):
            self.color_canvas.clipPath(path, True)
            self._label_canvas.clipPath(path, False)
            yield

    @contextlib.contextmanager
    def transformed(self, matrix: skia.Matrix) -> Iterator[None]:
        """Apply a matrix to drawing within the context."""
        for canvas in (self.color_canvas, self._label_canvas):
            canvas.save()
            canvas.concat(matrix)
        try:
            yield
        finally:
            for canvas in (self.color_canvas, self._label_canvas):
                canvas.restore()

    @property
    def matrix(self) -> skia.Matrix:
        """Matrix from drawing units to pixels."""
        return self.color_canvas.getTotalMatrix()


def placement(x: float, y: float, degrees: float, scale: float) -> skia.Matrix:
    """Matrix that scales, then rotates, then translates."""
    matrix = skia.Matrix()
    matrix.setTranslate(x, y)
    matrix.preRotate(degrees)
    matrix.preScale(scale, scale)
    return matrix
