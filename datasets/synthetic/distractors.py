"""Objects that are taken for people: furniture, doors, lamps, posters, dummies, clothes."""

from collections.abc import Sequence

import numpy as np
import skia

from cavmae.datasets.synthetic.appearance import draw_appearance
from cavmae.datasets.synthetic.canvas import (
    Canvas,
    blend,
    glow,
    gradient,
    oval,
    paint,
    pen,
    placement,
    shade,
)  # fmt: skip
from cavmae.datasets.synthetic.face import Pose
from cavmae.datasets.synthetic.figure import Figure
from cavmae.datasets.synthetic.scenery import draw_script, natural_color


def paint_objects(
    canvas: skia.Canvas,
    kinds: Sequence[str],
    size: tuple[int, int],
    rng: np.random.Generator,
) -> None:
    """Paint objects at random places of a backdrop.

    Args:
        kinds: some of :data:`~cavmae.datasets.synthetic.staging.OBJECTS`.
        size: (width, height) of the backdrop in pixels.
    """
    width, height = size
    painters = {
        "armchair": _armchair, "sofa": _sofa, "office chair": _office_chair,
        "wooden chair": _wooden_chair, "table": _table, "door": _door, "lamp": _lamp,
        "poster": _poster, "bust": _bust, "coat": _coat, "picture": _picture,
    }  # fmt: skip
    for kind in kinds:
        canvas.save()
        scale = height * float(rng.uniform(0.35, 0.7))
        canvas.translate(
            float(rng.uniform(0.02, 0.98)) * width, float(rng.uniform(0.25, 0.75)) * height
        )
        canvas.scale(scale, scale)
        painters[kind](canvas, rng)
        canvas.restore()


def _cushion(
    canvas: skia.Canvas, box: skia.Rect, round_: float, rng_tone: tuple[float, ...]
) -> None:
    tone = (rng_tone[0], rng_tone[1], rng_tone[2])
    fill = gradient((box.left(), box.top()), (box.right(), box.bottom()),
                    [shade(tone, 1.25), shade(tone, 0.6)])  # fmt: skip
    canvas.drawRoundRect(box, round_, round_, fill)
    canvas.drawRoundRect(box, round_, round_, pen(shade(tone, 0.5), 0.012))


def _armchair(canvas: skia.Canvas, rng: np.random.Generator) -> None:
    """A high back with round shoulders, two arms and a seat."""
    tone = natural_color(rng)
    high = float(rng.uniform(0.4, 0.7))
    _cushion(canvas, skia.Rect(-0.42, -high, 0.42, 0.6), float(rng.uniform(0.12, 0.4)), tone)
    for x in np.linspace(-0.24, 0.24, 3) if rng.random() < 0.5 else ():
        for y in (-0.3, -0.1, 0.1):
            canvas.drawCircle(float(x), y, 0.018, paint(shade(tone, 0.45)))
    _cushion(canvas, skia.Rect(-0.4, 0.25, 0.4, 0.7), 0.1, shade(tone, 1.05))
    for side in (-1, 1):
        left, right = sorted((side * 0.38, side * 0.6))
        _cushion(canvas, skia.Rect(left, 0.05, right, 2.5), 0.1, shade(tone, 0.95))
    canvas.drawRect(skia.Rect(-0.4, 0.6, 0.4, 2.5), paint(shade(tone, 0.7)))


def _sofa(canvas: skia.Canvas, rng: np.random.Generator) -> None:
    """Two or three backs side by side, with cushions."""
    tone = natural_color(rng)
    count = int(rng.integers(2, 4))
    for number in range(count):
        left = (number - count / 2) * 0.75
        _cushion(canvas, skia.Rect(left, -0.25, left + 0.77, 0.5), 0.14, shade(tone, 1.05))
    for _ in range(int(rng.integers(0, 3))):
        x = float(rng.uniform(-0.5, 0.5)) * count * 0.7
        canvas.save()
        canvas.rotate(float(rng.uniform(-25, 25)), x, 0.2)
        _cushion(canvas, skia.Rect(x - 0.2, 0, x + 0.2, 0.4), 0.08, natural_color(rng))
        canvas.restore()
    edge = count * 0.375
    _cushion(canvas, skia.Rect(-edge, 0.4, edge, 2.5), 0.08, shade(tone, 0.85))
    for side in (-1, 1):
        left, right = sorted((side * edge, side * (edge + 0.25)))
        _cushion(canvas, skia.Rect(left, 0.05, right, 2.5), 0.12, tone)


def _office_chair(canvas: skia.Canvas, rng: np.random.Generator) -> None:
    """A narrow headrest over a wide back: the outline of head and shoulders."""
    tone = blend((0.08, 0.08, 0.09), natural_color(rng), rng.uniform(0, 0.6))
    if rng.random() < 0.7:
        _cushion(canvas, skia.Rect(-0.2, -0.6, 0.2, -0.32), 0.1, tone)
        canvas.drawRect(skia.Rect(-0.05, -0.34, 0.05, -0.15), paint(shade(tone, 0.6)))
    back = skia.Path()
    back.moveTo(-0.3, -0.15)
    back.cubicTo(-0.2, -0.26, 0.2, -0.26, 0.3, -0.15)
    back.cubicTo(0.42, 0.1, 0.4, 0.4, 0.34, 0.7)
    back.lineTo(-0.34, 0.7)
    back.cubicTo(-0.4, 0.4, -0.42, 0.1, -0.3, -0.15)
    ends = [shade(tone, 1.5), shade(tone, 0.7)]
    canvas.drawPath(back, gradient((-0.3, -0.2), (0.3, 0.6), ends))
    for side in (-1, 1):
        canvas.drawLine(side * 0.48, 0.35, side * 0.42, 0.75, pen(shade(tone, 0.8), 0.07))


def _wooden_chair(canvas: skia.Canvas, rng: np.random.Generator) -> None:
    """A back of posts and rungs over a seat and legs; the wall shows through."""
    tone = shade(natural_color(rng), rng.uniform(0.2, 0.8))
    wide, high = float(rng.uniform(0.2, 0.34)), float(rng.uniform(0.5, 0.8))
    line = pen(tone, float(rng.uniform(0.04, 0.09)))
    for side in (-1, 1):
        canvas.drawLine(side * wide, -high, side * wide * 1.05, 0.3, line)
        canvas.drawLine(side * wide * 1.1, 0.3, side * wide * 1.2, 1.6, line)
    if rng.random() < 0.5:
        for y in np.linspace(-high + 0.05, 0.1, int(rng.integers(2, 5))):
            canvas.drawLine(-wide, float(y), wide, float(y), line)
    else:
        canvas.drawLine(-wide, -high, wide, -high, line)
        for x in np.linspace(-wide, wide, int(rng.integers(3, 6))):
            canvas.drawLine(float(x), -high, float(x), 0.3, line)
    _cushion(canvas, skia.Rect(-1.2 * wide, 0.26, 1.2 * wide, 0.4), 0.04, shade(tone, 1.2))


def _table(canvas: skia.Canvas, rng: np.random.Generator) -> None:
    """A table top seen from above its front edge, with papers and vessels on it."""
    tone = natural_color(rng)
    back, front = float(rng.uniform(0.5, 0.9)), float(rng.uniform(0.9, 1.5))
    deep = float(rng.uniform(0.25, 0.6))
    top = skia.Path()
    top.addPoly([(-back, 0), (back, 0), (front, deep), (-front, deep)], True)
    canvas.drawRect(skia.Rect(-0.95 * front, deep, 0.95 * front, 2.5), paint(shade(tone, 0.35)))
    canvas.drawPath(top, gradient((0, 0), (0, deep), [shade(tone, 0.9), shade(tone, 1.2)]))
    canvas.drawRect(skia.Rect(-front, deep, front, deep + 0.07), paint(shade(tone, 0.6)))
    for _ in range(int(rng.integers(1, 7))):
        x, y = float(rng.uniform(-0.8, 0.8)) * back, float(rng.uniform(0.1, 0.9)) * deep
        canvas.save()
        canvas.translate(x, y)
        if rng.random() < 0.6:  # a sheet, foreshortened
            canvas.scale(1, 0.5)
            canvas.rotate(float(rng.uniform(-40, 40)))
            sheet = paint(shade((0.95, 0.95, 0.93), rng.uniform(0.7, 1.05)))
            canvas.drawRect(skia.Rect(-0.13, -0.18, 0.13, 0.18), sheet)
        else:
            wide, high = (float(v) for v in rng.uniform((0.03, 0.08), (0.09, 0.3)))
            _cushion(canvas, skia.Rect(-wide, -high, wide, 0.02), 0.02, natural_color(rng))
        canvas.restore()


def _door(canvas: skia.Canvas, rng: np.random.Generator) -> None:
    """A door in its frame, closed or open on a dark room."""
    tone = natural_color(rng)
    wide, high = float(rng.uniform(0.3, 0.5)), float(rng.uniform(0.6, 1.2))
    canvas.drawRect(skia.Rect(-wide - 0.06, -high - 0.06, wide + 0.06, 3), paint(shade(tone, 1.2)))
    leaf = shade(tone, 0.25) if rng.random() < 0.4 else shade(tone, 0.9)
    canvas.drawRect(skia.Rect(-wide, -high, wide, 3), paint(leaf))
    for y in (-high + 0.1, -high + 0.1 + 0.8 * high):
        panel = skia.Rect(-0.75 * wide, y, 0.75 * wide, y + 0.65 * high)
        canvas.drawRect(panel, pen(shade(leaf, 0.7), 0.02))
    canvas.drawCircle(0.8 * wide, 0.3, 0.03, paint(shade(tone, 0.4)))


def _lamp(canvas: skia.Canvas, rng: np.random.Generator) -> None:
    """A shade of the size of a head on a pole, lit or not."""
    tone = blend((0.95, 0.88, 0.7), natural_color(rng), rng.uniform(0, 0.5))
    canvas.drawLine(0, 0, 0, 3, pen(shade(natural_color(rng), 0.5), 0.04))
    if rng.random() < 0.6:
        canvas.drawPath(oval(0, 0, 0.9, 0.9), glow((0, 0), 0.9, (1, 0.92, 0.7), 0.55))
    shape = oval(0, -0.1, 0.26, 0.26)
    if rng.random() < 0.7:
        top, low = float(rng.uniform(0.1, 0.25)), float(rng.uniform(0.22, 0.38))
        shape = skia.Path()
        shape.addPoly([(-top, -0.35), (top, -0.35), (low, 0.12), (-low, 0.12)], True)
    tones = [shade(tone, 0.75), shade(tone, 1.15), shade(tone, 0.7)]
    canvas.drawPath(shape, gradient((-0.35, 0), (0.35, 0), tones))


def _poster(canvas: skia.Canvas, rng: np.random.Generator) -> None:
    """A flat, still portrait in a frame, in colour or faded, with or without writing."""
    side = 192
    print_ = Canvas((side, side))
    background = paint(natural_color(rng))
    print_.color_canvas.drawRect(skia.Rect(0, 0, side, side), background)
    seed = int(rng.integers(2**62))
    figure = Figure(draw_appearance(seed, seed), (1, 2), float(rng.uniform(-1, 1)), None, (), seed)
    yaw, pitch = (float(v) for v in rng.uniform(-0.8, 0.8, 2))
    pose = Pose(yaw, pitch, 0, 0, 0, 0)
    head = side * float(rng.uniform(0.4, 0.75))
    with print_.transformed(placement(side / 2, side * 0.45, float(rng.normal(0, 4)), head)):
        figure.draw_back(print_, pose)
        figure.draw_torso(print_, 0.0)
        figure.draw_neck(print_, (0.0, 0.0))
        figure.draw_head(print_, pose, (float(rng.uniform(0, 0.5)), 0.4, 0.5, 0.0), 0.0)
    image = skia.Image.fromarray(print_.pixels, skia.kRGBA_8888_ColorType)
    wide, tall = float(rng.uniform(0.28, 0.45)), float(rng.uniform(0.4, 0.55))
    frame = skia.Rect(-wide, -tall, wide, tall)
    filling = skia.Paint(AntiAlias=True)
    if rng.random() < 0.4:  # faded, or printed in one colour
        r, g, b = natural_color(rng)
        rows = ((0.3 * c, 0.5 * c, 0.2 * c, 0, 0.12) for c in (r + 0.3, g + 0.3, b + 0.3))
        matrix = [value for row in rows for value in row] + [0, 0, 0, 1, 0]
        filling.setColorFilter(skia.ColorFilters.Matrix(matrix))
    crop = (side - side * wide / tall) / 2
    source = skia.Rect(max(crop, 0), 0, side - max(crop, 0), side)
    sampling = skia.SamplingOptions(skia.FilterMode.kLinear, skia.MipmapMode.kLinear)
    canvas.drawImageRect(image, source, frame, sampling, filling)
    if rng.random() < 0.4:
        box = skia.Rect(-wide, tall - 0.22, wide, tall)
        canvas.drawRect(box, paint(natural_color(rng)))
        draw_script(canvas, box, 0.09, (0.95, 0.95, 0.92), rng)
    canvas.drawRect(frame, pen(shade(natural_color(rng), 0.6), float(rng.uniform(0.01, 0.06))))


def _bust(canvas: skia.Canvas, rng: np.random.Generator) -> None:
    """A statue or a dummy: head and shoulders of one tone, without a face."""
    tone = blend((0.85, 0.83, 0.78), natural_color(rng), rng.uniform(0, 0.7))
    ends = [shade(tone, 1.15), shade(tone, 0.55)]
    body = skia.Path()
    body.moveTo(-0.1, 0.2)
    body.cubicTo(-0.12, 0.4, -0.45, 0.35, -0.48, 0.7)
    body.lineTo(-0.3, 1.0)
    body.lineTo(0.3, 1.0)
    body.lineTo(0.48, 0.7)
    body.cubicTo(0.45, 0.35, 0.12, 0.4, 0.1, 0.2)
    canvas.drawPath(body, gradient((-0.4, 0.2), (0.4, 0.8), ends))
    canvas.drawPath(oval(0, -0.02, 0.2, 0.28), gradient((-0.2, -0.2), (0.2, 0.2), ends))
    canvas.drawRect(skia.Rect(-0.2, 1.0, 0.2, 3), paint(shade(natural_color(rng), 0.6)))


def _coat(canvas: skia.Canvas, rng: np.random.Generator) -> None:
    """A coat on a hook: shoulders and sleeves without a head, perhaps under a hat."""
    tone = shade(natural_color(rng), 0.8)
    body = skia.Path()
    body.moveTo(0, -0.2)
    body.cubicTo(0.25, -0.15, 0.4, 0, 0.42, 0.25)
    body.lineTo(0.36, 1.3)
    body.lineTo(-0.36, 1.3)
    body.lineTo(-0.42, 0.25)
    body.cubicTo(-0.4, 0, -0.25, -0.15, 0, -0.2)
    canvas.drawPath(body, gradient((-0.4, 0), (0.4, 0.3), [shade(tone, 1.2), shade(tone, 0.6)]))
    for x in (-0.28, 0.0, 0.28):
        canvas.drawLine(x, 0.1, 1.05 * x, 1.25, pen(shade(tone, 0.5), 0.02))
    if rng.random() < 0.4:
        hat = shade(natural_color(rng), 0.7)
        canvas.drawPath(oval(0, -0.28, 0.34, 0.07), paint(hat))
        canvas.drawRoundRect(skia.Rect(-0.19, -0.5, 0.19, -0.26), 0.08, 0.08, paint(hat))


def _picture(canvas: skia.Canvas, rng: np.random.Generator) -> None:
    """A framed landscape or an abstract painting."""
    wide, tall = (float(v) for v in rng.uniform(0.2, 0.5, 2))
    frame = skia.Rect(-wide, -tall, wide, tall)
    canvas.save()
    canvas.clipRect(frame)
    ends = [natural_color(rng), natural_color(rng)]
    canvas.drawRect(frame, gradient((0, -tall), (0, tall), ends))
    for _ in range(int(rng.integers(3, 9))):
        x, y = rng.uniform(-wide, wide), rng.uniform(-tall, tall)
        blob = oval(x, y, rng.uniform(0.03, 0.3), rng.uniform(0.03, 0.3))
        canvas.drawPath(blob, paint(natural_color(rng), rng.uniform(0.4, 1)))
    canvas.restore()
    canvas.drawRect(frame, pen(shade(natural_color(rng), 0.6), float(rng.uniform(0.02, 0.07))))
