"""Scene specs: descriptions of mixtures, sampled for training and read from lists for evaluation.

A spec determines its mixture: composing it twice gives the same samples and pixels.
"""

import dataclasses
from typing import Any, Literal

from cavmae.common.boxes import Box
from cavmae.common.errors import UsageError
from cavmae.common.json_files import value_as
from cavmae.datasets.stream.rates import VIDEO_RATE

# Labels of clips whose audio is not one clean voice; see docs/reference/talker-corpus.md.
OTHER_SOUND = ("noise", "music", "off_screen_voice", "desync")
NOT_SINGLE = ("people-2", "people-3", "people-4", *OTHER_SOUND)

MAX_CORNER = 100_000  # largest row or column of a polygon's corner, in pixels
MAX_TINT = 100.0  # factor of a surface's colours

Noise = Literal["white", "pink", "hum"]
Kind = Literal["own_background", "pasted", "split_screen", "inset"]
Corner = tuple[int, int]  # column and row of a polygon's corner, in pixels


@dataclasses.dataclass(frozen=True)
class ComposeSettings:
    """Probabilities and ranges for sampling mixtures.

    Args:
        height: of a scene in pixels, a multiple of 16.
        width: likewise.
        seconds: of a scene, a multiple of 0.04.
        people: relative frequencies of scenes with one, two and three visible people, among those
            that have any.
        own_background: relative frequency of scenes that paste people into the video of one of
            them.
        pasted: relative frequency of scenes that paste people into the background of another clip:
            the video of those labelled ``background``, which show no person, or else a still
            picture of any clip with masks.
        split_screen: relative frequency of scenes with videos side by side.
        inset: relative frequency of scenes with small videos in corners (picture in picture), over
            the video of one more person, or over a background.
        speed: largest relative change of a clip's playback speed, audio and video in step: it
            varies the voices of few speakers.
        snr_db: largest absolute level of every other voice relative to the first, uniform.
        overlap: probability that all people speak all the time; otherwise each begins or ends
            within the scene, so that voices overlap by 0 to 100 %.
        silent_prob: probability that a visible person is silent.
        mismatched_lips_prob: probability that a silent person's lips move (muted speech). Otherwise
            the person is from a silent clip, or stands still.
        off_screen_prob: probability of an off-screen voice.
        noise_prob: probability of noise, 0 to 20 dB below the voices.
        all_off_screen_prob: probability that no visible person is audible: half of these scenes
            have noise, half an off-screen voice.
        without_people_prob: probability of a scene without visible people, of a background as for
            ``pasted`` alone: half of these scenes have noise, half an off-screen voice.
        occluder_prob: probability that tables and armrests are placed in front of people, or where
            nobody is, in scenes as for ``own_background`` and ``pasted``, if heads leave room for
            them (in about half of such scenes). They do not move; their surface is a part of
            another clip's background. Behind a table people may end above the scene's lower edge.
        letterbox_prob: probability of a scene of another shape, with black above and below or
            beside it, as the model gets for a video wider or taller than its own frames.
        min_scale: scale of a pasted person, relative to a clip that fills the scene's height.
        max_scale: likewise.
    """

    height: int = 224
    width: int = 224
    seconds: float = 2.56
    people: tuple[float, float, float] = (0.25, 0.5, 0.25)
    own_background: float = 0.4
    pasted: float = 0.4
    split_screen: float = 0.2
    inset: float = 0.0
    speed: float = 0.1
    snr_db: float = 5.0
    overlap: float = 0.5
    silent_prob: float = 0.15
    mismatched_lips_prob: float = 0.3
    off_screen_prob: float = 0.15
    noise_prob: float = 0.15
    all_off_screen_prob: float = 0.2
    without_people_prob: float = 0.0
    occluder_prob: float = 0.0
    letterbox_prob: float = 0.3
    min_scale: float = 0.5
    max_scale: float = 1.2

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 16 or self.height % 16 or self.width % 16:
            raise UsageError(
                f"compose: {self.height}x{self.width} is not a whole number of patches of 16 "
                "pixels; set compose.height and compose.width to multiples of 16."
            )
        if self.seconds <= 0 or round(self.seconds * VIDEO_RATE, 6) % 1:
            raise UsageError(
                f"compose.seconds {self.seconds} is not a positive multiple of {1 / VIDEO_RATE} s."
            )
        if not 0 <= self.speed <= 0.5:
            raise UsageError(f"compose.speed {self.speed} is not from 0 to 0.5.")
        for name in (
            "overlap",
            "silent_prob",
            "mismatched_lips_prob",
            "off_screen_prob",
            "noise_prob",
            "all_off_screen_prob",
            "without_people_prob",
            "occluder_prob",
            "letterbox_prob",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"compose.{name} {getattr(self, name)} is not from 0 to 1.")
        for names in (("people",), ("own_background", "pasted", "split_screen", "inset")):
            values = [v for n in names for v in _listed(getattr(self, n))]
            if min(values) < 0 or not any(values):
                raise UsageError(f"compose.{names[0]}: weights cannot be negative or all be 0.")
        if not 0 < self.min_scale <= self.max_scale:
            raise UsageError("compose.min_scale must be above 0 and at most compose.max_scale.")


def _listed(value: Any) -> list[float]:
    return list(value) if isinstance(value, tuple | list) else [value]


@dataclasses.dataclass(frozen=True)
class Voice:
    """Segment of a clip that a scene plays.

    Attributes:
        clip: key of the clip.
        start: offset of the scene's beginning in the clip, in seconds.
        active: (start, end) of playback in the scene, in seconds; before and after, the frame
            stands still and the voice is silent, so that audio and video are always in step.
        level_db: of the voice; None: it is not audible.
        speed: playback speed.
    """

    clip: str
    start: float
    active: tuple[float, float]
    level_db: float | None
    speed: float = dataclasses.field(default=1.0, kw_only=True)


@dataclasses.dataclass(frozen=True)
class Place:
    """Position of a clip's frame in the scene.

    Attributes:
        scale: of the clip's frame.
        left, top: of its upper left corner, in pixels of the scene; also outside of it.
        flip: mirrored.
        window: (first, end) column of the scene that bounds the frame; None: all columns.
        rows: (first, end) row that bounds it; None: all rows.
    """

    scale: float
    left: int
    top: int
    flip: bool
    window: tuple[int, int] | None
    rows: tuple[int, int] | None = dataclasses.field(default=None, kw_only=True)


@dataclasses.dataclass(frozen=True)
class VisiblePerson(Place, Voice):
    """A visible person: voice and position."""


@dataclasses.dataclass(frozen=True)
class Occluder:
    """A polygon in front of all people, which does not move.

    Attributes:
        outline: corners of a polygon, in pixels of the scene; also outside of it.
        surface: key of the clip of whose background, without its person, a part is the surface.
        crop: that part, as fractions of the picture, stretched over the outline's box.
        tint: factors of red, green and blue, 0 to 100; 1: unchanged.
        texture: contrast of noise of all sizes on the surface, 0 to 1; 0: none.
        seed: of that noise.
    """

    outline: tuple[Corner, ...]
    surface: str
    crop: Box
    tint: tuple[float, float, float]
    texture: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.outline) < 3:
            raise ValueError(f"outline has {len(self.outline)} corners, not 3 or more")
        if max(abs(side) for corner in self.outline for side in corner) > MAX_CORNER:
            raise ValueError(f"outline has a corner beyond {MAX_CORNER} pixels")
        left, top, right, bottom = self.crop
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError(f"crop {list(self.crop)} is no box within 0 to 1")
        if not all(0 <= factor <= MAX_TINT for factor in self.tint):
            raise ValueError(f"tint {list(self.tint)} is not from 0 to {MAX_TINT}")
        if not 0 <= self.texture <= 1:
            raise ValueError(f"texture {self.texture} is not from 0 to 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed {self.seed} is not from 0 to 2**32 - 1")


@dataclasses.dataclass(frozen=True)
class SceneSpec:
    """Description of a scene of people, voices and noise.

    Attributes:
        kind: ``own_background``: the first of ``order`` keeps its own background; ``pasted``: the
            background is that of the clip ``background``; ``split_screen``: side by side;
            ``inset``: in rectangles over the first of ``order``, or over ``background``.
        people: visible people, in random order; possibly none.
        order: numbers of ``people`` from the farthest to the nearest.
        background: key of a clip.
        unseen: off-screen voices.
        noise: kind of noise; None: none.
        noise_db: level of the noise.
        light: factors of brightness, contrast and saturation; 1: unchanged.
        tint: factors of red, green and blue; 1: unchanged.
        quality: JPEG quality of every frame.
        feather: width of a person's soft edge, in pixels.
        seed: of noise.
        target: number of the person that a cue refers to; 0 without people.
        reference: other speech of the target person; None: there is none.
        room: (height, width) of a letterboxed scene, which lies in the middle of the frame;
            positions refer to it. None: the scene fills the frame.
        background_start: seconds in ``background`` from which on it plays; None: it stands still,
            without its person.
        occluders: in front of all people, from the farthest to the nearest.
    """

    kind: Kind
    people: tuple[VisiblePerson, ...]
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
    background_start: float | None = None
    occluders: tuple[Occluder, ...] = ()

    def to_record(self) -> dict[str, Any]:
        """Fields as values of JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_record(cls, record: Any) -> "SceneSpec":
        """Inverse of :meth:`to_record`.

        Raises:
            ValueError: the record is no scene spec.
        """
        spec: SceneSpec = value_as(cls, record, "a scene spec")
        return spec
