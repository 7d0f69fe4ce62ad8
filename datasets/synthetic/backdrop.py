"""Backdrops: painted once a clip, blurred, larger than the frame to allow camera shake."""

from collections.abc import Sequence

import numpy as np
import skia

from cavmae.datasets.synthetic.canvas import Color, glow, gradient, oval, paint, pen, shade
from cavmae.datasets.synthetic.distractors import paint_objects
from cavmae.datasets.synthetic.scenery import paint_scenery

MARGIN = 0.05  # of height and width together, on every side: room for camera shake and roll
KINDS = ("gradient", "texture", "shelf", "room", "street", "bokeh")


def paint_backdrop(
    size: tuple[int, int],
    rng: np.random.Generator,
    textured: bool = False,
    objects: Sequence[str] = (),
) -> skia.Image:
    """Paint a random backdrop.

    Args:
        size: (width, height) of a frame in pixels; the image is larger by the margin.
        textured: whether it is brick, script, foliage and the like, not plain.
        objects: kinds of objects in it that are taken for people.
    """
    margin = margin_pixels(size)
    width, height = size[0] + 2 * margin, size[1] + 2 * margin
    surface = skia.Surface(width, height)
    canvas = surface.getCanvas()
    first, second = _color(rng), _color(rng)
    angle = rng.uniform(0, 2 * np.pi)
    span = (width * np.cos(angle), height * np.sin(angle))
    whole = skia.Rect(0, 0, width, height)
    canvas.drawRect(whole, gradient((0, 0), (abs(span[0]) + 1, abs(span[1]) + 1), [first, second]))
    kind = "scenery" if textured else str(rng.choice(KINDS))
    {
        "gradient": lambda *_: None,
        "texture": _texture,
        "shelf": _shelf,
        "room": _room,
        "street": _street,
        "bokeh": _bokeh,
        "scenery": paint_scenery,
    }[kind](canvas, width, height, rng)
    sigma = float(rng.uniform(0.0, 0.018)) * height * (kind != "gradient")
    if textured:
        sigma *= 0.6 * (rng.random() < 0.6)
    paint_objects(canvas, objects, (width, height), rng)
    blurred = skia.Surface(width, height)
    filling = skia.Paint()
    if sigma > 0.3:
        filling.setImageFilter(skia.ImageFilters.Blur(sigma, sigma, skia.TileMode.kClamp))
    blurred.getCanvas().drawImage(
        surface.makeImageSnapshot(), 0, 0, skia.SamplingOptions(), filling
    )
    return blurred.makeImageSnapshot()


def margin_pixels(size: tuple[int, int]) -> int:
    """Margin in pixels of a backdrop around the frame, on every side."""
    return round(MARGIN * sum(size))


def _color(rng: np.random.Generator) -> Color:
    grey = rng.uniform(0.1, 0.9)
    tint = rng.uniform(-0.25, 0.25, 3)
    return tuple(float(c) for c in np.clip(grey + tint, 0.03, 0.97))  # type: ignore[return-value]


def _texture(canvas: skia.Canvas, width: int, height: int, rng: np.random.Generator) -> None:
    """Marble, plaster or wood: noise with a random stretch."""
    fine = rng.uniform(0.004, 0.05) * 224 / height
    filling = skia.Paint(AntiAlias=True)
    filling.setShader(
        skia.PerlinNoiseShader.MakeFractalNoise(
            fine * rng.uniform(0.2, 1), fine, int(rng.integers(1, 5)), int(rng.integers(1000))
        )
    )
    filling.setAlphaf(float(rng.uniform(0.3, 0.9)))
    filling.setBlendMode(
        skia.BlendMode.kSoftLight if rng.random() < 0.5 else skia.BlendMode.kOverlay
    )
    canvas.drawRect(skia.Rect(0, 0, width, height), filling)


def _shelf(canvas: skia.Canvas, width: int, height: int, rng: np.random.Generator) -> None:
    """Boards with books of many colours."""
    board = height / rng.uniform(2.5, 4.5)
    wood = shade((0.5, 0.36, 0.22), rng.uniform(0.4, 1.4))
    for y in np.arange(0, height, board):
        x = 0.0
        while x < width:
            wide, tall = rng.uniform(0.015, 0.05) * height, board * rng.uniform(0.5, 0.88)
            if rng.random() < 0.88:
                book = skia.Rect(x, y + board - tall, x + wide, y + board)
                canvas.drawRect(book, paint(_color(rng)))
            x += wide + 0.6
        canvas.drawRect(skia.Rect(0, y + board * 0.95, width, y + board), paint(wood))


def _room(canvas: skia.Canvas, width: int, height: int, rng: np.random.Generator) -> None:
    """A wall with windows or doors, a lamp and a plant."""
    for _ in range(int(rng.integers(2, 6))):
        w, h = rng.uniform(0.12, 0.5, 2) * height
        x, y = rng.uniform(-0.1, 0.95) * width, rng.uniform(-0.05, 0.6) * height
        frame = skia.Rect(x, y, x + w, y + h)
        canvas.drawRect(frame, gradient((x, y), (x + w, y + h), [_color(rng), _color(rng)]))
        canvas.drawRect(frame, pen(_color(rng), rng.uniform(0.005, 0.025) * height))
    if rng.random() < 0.6:
        x, y = rng.uniform(0, width), rng.uniform(0, 0.4) * height
        canvas.drawPath(
            oval(x, y, 0.4 * height, 0.4 * height), glow((x, y), 0.4 * height, (1, 0.95, 0.8), 0.6)
        )
    leaf = (0.15, rng.uniform(0.3, 0.6), 0.18)
    root = rng.uniform(0, width)
    for _ in range(int(rng.integers(0, 30))):
        x, y = root + rng.normal(0, 0.1) * height, height * rng.uniform(0.4, 0.95)
        size = rng.uniform(0.02, 0.06) * height
        canvas.drawPath(oval(x, y, size, size / 3), paint(shade(leaf, rng.uniform(0.5, 1.5))))


def _street(canvas: skia.Canvas, width: int, height: int, rng: np.random.Generator) -> None:
    """Houses with windows under the sky."""
    x = -0.1 * width
    while x < width:
        wide, top = rng.uniform(0.15, 0.4) * height, rng.uniform(0.05, 0.6) * height
        wall = _color(rng)
        canvas.drawRect(skia.Rect(x, top, x + wide, height), paint(wall))
        step = rng.uniform(0.06, 0.11) * height
        lit = paint((0.98, 0.9, 0.6) if rng.random() < 0.5 else shade(wall, 0.5))
        for wx in np.arange(x + step / 2, x + wide - step / 2, step):
            for wy in np.arange(top + step / 2, height, step * 1.3):
                if rng.random() < 0.7:
                    canvas.drawRect(skia.Rect(wx, wy, wx + step / 2, wy + step * 0.7), lit)
        x += wide


def _bokeh(canvas: skia.Canvas, width: int, height: int, rng: np.random.Generator) -> None:
    """Lights out of focus."""
    for _ in range(int(rng.integers(10, 50))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        radius = rng.uniform(0.02, 0.12) * height
        canvas.drawPath(oval(x, y, radius, radius), paint(_color(rng), rng.uniform(0.15, 0.6)))
