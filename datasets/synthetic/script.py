"""Scripts of clips: a pure function of the settings, the population and the clip's number."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from cavmae.datasets.synthetic.population import Population, Speaker, rng_for
from cavmae.datasets.synthetic.settings import RenderSettings
from cavmae.datasets.synthetic.staging import PersonStaging, Span, Staging, draw_staging

SHORTEST_SPAN, SHORTEST_PAUSE = 0.4, 0.5  # s
SHIFTS = (120, 600)  # ms between audio and video of a clip out of sync
COVERS = ("hand", "mask", "microphone")
NOISES = ("white", "pink", "brown", "hum", "babble")


@dataclasses.dataclass(frozen=True)
class Cover:
    """A mouth occlusion and its times."""

    kind: str
    spans: tuple[Span, ...]


@dataclasses.dataclass(frozen=True)
class ScriptedPerson:
    """A person in view.

    Attributes:
        speaker: their id.
        role: ``speaking`` or ``silent``.
        activity: of the mouth: ``talking``, ``chewing`` or ``smiling``.
        spans: of their speech.
        level_db: of their voice, relative to the first person's.
        cover: of their mouth; None: it is in view throughout.
        staging: place and movements. ``x`` and ``y`` of the middle of the head are fractions of
            the frame's width and height, ``head`` is its height as a fraction of the frame's.
    """

    speaker: str
    role: str
    activity: str
    spans: tuple[Span, ...]
    level_db: float
    cover: Cover | None
    staging: PersonStaging


@dataclasses.dataclass(frozen=True)
class OffScreen:
    """Voice of a person out of view."""

    speaker: str
    spans: tuple[Span, ...]
    level_db: float


@dataclasses.dataclass(frozen=True)
class Script:
    """A clip before it is rendered.

    Attributes:
        clip: its number.
        split: of all speakers in it.
        people: from back to front; number 1 first; none in a clip without people.
        off_screen: voice of a person out of view.
        noise: kind of background noise, and its level below the voices in dB.
        music: level of background music below the voices in dB.
        shift_ms: delay of the audio against the video.
        look_alikes: whether two people of this clip have the same family of appearances.
        similar_voices: ids of two people of this clip whose voices are near in pitch.
        staging: scenery, distances and movements.
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
    staging: Staging

    def labels(self, audible: Sequence[bool]) -> list[str]:
        """Labels of the clip, sorted.

        Args:
            audible: whether each person's voice is audible.
        """
        labels = {f"people-{len(self.people)}"} if self.people else {"background"}
        for person, is_audible in zip(self.people, audible, strict=True):
            labels.add("speaking" if is_audible else "silent")
            if person.cover is not None:
                labels.add("mouth_occlusion")
            if is_audible and len(person.spans) > 1:
                labels.add("pauses")
        talking = {p.speaker for p, voice in zip(self.people, audible, strict=True) if voice}
        flags = {
            "off_screen_voice": self.off_screen is not None,
            "noise": self.noise is not None,
            "music": self.music is not None,
            "desync": self.shift_ms != 0 and bool(talking),
            "look_alikes": self.look_alikes,
            "similar_voices": self.similar_voices is not None
            and talking >= set(self.similar_voices),
            **self.staging.cases(),
        }
        return sorted(labels | {name for name, has in flags.items() if has})

    def record(self) -> dict[str, Any]:
        """JSON object of the script."""
        return dataclasses.asdict(self)


def write_script(settings: RenderSettings, population: Population, clip: int) -> Script:
    """Draw a clip's random cast, places and hard cases."""
    rng = rng_for(settings.seed, "script", clip)
    least, most = settings.people_range
    main = population.main_speaker(clip)
    cast, look_alikes, similar_voices = _cast(
        settings, population, main, int(rng.integers(least, most + 1)), rng
    )
    if rng_for(settings.seed, "nobody", clip).random() < settings.without_people:
        cast, look_alikes, similar_voices = [], False, None
    spots = _places(len(cast), settings, rng)
    staging = draw_staging(settings, clip, [speaker.id for speaker in cast], spots)
    people = tuple(
        _person(number, speaker, staging.people[number], settings, rng)
        for number, speaker in enumerate(cast)
    )
    off_screen = None
    others = population.others(main, cast)
    if others and rng.random() < settings.off_screen_voice:
        voice = others[int(rng.integers(len(others)))]
        off_screen = OffScreen(voice.id, _spans(settings, rng, False), float(rng.uniform(-8, 3)))
    noise = None
    if rng.random() < settings.noise:
        kind = str(rng.choice(NOISES))
        crowded = len(others) > (off_screen is not None) and bool(people)
        noise = (kind if kind != "babble" or crowded else "pink", float(rng.uniform(0, 20)))
    music = float(rng.uniform(3, 20)) if rng.random() < settings.music else None
    shift = 0
    if rng.random() < settings.desync:
        shift = int(rng.integers(SHIFTS[0], SHIFTS[1] + 1)) * (1 if rng.random() < 0.5 else -1)
        if all(person.role == "silent" for person in people):
            shift = 0  # without speech nothing is out of sync
    return Script(
        clip, main.split, people, off_screen, noise, music, shift, look_alikes, similar_voices,
        staging,
    )  # fmt: skip


def _cast(
    settings: RenderSettings,
    population: Population,
    main: Speaker,
    count: int,
    rng: np.random.Generator,
) -> tuple[list[Speaker], bool, tuple[str, str] | None]:
    """Draw the people in random order; whether two look alike; ids of two similar voices."""
    cast = [main]
    has_twin = False
    similar_voices = None
    want_twin, want_similar = (
        rng.random() < settings.look_alikes,
        rng.random() < settings.similar_voices,
    )
    if count == 2 and want_twin and want_similar:  # there is room for one of both
        want_twin = rng.random() < 0.5
    if count > 1 and want_twin and (twin := population.look_alike(main)) is not None:
        cast.append(twin)
        has_twin = True
    if len(cast) < count and want_similar:
        voice = population.similar_voice(main, rng)
        if voice is not None and voice not in cast:
            cast.append(voice)
            similar_voices = (main.id, voice.id)
    while len(cast) < count:
        candidates = population.others(main, cast)
        if not has_twin:  # a random pick must not add look-alikes without their label
            families_in_cast = {s.family for s in cast}
            candidates = [s for s in candidates if s.family not in families_in_cast] or candidates
        cast.append(candidates[int(rng.integers(len(candidates)))])
    order = rng.permutation(len(cast))
    cast = [cast[i] for i in order]
    families = [s.family for s in cast]
    return cast, len(set(families)) < len(families), similar_voices


def _places(
    count: int, settings: RenderSettings, rng: np.random.Generator
) -> list[tuple[float, float, float]]:
    """Draw (x, y, head) of each person: side by side, in random order."""
    width, height = settings.size
    slot = width / height / max(count, 1)  # of one person, in heights of the frame
    places = []
    for place in rng.permutation(count):
        head = float(rng.uniform(0.42, 0.56)) * min(1.0, slot / 0.85)
        x = (place + 0.5 + rng.uniform(-0.12, 0.12)) / count
        y = 0.46 + rng.uniform(-0.06, 0.06) + 0.2 * (0.5 - head)
        places.append((float(x), float(y), head))
    return places


def _person(
    number: int,
    speaker: Speaker,
    staging: PersonStaging,
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
        level, cover, staging,
    )  # fmt: skip


def _spans(settings: RenderSettings, rng: np.random.Generator, pauses: bool) -> tuple[Span, ...]:
    """Draw spans of speech: the whole clip, or parts of it with pauses between."""
    length = settings.length
    if not pauses:
        return ((0.0, length),)
    count = 1 + max(1, round(length / 4))  # spans, with pauses between them
    free = length - count * SHORTEST_SPAN - (count - 1) * SHORTEST_PAUSE
    if free < 0:
        return ((0.0, length),)  # too short to pause in
    # Silence before, span, pause, span, ..., silence after.
    extra = rng.dirichlet(np.ones(2 * count + 1)) * free
    spans, time = [], float(extra[0])
    for number in range(count):
        end = time + SHORTEST_SPAN + float(extra[2 * number + 1])
        spans.append((time, min(end, length)))
        time = end + SHORTEST_PAUSE + float(extra[2 * number + 2])
    return tuple(spans)
