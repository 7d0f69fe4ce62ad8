"""Appearance of a person: random, and the same in all their clips."""

import colorsys
import dataclasses

import numpy as np

from cavmae.datasets.synthetic.canvas import Color, blend
from cavmae.datasets.synthetic.population import rng_for

SKINS = (
    (0.98, 0.86, 0.76), (0.95, 0.80, 0.69), (0.91, 0.74, 0.60), (0.86, 0.67, 0.52),
    (0.76, 0.57, 0.42), (0.65, 0.46, 0.33), (0.53, 0.36, 0.26), (0.41, 0.28, 0.20),
    (0.31, 0.21, 0.16),
)  # fmt: skip
HAIR_COLORS = (
    (0.08, 0.07, 0.07), (0.16, 0.11, 0.08), (0.28, 0.18, 0.11), (0.42, 0.28, 0.16),
    (0.60, 0.43, 0.24), (0.80, 0.66, 0.40), (0.55, 0.25, 0.12), (0.62, 0.61, 0.60),
    (0.88, 0.87, 0.85), (0.35, 0.20, 0.38), (0.20, 0.36, 0.42),
)  # fmt: skip
HAIR_STYLES = ("bald", "short", "side", "long", "bob", "curly", "bun", "cap", "scarf")
BEARDS = ("none", "none", "none", "stubble", "moustache", "goatee", "full")
GLASSES = ("none", "none", "none", "round", "square", "dark")
CLOTHES = ("round", "v", "shirt", "hoodie", "stripes", "suit")
EYES = ((0.25, 0.16, 0.10), (0.38, 0.26, 0.14), (0.28, 0.45, 0.62), (0.30, 0.48, 0.33),
        (0.42, 0.44, 0.46))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Appearance:
    """Face, hair and clothes. Lengths are fractions of the head's height.

    Attributes:
        skin, hair, eyes, lips, cloth, cloth2: colours.
        style, beard, glasses, clothes: names of shapes.
        cheek, jaw, chin: half widths of the face at eyes, jaw and chin.
        eye_gap, eye_size, eye_height: place and size of the eyes.
        brow, nose, nose_width, mouth_width, lip, mouth_y: sizes and places.
        ear: size.
        shoulders: half width.
        wrinkles: strength of their lines, 0 to 1.
        teeth: brightness.
    """

    skin: Color
    hair: Color
    eyes: Color
    lips: Color
    cloth: Color
    cloth2: Color
    style: str
    beard: str
    glasses: str
    clothes: str
    cheek: float
    jaw: float
    chin: float
    eye_gap: float
    eye_size: float
    eye_height: float
    brow: float
    nose: float
    nose_width: float
    mouth_width: float
    lip: float
    mouth_y: float
    ear: float
    shoulders: float
    wrinkles: float
    teeth: float


def draw_appearance(family: int, person: int) -> Appearance:
    """Draw a random appearance.

    Args:
        family: seed that look-alikes share; it decides nearly everything.
        person: seed of the person, for small differences of proportion.
    """
    rng = rng_for("look", family)
    skin = blend(SKINS[int(rng.integers(len(SKINS)))], (0.9, 0.62, 0.52), rng.uniform(0, 0.2))
    hair = HAIR_COLORS[int(rng.integers(len(HAIR_COLORS)))]
    appearance = Appearance(
        skin=skin,
        hair=blend(hair, (0.3, 0.2, 0.15), rng.uniform(0, 0.15)),
        eyes=EYES[int(rng.integers(len(EYES)))],
        lips=blend(skin, (0.70, 0.20, 0.24), rng.uniform(0.30, 0.75)),
        cloth=_cloth(rng),
        cloth2=_cloth(rng),
        style=str(rng.choice(HAIR_STYLES)),
        beard=str(rng.choice(BEARDS)),
        glasses=str(rng.choice(GLASSES)),
        clothes=str(rng.choice(CLOTHES)),
        cheek=rng.uniform(0.31, 0.38),
        jaw=rng.uniform(0.22, 0.31),
        chin=rng.uniform(0.07, 0.15),
        eye_gap=rng.uniform(0.13, 0.17),
        eye_size=rng.uniform(0.048, 0.068),
        eye_height=rng.uniform(-0.06, -0.01),
        brow=rng.uniform(0.010, 0.026),
        nose=rng.uniform(0.13, 0.19),
        nose_width=rng.uniform(0.045, 0.08),
        mouth_width=rng.uniform(0.115, 0.155),
        lip=rng.uniform(0.018, 0.036),
        mouth_y=rng.uniform(0.255, 0.29),
        ear=rng.uniform(0.06, 0.09),
        shoulders=rng.uniform(0.72, 1.0),
        wrinkles=float(rng.uniform(0, 1) ** 2),
        teeth=rng.uniform(0.80, 0.97),
    )
    person_rng = rng_for("own", person)
    sizes = ("cheek", "jaw", "eye_gap", "eye_size", "nose", "nose_width", "mouth_width", "lip")
    changes = {name: getattr(appearance, name) * person_rng.uniform(0.97, 1.03) for name in sizes}
    return dataclasses.replace(appearance, **changes)


def _cloth(rng: np.random.Generator) -> Color:
    return colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.05, 0.75), rng.uniform(0.15, 0.9))
