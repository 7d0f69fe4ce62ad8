"""Textures of skin, hair and cloth: tiles painted once for a speaker, repeated by shaders."""

import numpy as np
import skia
from scipy.ndimage import gaussian_filter

from cavmae.datasets.synthetic.appearance import Appearance
from cavmae.datasets.synthetic.canvas import Color, blend, gradient, shade

TILE = 64  # pixels a side
PATTERNS = ("plain", "plain", "knit", "stripes", "bars", "checks", "dots", "blotches", "melange")
# Cloth as worn: dark, grey, white, denim, beige, olive, wine.
WORN = ((0.09, 0.09, 0.11), (0.16, 0.18, 0.24), (0.45, 0.45, 0.47), (0.88, 0.87, 0.84),
        (0.25, 0.36, 0.52), (0.70, 0.60, 0.47), (0.33, 0.35, 0.22), (0.42, 0.13, 0.18))  # fmt: skip


class Surface:
    """Textured, shaded paints of a person. Units of the drawing: head heights.

    Args:
        light: -1 from the left to 1 from the right.
        rng: of the patterns.
    """

    def __init__(self, appearance: Appearance, light: float, rng: np.random.Generator):
        self._light = light
        cloth, cloth2 = appearance.cloth, appearance.cloth2
        if rng.random() < 0.7:
            cloth = blend(WORN[int(rng.integers(len(WORN)))], cloth, rng.uniform(0, 0.25))
        side = -1 if light > 0 else 1
        pattern = str(rng.choice(PATTERNS))
        size = float(rng.uniform(0.12, 0.45))
        grey: list[Color] = [(1, 1, 1), (0.86, 0.86, 0.86), (0.5, 0.5, 0.52)]
        across = gradient((-0.8 * side, 0.5), (0.9 * side, 1.3), grey)
        tile = _cloth_tile(pattern, cloth, cloth2, rng)
        self.cloth = _textured(across.getShader(), tile, size / TILE)
        self.wrap = _textured(across.getShader(), _cloth_tile("plain", cloth2, cloth, rng), 0.004)
        self.skin = self._skin(appearance, 1.08, rng)
        hair = gradient((-0.4 * side, -0.6), (0.45 * side, 0.3), [
            shade(appearance.hair, 1.5), shade(appearance.hair, 1.1), shade(appearance.hair, 0.6),
        ])  # fmt: skip
        streaks = np.clip(0.86 + 0.26 * _noise(rng, (9.0, 0.7)), 0.4, 1.0)
        self.hair = _textured(hair.getShader(), _grey(streaks), 0.008)
        self.back = _textured(
            skia.Shaders.Color(skia.Color4f(*shade(appearance.hair, 0.75), 1).toColor()),
            _grey(streaks), 0.008,
        )  # fmt: skip
        self.neck = _textured(
            gradient((0, 0.42), (0, 0.75), [
                shade(appearance.skin, 0.5), shade(appearance.skin, 0.86),
            ]).getShader(),
            _grey(np.clip(0.97 + 0.1 * _noise(rng, 1.0), 0, 1)), 0.006,
        )  # fmt: skip

    def _skin(self, appearance: Appearance, bright: float, rng: np.random.Generator) -> skia.Paint:
        """Skin lit from one side, darker towards the outline, with blotches."""
        skin, side = appearance.skin, -1 if self._light > 0 else 1
        tones = [shade(skin, bright), skin, shade(skin, 0.62)]
        lit = gradient((-0.42 * side, -0.2), (0.42 * side, 0.2), tones).getShader()
        middle = (-0.12 * side, -0.05)
        rim = skia.GradientShader.MakeRadial(
            middle, 0.62, [skia.ColorWHITE, skia.ColorSetRGB(240, 232, 230),
                           skia.ColorSetRGB(150, 130, 126)],
        )  # fmt: skip
        blotches = np.clip(0.96 + 0.05 * _noise(rng, 1.0) + 0.04 * _noise(rng, 6.0), 0, 1)
        lit = skia.Shaders.Blend(skia.BlendMode.kMultiply, lit, rim)
        return _textured(lit, _grey(blotches), 0.006)


def _noise(rng: np.random.Generator, sigma: float | tuple[float, float]) -> np.ndarray:
    """Smooth noise of a tile that repeats without seams: standard deviation 0.5."""
    noise = gaussian_filter(rng.normal(size=(TILE, TILE)), sigma, mode="wrap")
    scaled: np.ndarray = 0.5 * noise / max(float(noise.std()), 1e-6)
    return scaled


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def _cloth_tile(pattern: str, first: Color, second: Color, rng: np.random.Generator) -> np.ndarray:
    """Tile of cloth, float64 [TILE, TILE, 3] in [0, 1]."""
    y, x = np.mgrid[:TILE, :TILE] / TILE
    share = np.zeros((TILE, TILE))  # of the second colour
    thread = 1 + 0.07 * _noise(rng, 0.6)
    if pattern == "knit":
        wave = np.abs(((8 * x) % 1) - 0.5)
        thread *= 0.8 + 0.25 * np.cos(2 * np.pi * (8 * y + wave))
    elif pattern in ("stripes", "bars"):
        along = y if pattern == "stripes" else x
        wide = rng.uniform(0.15, 0.6)
        share = ((2 * along) % 1 < wide).astype(float)
    elif pattern == "checks":
        share = 0.45 * ((2 * x) % 1 < 0.5) + 0.45 * ((2 * y) % 1 < 0.5)
        share = np.where((x % 1 < 0.06) | (y % 1 < 0.06), 0.9, share)
    elif pattern == "dots":
        around = np.minimum(((4 * x) % 1 - 0.5) ** 2 + ((4 * y) % 1 - 0.5) ** 2, 1)
        share = (around < rng.uniform(0.02, 0.1)).astype(float)
    elif pattern == "blotches":
        share = np.clip(3 * _noise(rng, 4.0) - 0.3, 0, 1)
    elif pattern == "melange":
        share = np.clip(0.3 + 0.3 * _noise(rng, 0.8), 0, 1)
    colors = np.array(first) + share[..., None] * (np.array(second) - np.array(first))
    return np.clip(colors * thread[..., None], 0, 1)


def _textured(base: skia.Shader, tile: np.ndarray, scale: float) -> skia.Paint:
    """Filling with a shader, multiplied by a repeated tile.

    Args:
        tile: float64 [TILE, TILE, 3] in [0, 1].
        scale: size of a pixel of the tile in units of the drawing.
    """
    pixels = np.full((TILE, TILE, 4), 255, np.uint8)
    pixels[..., :3] = np.rint(255 * tile)
    image = skia.Image.fromarray(pixels, skia.kRGBA_8888_ColorType)
    place = skia.Matrix()
    place.setScale(scale, scale)
    texture = image.makeShader(
        skia.TileMode.kRepeat, skia.TileMode.kRepeat,
        skia.SamplingOptions(skia.FilterMode.kLinear, skia.MipmapMode.kNearest), place,
    )  # fmt: skip
    filling = skia.Paint(AntiAlias=True)
    filling.setShader(skia.Shaders.Blend(skia.BlendMode.kMultiply, base, texture))
    return filling


def fold_lines(rng: np.random.Generator, shoulders: float) -> skia.Path:
    """Creases of cloth over chest and arms."""
    path = skia.Path()
    for side in (-1, 1):
        inner = side * (shoulders - float(rng.uniform(0.2, 0.28)))
        path.moveTo(inner, 1.0)
        path.quadTo(inner - side * 0.04, 1.4, inner + side * 0.02, 2.4)
        for _ in range(4):
            x, y = side * float(rng.uniform(0.1, shoulders)), float(rng.uniform(0.8, 1.8))
            path.moveTo(x, y)
            bend = float(rng.uniform(-0.1, 0.25))
            path.quadTo(
                x - side * 0.1, y + bend, x - side * float(rng.uniform(0.15, 0.35)), y + bend
            )
    return path
