"""Staging of a clip: distances, turns of heads, gestures, walks, framing and scenery."""

import dataclasses

import numpy as np

from cavmae.datasets.synthetic.population import rng_for
from cavmae.datasets.synthetic.settings import RenderSettings

Span = tuple[float, float]  # seconds from the clip's start
# Objects of a background that are taken for people.
OBJECTS = (
    "armchair", "sofa", "office chair", "wooden chair", "table", "door", "lamp", "poster", "bust",
    "coat", "picture",
)  # fmt: skip
EDGES = ("left", "right", "top", "bottom")
Spot = tuple[float, float, float]
PROFILE_DEGREES = (30.0, 60.0)
WALK_DEGREES = (40.0, 60.0)
HEADS = (0.2, 0.78)  # least and greatest height of a head, as a fraction of the frame's height
MOUTH_GESTURE_PROB = 0.2  # of a gesture: the hand passes before the mouth
WALK_SECONDS = 1.2  # shortest walk past somebody
OBJECT_COUNT = (1, 4)
LONE_HAND_PROB = 0.3  # of a clip with distractors
LONE_HAND_PROB_EMPTY = 0.8  # of a clip without people
LONE_HAND_SIZES = (0.25, 1.1)  # range of sizes, as for heads


@dataclasses.dataclass(frozen=True)
class Turn:
    """A head's turn.

    Attributes:
        degrees: at its widest; positive to the right of the frame.
        spans: when the head is turned.
    """

    degrees: float
    spans: tuple[Span, ...]


@dataclasses.dataclass(frozen=True)
class Gesture:
    """Gesturing hands.

    Attributes:
        hands: ``left``, ``right`` (of the frame) or ``both``.
        spans: when they are raised before the chest.
        before_mouth: whether one of them passes before the mouth.
    """

    hands: str
    spans: tuple[Span, ...]
    before_mouth: bool


@dataclasses.dataclass(frozen=True)
class Walk:
    """A walk across the frame: its start and end in seconds, and x at its end."""

    start: float
    end: float
    x: float


@dataclasses.dataclass(frozen=True)
class LoneHand:
    """A hand of a person out of view that reaches into the frame.

    Attributes:
        edge: of :data:`EDGES`, from which it comes.
        along: where on that edge, from the left or the top, as a fraction.
        size: height of the head that it would belong to, as a fraction of the frame's.
        side: -1 a left hand, 1 a right one.
        holds: whether it holds a tool.
        spans: when it is in view.
        seed: of its person's skin and sleeves.
    """

    edge: str
    along: float
    size: float
    side: int
    holds: bool
    spans: tuple[Span, ...]
    seed: int


@dataclasses.dataclass(frozen=True)
class PersonStaging:
    """Staging of a person; ``x``, ``y`` and ``head`` as in a script."""

    x: float
    y: float
    head: float
    turn: Turn | None
    gesture: Gesture | None
    walk: Walk | None
    cut_off: bool
    textured: bool


@dataclasses.dataclass(frozen=True)
class Staging:
    """Staging of a clip.

    Attributes:
        people: in the order of their numbers.
        depth: whether distances of people differ from the ordinary ones.
        textured_background: whether the background is brick, script, foliage and the like.
        objects: kinds of objects in the background.
        lone_hands: hands of a person out of view.
    """

    people: tuple[PersonStaging, ...]
    depth: bool
    textured_background: bool
    objects: tuple[str, ...]
    lone_hands: tuple[LoneHand, ...]

    def cases(self) -> dict[str, bool]:
        """Whether each case of :data:`~cavmae.datasets.synthetic.settings.SCENE_CASES` occurs."""
        people = self.people
        return {
            "profiles": any(p.turn is not None for p in people),
            "gestures": any(p.gesture is not None for p in people),
            "crossings": any(p.walk is not None for p in people),
            "depth": self.depth,
            "cut_off": any(p.cut_off for p in people),
            "textures": any(p.textured for p in people),
            "textured_backgrounds": self.textured_background,
            "distractors": bool(self.objects),
        }


def draw_staging(
    settings: RenderSettings, clip: int, speakers: list[str], spots: list[Spot]
) -> Staging:
    """Draw the staging of a clip, independent of its cast and its voices.

    Args:
        speakers: id of each person; none in a clip without people.
        spots: ordinary (x, y, head) of each person.
    """
    rng = rng_for(settings.seed, "staging", clip)
    depth = bool(rng.random() < settings.depth) and bool(spots)
    if depth:
        spots = _in_depth(spots, settings, rng)
    cut = [bool(rng.random() < settings.cut_off) for _ in spots]
    spots = [
        _cut(spot, spots, settings, rng) if is_cut else spot
        for spot, is_cut in zip(spots, cut, strict=True)
    ]
    walks: dict[int, Walk] = {}
    if len(spots) > 1 and rng.random() < settings.crossings:
        walks = _crossing(spots, settings, rng)
    people = []
    for number, (x, y, head) in enumerate(spots):
        walk = walks.get(number)
        turn = gesture = None
        if walk is not None:
            side = 1 if walk.x > x else -1
            turn = Turn(side * float(rng.uniform(*WALK_DEGREES)), ((walk.start, walk.end),))
        elif rng.random() < settings.profiles:
            inwards = (1 if x < 0.5 else -1) * (1 if rng.random() < 0.7 else -1)
            turn = Turn(inwards * float(rng.uniform(*PROFILE_DEGREES)), _turned(settings, rng))
        if rng.random() < settings.gestures:
            gesture = Gesture(
                str(rng.choice(["left", "right", "both"])), _raised(settings, rng),
                bool(rng.random() < MOUTH_GESTURE_PROB),
            )  # fmt: skip
        # A speaker's skin, hair and clothes are the same in all clips.
        textured = rng_for(settings.seed, "textured", speakers[number]).random() < settings.textures
        people.append(PersonStaging(x, y, head, turn, gesture, walk, cut[number], bool(textured)))
    textured_background = bool(rng.random() < settings.textured_backgrounds)
    objects: tuple[str, ...] = ()
    lone_hands: tuple[LoneHand, ...] = ()
    if rng.random() < settings.distractors or not spots:
        chosen = rng.choice(len(OBJECTS), int(rng.integers(*OBJECT_COUNT)), replace=False)
        objects = tuple(OBJECTS[int(number)] for number in chosen)
        if rng.random() < (LONE_HAND_PROB if spots else LONE_HAND_PROB_EMPTY):
            lone_hands = _lone_hands(settings, rng)
    return Staging(tuple(people), depth, textured_background, objects, lone_hands)


def _lone_hands(settings: RenderSettings, rng: np.random.Generator) -> tuple[LoneHand, ...]:
    """Draw one hand, or the two hands of one person, who is out of view."""
    count = int(rng.integers(1, 3))
    size = float(np.exp(rng.uniform(*np.log(LONE_HAND_SIZES))))
    seed = int(rng.integers(2**31))
    first = 1 - 2 * (seed % 2)
    hands: list[LoneHand] = []
    for side, edge in zip((first, -first), rng.choice(EDGES, count), strict=False):
        start = float(rng.uniform(-0.5, 0.6)) * settings.length
        span = (start, start + float(rng.uniform(0.3, 1.0)) * settings.length)
        hands.append(
            LoneHand(
                str(edge), float(rng.uniform(0.1, 0.9)), size, side,
                bool(rng.random() < 0.5), (span,), seed,
            )
        )  # fmt: skip
    return tuple(hands)


def _in_depth(spots: list[Spot], settings: RenderSettings, rng: np.random.Generator) -> list[Spot]:
    """Place people nearer and further away; the nearer ones come later, drawn in front."""
    width, height = settings.size
    if len(spots) == 1:
        head = float(np.exp(rng.uniform(*np.log(HEADS))))
        x = 0.5 + float(rng.uniform(-0.2, 0.2)) * height / width
        y = 0.5 if head > 0.7 else float(rng.uniform(max(0.3, 0.5 * head + 0.02), 0.56))
        return [(x, y, head)]
    factors = np.exp(rng.uniform(np.log(0.5), np.log(1.4), len(spots)))
    heads = [
        float(np.clip(head * f, *HEADS)) for (_, _, head), f in zip(spots, factors, strict=True)
    ]
    # Seen from above, who is further away is higher in the frame.
    slope, base = float(rng.uniform(0.0, 0.7)), float(np.mean(heads))
    placed = []
    for (x, y, _), head in zip(spots, heads, strict=True):
        y += slope * (head - base)
        y = float(np.clip(y, 0.45 * head, 1 - 0.6 * head))
        placed.append((float(x + rng.normal(0, 0.06) / len(spots)), y, head))
    return sorted(placed, key=lambda spot: spot[2])


def _cut(spot: Spot, spots: list[Spot], settings: RenderSettings, rng: np.random.Generator) -> Spot:
    """Move a person to an edge of the frame: half a head is out of view, or the crown is."""
    x, y, head = spot
    width, height = settings.size
    outermost = x in (min(s[0] for s in spots), max(s[0] for s in spots))
    if outermost and rng.random() < 0.6:
        inside = float(rng.uniform(-0.1, 0.45)) * head * height / width
        return (inside if x < 0.5 else 1 - inside), y, head
    if len(spots) == 1:
        head = max(head, float(rng.uniform(0.5, HEADS[1])))
    return x, float(rng.uniform(0.1, 0.4)) * head, head


def _crossing(
    spots: list[Spot], settings: RenderSettings, rng: np.random.Generator
) -> dict[int, Walk]:
    """Draw walks: one person past another to the other side, or both to each other's place."""
    order = rng.permutation(len(spots))
    walker, other = int(order[0]), int(order[1])
    length = settings.length
    seconds = min(max(WALK_SECONDS, float(rng.uniform(0.3, 0.8)) * length), length)
    start = float(rng.uniform(0, length - seconds))
    end = start + seconds
    if rng.random() < 0.5:
        later = min(start + float(rng.uniform(0, 0.15)) * length, length - seconds)
        return {
            walker: Walk(start, end, spots[other][0]),
            other: Walk(later, later + seconds, spots[walker][0]),
        }
    beyond = 1 if spots[other][0] > spots[walker][0] else -1
    edge = float(rng.uniform(0.0, 0.12))
    return {walker: Walk(start, end, 1 - edge if beyond > 0 else edge)}


def _turned(settings: RenderSettings, rng: np.random.Generator) -> tuple[Span, ...]:
    """Draw when a head is turned: all the time, or once or twice."""
    length = settings.length
    if rng.random() < 0.35:
        return ((0.0, length),)
    spans = []
    for number in range(int(rng.integers(1, 3))):
        start = (number * 0.5 + float(rng.uniform(0, 0.3))) * length
        spans.append((start, start + float(rng.uniform(0.15, 0.5)) * length))
    return tuple(spans)


def _raised(settings: RenderSettings, rng: np.random.Generator) -> tuple[Span, ...]:
    """Draw when hands are raised: for 0.8 to 3 s at a time."""
    spans, time = [], float(rng.uniform(-1, 0.4 * settings.length))
    while time < settings.length:
        end = time + float(rng.uniform(0.8, 3.0))
        spans.append((max(time, 0.0), end))
        time = end + float(rng.uniform(0.5, 3.0))
    return tuple(spans)
