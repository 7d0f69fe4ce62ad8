"""Textured scenery of backdrops: brick, tiles, script, foliage, shelves, curtains, panels.

Every painter fills the canvas; lengths are fractions of the frame's height.
"""

import numpy as np
import skia

from cavmae.datasets.synthetic.canvas import Color, blend, gradient, oval, paint, pen, shade

GLYPH_STROKES = (2, 5)  # of a letter of made-up script
SPINE_TONES = ((0.45, 0.12, 0.12), (0.12, 0.2, 0.38), (0.14, 0.3, 0.2), (0.75, 0.7, 0.6),
               (0.2, 0.2, 0.22), (0.6, 0.4, 0.15), (0.85, 0.83, 0.8))  # fmt: skip


def paint_scenery(canvas: skia.Canvas, width: int, height: int, rng: np.random.Generator) -> None:
    """Fill the canvas with a random kind of textured scenery.

    Args:
        width: of the canvas in pixels.
        height: of the canvas in pixels.
    """
    kinds = (_brick, _tiles, _script, _foliage, _cabinet, _curtain, _panels)
    kinds[int(rng.integers(len(kinds)))](canvas, width, height, rng)
    noise = skia.Paint(BlendMode=skia.BlendMode.kOverlay, Alphaf=float(rng.uniform(0.1, 0.4)))
    fine = float(rng.uniform(0.02, 0.2)) * 224 / height
    seed = int(rng.integers(1000))
    noise.setShader(skia.PerlinNoiseShader.MakeFractalNoise(fine, fine, 3, seed))
    canvas.drawRect(skia.Rect(0, 0, width, height), noise)
    # Light from a window or a lamp falls unevenly.
    x, y = rng.uniform(0, width), rng.uniform(-0.2, 0.6) * height
    dark = skia.Paint(BlendMode=skia.BlendMode.kMultiply)
    low = int(rng.uniform(70, 220))
    tones = [skia.ColorSetRGB(255, 252, 245), skia.ColorSetRGB(low, low, low)]
    dark.setShader(skia.GradientShader.MakeRadial((x, y), float(1.1 * width), tones))
    canvas.drawRect(skia.Rect(0, 0, width, height), dark)


def natural_color(rng: np.random.Generator) -> Color:
    """Random colour of a wall or a piece of furniture: mostly pale or brown, seldom strong."""
    warm = ((0.86, 0.82, 0.74), (0.62, 0.48, 0.34), (0.36, 0.25, 0.17), (0.55, 0.27, 0.2),
            (0.8, 0.8, 0.8), (0.35, 0.38, 0.42), (0.42, 0.5, 0.42), (0.68, 0.3, 0.28))  # fmt: skip
    tone = warm[int(rng.integers(len(warm)))]
    other = tuple(float(c) for c in rng.uniform(0.1, 0.9, 3))
    return shade(blend(tone, other, rng.uniform(0, 0.35)), rng.uniform(0.55, 1.15))  # type: ignore[arg-type]


def _fill(canvas: skia.Canvas, width: int, height: int, color: Color) -> None:
    canvas.drawRect(skia.Rect(0, 0, width, height), paint(color))


def _brick(canvas: skia.Canvas, width: int, height: int, rng: np.random.Generator) -> None:
    """Courses of bricks, each of a tone of its own, with a lit upper edge."""
    tone = blend((0.58, 0.28, 0.2), natural_color(rng), rng.uniform(0, 0.7))
    _fill(canvas, width, height, shade(natural_color(rng), rng.uniform(0.7, 1.2)))
    tall = height * rng.uniform(0.03, 0.09)
    wide, gap = tall * rng.uniform(2.0, 3.2), max(0.8, 0.1 * tall)
    for row in range(int(height / tall) + 1):
        x = -wide * (0.5 if row % 2 else rng.uniform(0.9, 1.0))
        while x < width:
            brick = skia.Rect(x, row * tall, x + wide - gap, (row + 1) * tall - gap)
            color = shade(tone, rng.normal(1, 0.13))
            canvas.drawRect(brick, paint(color))
            top = skia.Rect(x, row * tall, x + wide - gap, row * tall + 0.12 * tall)
            canvas.drawRect(top, paint(shade(color, 1.25), 0.6))
            x += wide


def _tiles(canvas: skia.Canvas, width: int, height: int, rng: np.random.Generator) -> None:
    """Square or chequered tiles, or patterned wallpaper."""
    first, second = natural_color(rng), natural_color(rng)
    side = height * rng.uniform(0.05, 0.2)
    kind = str(rng.choice(["grid", "chequers", "dots", "zigzag"]))
    _fill(canvas, width, height, first)
    if kind == "zigzag":
        path = skia.Path()
        for y in np.arange(-side, height + side, 0.6 * side):
            path.moveTo(0, float(y))
            for number in range(int(width / side * 2) + 2):
                path.lineTo(number * side / 2, float(y) + (number % 2) * side / 2)
        canvas.drawPath(path, pen(second, 0.14 * side))
        return
    for row in range(int(height / side) + 1):
        for column in range(int(width / side) + 1):
            x, y = column * side, row * side
            if kind == "dots":
                shift = 0.5 * side * (row % 2)
                canvas.drawCircle(x + shift, y, 0.22 * side, paint(second))
            elif kind == "grid" or (row + column) % 2:
                tile = skia.Rect(x, y, x + 0.95 * side, y + 0.95 * side)
                canvas.drawRect(tile, paint(shade(second, rng.normal(1, 0.04))))


def draw_script(
    canvas: skia.Canvas, box: skia.Rect, line: float, color: Color, rng: np.random.Generator
) -> None:
    """Write lines of made-up letters into a box.

    Args:
        line: height of a line in pixels.
    """
    path = skia.Path()
    y = box.top() + line
    while y < box.bottom() - 0.3 * line:
        x, end = box.left() + 0.4 * line, box.right() - rng.uniform(0.05, 0.5) * box.width()
        while x < end:
            for _ in range(int(rng.integers(*GLYPH_STROKES))):
                a, b = rng.uniform(0, 0.5, 2) * line, rng.uniform(-0.6, 0.0, 2) * line
                path.moveTo(x + float(a[0]), y + float(b[0]))
                path.quadTo(
                    x + float(rng.uniform(0, 0.5)) * line, y - float(rng.uniform(0, 0.6)) * line,
                    x + float(a[1]), y + float(b[1]),
                )  # fmt: skip
            x += line * (0.62 if rng.random() < 0.82 else 1.1)
        y += line * 1.25
    canvas.drawPath(path, pen(color, 0.1 * line))


def _script(canvas: skia.Canvas, width: int, height: int, rng: np.random.Generator) -> None:
    """A board, a screen or a page full of writing."""
    dark = rng.random() < 0.5
    board = shade(natural_color(rng), 0.4) if dark else blend(natural_color(rng), (1, 1, 1), 0.7)
    ink = (0.9, 0.92, 0.88) if dark else shade(natural_color(rng), 0.4)
    _fill(canvas, width, height, board)
    line = height * float(rng.uniform(0.045, 0.13))
    for column in range(int(rng.integers(1, 4))):
        left = width * (0.02 + 0.33 * column)
        box = skia.Rect(left, rng.uniform(0, 0.2) * height, left + 0.45 * width, height)
        draw_script(canvas, box, line, ink, rng)


def _foliage(canvas: skia.Canvas, width: int, height: int, rng: np.random.Generator) -> None:
    """Layers of leaves, the nearer ones brighter, with light between them."""
    tone = blend((0.2, 0.38, 0.14), natural_color(rng), rng.uniform(0, 0.4))
    _fill(canvas, width, height, blend(shade(tone, 0.3), (0.75, 0.85, 0.95), rng.uniform(0, 0.6)))
    size = height * rng.uniform(0.02, 0.055)
    for layer in range(3):
        count = int(0.55 * width * height / size**2 / 3)
        for x, y, turn, light in zip(
            rng.uniform(0, width, count), rng.uniform(0, height, count),
            rng.uniform(0, 180, count), rng.normal(0.45 + 0.35 * layer, 0.16, count), strict=True,
        ):  # fmt: skip
            leaf = oval(0, 0, size, 0.42 * size)
            place = skia.Matrix()
            place.setTranslate(float(x), float(y))
            place.preRotate(float(turn))
            leaf.transform(place)
            canvas.drawPath(leaf, paint(shade(tone, max(float(light), 0.1))))


def _cabinet(canvas: skia.Canvas, width: int, height: int, rng: np.random.Generator) -> None:
    """Shelves of leaning and lying books, boxes, vases and bowls."""
    wood = shade(natural_color(rng), 0.8)
    _fill(canvas, width, height, shade(wood, 0.45))
    board = height / rng.uniform(2.2, 5.0)
    for y in np.arange(-rng.uniform(0, 0.5) * board, height, board):
        x, floor = 0.0, float(y) + 0.95 * board
        while x < width:
            draw = rng.random()
            wide = float(rng.uniform(0.012, 0.045)) * height
            tall = board * float(rng.uniform(0.45, 0.85))
            tone = SPINE_TONES[int(rng.integers(len(SPINE_TONES)))]
            color = shade(blend(tone, natural_color(rng), 0.25), rng.uniform(0.6, 1.3))
            if draw < 0.75:
                ends = [shade(color, 1.15), shade(color, 0.65)]
                spine = gradient((x, 0), (x + wide, 0), ends)
                canvas.drawRect(skia.Rect(x, floor - tall, x + wide, floor), spine)
                for place in (0.18, 0.8):
                    band = floor - tall * (1 - place)
                    canvas.drawRect(
                        skia.Rect(x, band, x + wide, band + 0.03 * tall), paint(shade(color, 1.6))
                    )
            elif draw < 0.9:  # a vase or a bowl
                wide = 0.35 * board
                pot = oval(x + wide / 2, floor - 0.35 * tall, wide / 2, 0.35 * tall)
                tones = [shade(color, 1.4), shade(color, 0.5)]
                canvas.drawPath(pot, gradient((x, 0), (x + wide, 0), tones))
            else:
                wide = float(rng.uniform(0.1, 0.4)) * board
            x += wide + 0.7
        canvas.drawRect(skia.Rect(0, floor, width, floor + 0.06 * board), paint(wood))
    for x in np.arange(rng.uniform(0, 0.5) * width, width, rng.uniform(0.4, 0.9) * width):
        canvas.drawRect(skia.Rect(x, 0, x + 0.03 * height, height), paint(shade(wood, 0.85)))


def _curtain(canvas: skia.Canvas, width: int, height: int, rng: np.random.Generator) -> None:
    """Folds of cloth from top to bottom."""
    color = natural_color(rng)
    _fill(canvas, width, height, color)
    x = 0.0
    while x < width:
        wide = height * float(rng.uniform(0.03, 0.14))
        deep = float(rng.uniform(0.45, 0.85))
        tones = [shade(color, deep), shade(color, 1.2), shade(color, deep)]
        fold = skia.Path()
        lean = float(rng.normal(0, 0.02)) * height
        fold.addPoly(
            [(x, 0), (x + wide + 1, 0), (x + wide + 1 + lean, height), (x + lean, height)], True
        )
        canvas.drawPath(fold, gradient((x, 0), (x + wide, 0), tones))
        x += wide


def _panels(canvas: skia.Canvas, width: int, height: int, rng: np.random.Generator) -> None:
    """Boards of wood with grain, upright or across."""
    color = shade(natural_color(rng), 0.9)
    if rng.random() < 0.5:
        canvas.translate(width / 2, height / 2)
        canvas.rotate(90)
        canvas.scale(height / width, width / height)
        canvas.translate(-width / 2, -height / 2)
    wide = width * float(rng.uniform(0.04, 0.16))
    for x in np.arange(0, width, wide):
        tone = shade(color, float(rng.normal(1, 0.12)))
        canvas.drawRect(skia.Rect(x, 0, x + wide, height), paint(tone))
        grain = skia.Path()
        for _ in range(6):
            at = float(x + rng.uniform(0, wide))
            grain.moveTo(at, 0)
            drift = float(rng.normal(0, 0.08)) * wide
            grain.cubicTo(at + drift, height / 3, at - drift, 2 * height / 3, at, height)
        canvas.drawPath(grain, pen(shade(tone, 0.75), max(0.02 * wide, 0.5), 0.6))
        canvas.drawRect(skia.Rect(x, 0, x + max(0.06 * wide, 1), height), paint(shade(tone, 0.5)))
    canvas.resetMatrix()
