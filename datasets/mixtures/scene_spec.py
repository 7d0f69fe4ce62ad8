"""What a mixture is made of: drawn at random for training, written to a file for evaluation.

A recipe is data. The same recipe gives the same mixture, whoever composes it.
"""

import dataclasses
from typing import Any, Literal

from cavmae.common.errors import UsageError
from cavmae.common.json_files import value_as
from cavmae.datasets.mixtures.mixing import Noise

GRID = 25  # Hz: parts of clips begin on this grid

Kind = Literal["own_background", "pasted", "split_screen"]


@dataclasses.dataclass(frozen=True)
class ComposeSettings:
    """How mixtures are drawn.

    Args:
        height: of a scene in pixels, a multiple of 16.
        width: likewise.
        seconds: of a scene, a multiple of 0.04.
        people: how often one, two, three people are seen (relative).
        own_background: how often people are pasted into the video of one of them (relative).
        pasted: how often into the background of another clip (relative): of those labelled
            ``background``, which show nobody, or else of any clip with masks.
        split_screen: how often videos stand side by side (relative).
        speed: clips play by up to this share faster or slower, picture and sound in step: few
            people then sound like more.
        snr_db: level of every other voice relative to the first: uniform, up to so much.
        overlap: share of scenes in which all speak all the time; in the others each begins or ends
            somewhere, so that voices overlap by 0 to 100 %.
        silent_prob: share of scenes with somebody visible who says nothing.
        mismatched_lips_prob: probability that a silent person's lips move (speech, muted). The
            others are shown in clips of silence, or stand still.
        off_screen_prob: share of scenes with the voice of somebody who is not seen.
        noise_prob: share of scenes with noise, 0 to 20 dB below the voices.
        all_off_screen_prob: share of scenes in which nobody visible is heard: in half of them
            noise, in half the voice of somebody off screen.
        letterbox_prob: share of scenes of another shape, with black above and below or beside them:
            the input of a model for a video that is wider or taller than its own frames.
        min_scale: scale of a pasted person, of a height that fills the scene.
        max_scale: likewise.
    """

    height: int = 224
    width: int = 224
    seconds: float = 2.56
    people: tuple[float, float, float] = (0.25, 0.5, 0.25)
    own_background: float = 0.4
    pasted: float = 0.4
    split_screen: float = 0.2
    speed: float = 0.1
    snr_db: float = 5.0
    overlap: float = 0.5
    silent_prob: float = 0.15
    mismatched_lips_prob: float = 0.3
    off_screen_prob: float = 0.15
    noise_prob: float = 0.15
    all_off_screen_prob: float = 0.2
    letterbox_prob: float = 0.3
    min_scale: float = 0.5
    max_scale: float = 1.2

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 16 or self.height % 16 or self.width % 16:
            raise UsageError(f"compose: {self.height}x{self.width} is not made of patches of 16.")
        if self.seconds <= 0 or round(self.seconds * GRID, 6) % 1:
            raise UsageError(f"compose.seconds {self.seconds}: a multiple of {1 / GRID} s.")
        if not 0 <= self.speed <= 0.5:
            raise UsageError(f"compose.speed {self.speed} is not from 0 to 0.5.")
        for name in (
            "overlap",
            "silent_prob",
            "mismatched_lips_prob",
            "off_screen_prob",
            "noise_prob",
            "all_off_screen_prob",
            "letterbox_prob",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"compose.{name} {getattr(self, name)} is not from 0 to 1.")
        for names in (("people",), ("own_background", "pasted", "split_screen")):
            values = [v for n in names for v in _listed(getattr(self, n))]
            if min(values) < 0 or not any(values):
                raise UsageError(f"compose.{names[0]}: shares cannot be negative or all be 0.")
        if not 0 < self.min_scale <= self.max_scale:
            raise UsageError("compose.min_scale must be above 0 and at most compose.largest.")


def _listed(value: Any) -> list[float]:
    return list(value) if isinstance(value, tuple | list) else [value]


@dataclasses.dataclass(frozen=True)
class Voice:
    """Somebody's part of a clip.

    Attributes:
        clip: key of the clip.
        start: where in it the scene begins, in seconds.
        active: from when to when in the scene it plays, in seconds; before and after the picture
            stands still and nothing is heard, so that sound and picture are always in step.
        level_db: of the voice; None: it is not heard.
        speed: how many times as fast the clip plays.
    """

    clip: str
    start: float
    active: tuple[float, float]
    level_db: float | None
    speed: float = dataclasses.field(default=1.0, kw_only=True)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in the scene a clip's picture is shown.

    Attributes:
        scale: of the clip's picture.
        left, top: where its upper left corner lies, in pixels; outside the scene, too.
        flip: mirrored.
        window: columns of the scene that it is shown in (halves); None: all of them.
    """

    scale: float
    left: int
    top: int
    flip: bool
    window: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class Seen(Place, Voice):
    """A person who is seen."""


@dataclasses.dataclass(frozen=True)
class SceneSpec:
    """A scene of people, voices and noise.

    Attributes:
        kind: ``own_background``: the first of ``order`` keeps its own background; ``pasted``: the
            background is that of the clip ``background``; ``split_screen``: side by side.
        people: who is seen, in the order of their numbers, which says nothing.
        order: numbers of ``people`` from the farthest to the nearest.
        background: key of a clip.
        unseen: voices of people who are not seen.
        noise: kind of noise; None: none.
        noise_db: its level.
        light: brightness, contrast and saturation, 1 as it is.
        tint: of red, green and blue, 1 as it is.
        quality: of the JPEG that every frame went through in the end.
        feather: width of a person's soft edge, in pixels.
        seed: of noise.
        target: number of the person whom a cue means.
        reference: another part of what that person says, to know the voice by; None: there is none.
        room: (height, width) of the scene where that is smaller than the picture, in whose middle
            it lies; places are told in it. None: it fills the picture.
    """

    kind: Kind
    people: tuple[Seen, ...]
    order: tuple[int, ...]
    background: str | None
    unseen: tuple[Voice, ...]
    noise: Noise | None
    noise_db: float
    light: tuple[float, float, float]
    tint: tuple[float, float, float]
    quality: int
    feather: float
    seed: int
    target: int = 0
    reference: Voice | None = None
    room: tuple[int, int] | None = None

    def to_record(self) -> dict[str, Any]:
        """JSON-able."""
        return dataclasses.asdict(self)

    @classmethod
    def from_record(cls, record: Any) -> "SceneSpec":
        """The inverse of :meth:`to_record`. Raises ValueError."""
        recipe: SceneSpec = value_as(cls, record, "a recipe")
        return recipe
