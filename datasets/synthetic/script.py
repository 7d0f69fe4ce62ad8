"""What happens in a clip: a pure function of the settings, the population and the clip's number."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from cavmae.datasets.synthetic.population import Population, Speaker, rng_for
from cavmae.datasets.synthetic.settings import RenderSettings

SHORTEST_SPAN, SHORTEST_PAUSE = 0.4, 0.5  # s
SHIFTS = (120, 600)  # ms between picture and sound of a shifted clip
COVERS = ("hand", "mask", "microphone")
NOISES = ("white", "pink", "brown", "hum", "babble")
Span = tuple[float, float]  # seconds from the clip's start


@dataclasses.dataclass(frozen=True)
class Cover:
    """What hides a mouth, and when."""

    kind: str
    spans: tuple[Span, ...]


@dataclasses.dataclass(frozen=True)
class ScriptedPerson:
    """Somebody in the picture.

    Attributes:
        speaker: their id.
        role: ``speaking`` or ``silent``.
        activity: of the mouth: ``talking``, ``chewing`` or ``smiling``.
        spans: when they are given something to say.
        level_db: of their voice, beside the first one's.
        cover: what hides their mouth.
        x, y: of the middle of the head, as shares of the picture's width and height.
        head: height of the head as a share of the picture's height.
    """

    speaker: str
    role: str
    activity: str
    spans: tuple[Span, ...]
    level_db: float
    cover: Cover | None
    x: float
    y: float
    head: float


@dataclasses.dataclass(frozen=True)
class OffScreen:
    """A voice that belongs to nobody visible."""

    speaker: str
    spans: tuple[Span, ...]
    level_db: float


@dataclasses.dataclass(frozen=True)
class Script:
    """A clip before it is rendered.

    Attributes:
        clip: its number.
        split: of all speakers in it.
        people: number 1 first; who comes later stands in front.
        off_screen: a voice from elsewhere.
        noise: kind of background noise, and its level below the voices in dB.
        music: level of background music below the voices in dB.
        shift_ms: by which the sound comes later than the picture.
        look_alikes: whether two people of this clip are.
        like_voices: two people of this clip whose voices are of a kind.
    """

    clip: int
    split: str
    people: tuple[ScriptedPerson, ...]
    off_screen: OffScreen | None
    noise: tuple[str, float] | None
    music: float | None
    shift_ms: int
    look_alikes: bool
    similar_voices: tuple[str, str] | None

    def labels(self, heard: Sequence[bool]) -> list[str]:
        """What a user of the clip may want to choose by.

        Args:
            heard: whether each person's voice came to be heard.
        """
        found = {f"people-{len(self.people)}"}
        for person, sounds in zip(self.people, heard, strict=True):
            found.add("speaking" if sounds else "silent")
            if person.cover is not None:
                found.add("hidden_mouth")
            if sounds and len(person.spans) > 1:
                found.add("pauses")
        talking = {p.speaker for p, sounds in zip(self.people, heard, strict=True) if sounds}
        flags = {
            "off_screen_voice": self.off_screen is not None,
            "noise": self.noise is not None,
            "music": self.music is not None,
            "shifted": self.shift_ms != 0 and bool(talking),
            "look_alikes": self.look_alikes,
            "like_voices": self.similar_voices is not None and talking >= set(self.similar_voices),
        }
        return sorted(found | {name for name, has in flags.items() if has})

    def record(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def write_script(settings: RenderSettings, population: Population, clip: int) -> Script:
    """Draws a clip's cast, places and hard cases by lot."""
    rng = rng_for(settings.seed, "script", clip)
    least, most = settings.people_range
    main = population.main_speaker(clip)
    cast, look_alikes, like_voices = _cast(
        settings, population, main, int(rng.integers(least, most + 1)), rng
    )
    spots = _places(len(cast), settings, rng)
    people = tuple(
        _person(number, speaker, spots[number], settings, rng)
        for number, speaker in enumerate(cast)
    )
    off_screen = None
    elsewhere = population.others(main, cast)
    if elsewhere and rng.random() < settings.off_screen_voice:
        voice = elsewhere[int(rng.integers(len(elsewhere)))]
        off_screen = OffScreen(voice.id, _spans(settings, rng, False), float(rng.uniform(-8, 3)))
    noise = None
    if rng.random() < settings.noise:
        kind = str(rng.choice(NOISES))
        crowded = len(elsewhere) > (off_screen is not None)
        noise = (kind if kind != "babble" or crowded else "pink", float(rng.uniform(0, 20)))
    music = float(rng.uniform(3, 20)) if rng.random() < settings.music else None
    shift = 0
    if rng.random() < settings.desync:
        shift = int(rng.integers(SHIFTS[0], SHIFTS[1] + 1)) * (1 if rng.random() < 0.5 else -1)
        if all(person.role == "silent" for person in people):
            shift = 0  # there is nothing that could be out of step
    return Script(
        clip, main.split, people, off_screen, noise, music, shift, look_alikes, like_voices
    )


def _cast(
    settings: RenderSettings,
    population: Population,
    main: Speaker,
    count: int,
    rng: np.random.Generator,
) -> tuple[list[Speaker], bool, tuple[str, str] | None]:
    """Who is in the picture, in random order; whether two look alike; which two sound alike."""
    cast = [main]
    alike = False
    like = None
    draw_look, draw_voice = (
        rng.random() < settings.look_alikes,
        rng.random() < settings.similar_voices,
    )
    if count == 2 and draw_look and draw_voice:  # there is room for one of both
        draw_look = rng.random() < 0.5
    if count > 1 and draw_look and (twin := population.look_alike(main)) is not None:
        cast.append(twin)
        alike = True
    if len(cast) < count and draw_voice:
        voice = population.similar_voice(main, rng)
        if voice is not None and voice not in cast:
            cast.append(voice)
            like = (main.id, voice.id)
    while len(cast) < count:
        left = population.others(main, cast)
        if not alike:  # chance must not make look-alikes that are not labelled
            seen = {s.family for s in cast}
            left = [s for s in left if s.family not in seen] or left
        cast.append(left[int(rng.integers(len(left)))])
    order = rng.permutation(len(cast))
    cast = [cast[i] for i in order]
    families = [s.family for s in cast]
    return cast, len(set(families)) < len(families), like


def _places(
    count: int, settings: RenderSettings, rng: np.random.Generator
) -> list[tuple[float, float, float]]:
    """(x, y, head) of each person: side by side, in random order."""
    width, height = settings.size
    slot = width / height / count  # of one person, in heights of the picture
    found = []
    for place in rng.permutation(count):
        head = float(rng.uniform(0.42, 0.56)) * min(1.0, slot / 0.85)
        x = (place + 0.5 + rng.uniform(-0.12, 0.12)) / count
        y = 0.46 + rng.uniform(-0.06, 0.06) + 0.2 * (0.5 - head)
        found.append((float(x), float(y), head))
    return found


def _person(
    number: int,
    speaker: Speaker,
    spot: tuple[float, float, float],
    settings: RenderSettings,
    rng: np.random.Generator,
) -> ScriptedPerson:
    silent = bool(rng.random() < settings.silent)
    activity = str(rng.choice(["chewing", "smiling"])) if silent else "talking"
    pauses = bool(rng.random() < settings.pauses)
    spans = _spans(settings, rng, pauses)
    level = 0.0 if number == 0 else float(rng.uniform(-5, 5))
    cover = None
    if rng.random() < settings.mouth_occlusion:
        kind = str(rng.choice(COVERS))
        whole = kind == "mask" or rng.random() < 0.3
        start = float(rng.uniform(0, 0.6)) * settings.length
        end = min(start + float(rng.uniform(0.25, 0.7)) * settings.length, settings.length)
        cover = Cover(kind, ((0.0, settings.length) if whole else (start, end),))
    return ScriptedPerson(
        speaker.id, "silent" if silent else "speaking", activity, () if silent else spans,
        level, cover, *spot,
    )  # fmt: skip


def _spans(settings: RenderSettings, rng: np.random.Generator, pauses: bool) -> tuple[Span, ...]:
    """The whole clip, or some stretches of it."""
    length = settings.length
    if not pauses:
        return ((0.0, length),)
    count = 1 + max(1, round(length / 4))  # stretches, with pauses between them
    free = length - count * SHORTEST_SPAN - (count - 1) * SHORTEST_PAUSE
    if free < 0:
        return ((0.0, length),)  # too short to pause in
    # Silence before, stretch, pause, stretch, ..., silence after.
    extra = rng.dirichlet(np.ones(2 * count + 1)) * free
    found, time = [], float(extra[0])
    for number in range(count):
        end = time + SHORTEST_SPAN + float(extra[2 * number + 1])
        found.append((time, min(end, length)))
        time = end + SHORTEST_PAUSE + float(extra[2 * number + 2])
    return tuple(found)
