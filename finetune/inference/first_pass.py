"""The first pass over a recording: who is in it, where, and what they say.

Everything of any length goes to files of raw numbers in a working folder, so that memory does not
grow with the recording.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cavmae.datasets.media import MediaError, Probe
from cavmae.datasets.media.geometry import Geometry, cut_from
from cavmae.datasets.media.playback import RATE, SAMPLES, Playback
from cavmae.finetune.inference.audio import RawWave
from cavmae.finetune.inference.overlap_add import OverlapAdd, window_starts
from cavmae.finetune.inference.predictor import WHOLE, Box, Cue, DetectedPerson, WindowPredictor
from cavmae.finetune.inference.settings import SeparateSettings
from cavmae.finetune.inference.tracker import Tracker, masks_at, overlap_of
from cavmae.finetune.inference.unread_media import UnreadMedia

LARGEST = 1280  # pixels of the longer side that pictures are kept at for a second look
CLOSER = 1.5  # times as large as before is worth a second look
MARGIN = 0.2  # of a person's size, around them in a second look
AGREED = 0.25  # IoU of both looks' masks from which on they are of one person
LOUDEST = 1e6  # of full scale, sample that no recording has; its square may not be a number
MIXTURE = 0  # number of the mixture's file; people count from 1


@dataclasses.dataclass(frozen=True)
class Sighting:
    """Somebody in a window.

    Attributes:
        window: number of the window.
        there: probability that they are there.
        box: part of the picture that the masks are of.
        shape: of the masks, key frames first.
        place: byte in the file of masks; how likely they are heard in each frame follows them.
        closer: how many times larger they were shown in a second look; None: there was none.
        cued: whether a cue meant them.
        power: of what they say.
        unlike: how little that sounds like a reference voice; None: there is none.
    """

    window: int
    there: float
    box: Box
    shape: tuple[int, int, int]
    place: int
    closer: float | None
    cued: bool
    power: float
    unlike: float | None


@dataclasses.dataclass
class FirstPass:
    """What the first pass leaves.

    Attributes:
        folder: with ``wave-N.f32`` and ``masks.u8``.
        frames: of the recording, 25 a second.
        samples: of the recording at 16 kHz, not rounded to whole frames.
        seen: bool [frames], whether there is a picture.
        starts: first frames of windows.
        length: frames of a window.
        keys: key frames, counted from a window's start.
        people: sightings by number, from 1.
        missing_frames: frames that could not be decoded.
        missing_sound: share of the sound's packets that could not be decoded.
        mixdown: channel layouts of the sound, and how they were mixed.
        remarks: sentences about both.
    """

    folder: Path
    frames: int
    samples: int
    seen: np.ndarray
    starts: list[int]
    length: int
    keys: np.ndarray
    people: dict[int, list[Sighting]]
    missing_frames: int = 0
    missing_sound: float = 0.0
    mixdown: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def wave(self, number: int) -> RawWave:
        """What a person says; :data:`MIXTURE`: all that is heard."""
        return RawWave(self.folder / f"wave-{number}.f32", self.samples)

    def masks(self, sighting: Sighting) -> np.ndarray:
        """uint8 [F, h, w]."""
        count = int(np.prod(sighting.shape))
        with (self.folder / "masks.u8").open("rb") as file:
            file.seek(sighting.place)
            return np.frombuffer(file.read(count), np.uint8).reshape(sighting.shape)

    def heard(self, sighting: Sighting) -> np.ndarray:
        """float32 [length], probability that they are heard in each frame of the window."""
        with (self.folder / "masks.u8").open("rb") as file:
            file.seek(sighting.place + int(np.prod(sighting.shape)))
            return np.frombuffer(file.read(4 * self.length), np.float32)


def first_pass(
    seer: WindowPredictor,
    info: Probe,
    playing: Playback,
    folder: Path,
    settings: SeparateSettings,
    cue: Cue | None,
    begun: Callable[[int], Callable[[], None]],
) -> FirstPass:
    """Looks at all windows.

    Args:
        playing: the recording, from its beginning, in :func:`working_geometry`.
        folder: for what is found; empty.
        begun: told the number of windows; gives what is called after each.

    Raises:
        MediaError: more of the recording is lost than the settings allow.
        NonFiniteError: the model gives NaN or Inf.
    """
    shape = seer.shape
    length = shape.frames
    starts = window_starts(playing.frames, length, max(1, round(settings.hop * length)))
    tracker = Tracker(starts, seer.keys, length, SAMPLES, RATE)
    joiner = OverlapAdd([s * SAMPLES for s in starts], shape.samples, playing.samples)
    losses = UnreadMedia(info, playing, settings.max_missing)
    where = None if cue is None or cue.kind == "voice" else _cued(cue, starts, seer.keys)
    people: dict[int, list[Sighting]] = {}
    done = begun(len(starts))
    with (folder / "masks.u8").open("wb") as masks:
        for window, start in enumerate(starts):
            frames = playing.read_frames(start, length)
            wave = playing.read_audio(start, length)
            losses.check()
            if (peak := float(np.abs(wave).max())) > LOUDEST:
                raise MediaError("decode_error", f"its sound has samples as large as {peak:.1e}")
            told = cue if where is None or where[0] == window else None
            key = where[1] if where is not None else 0
            close: dict[int, float] = {}
            found: list[DetectedPerson] = []
            if frames.any():  # in black, as where nothing decodes, nobody is to be seen
                found = seer.predict(frames, wave, WHOLE, told, key)
                if settings.second_look:
                    found, close = _closely(seer, frames, wave, found)
            numbers = tracker.number(found)
            waves = {MIXTURE: wave}
            for number, person in zip(numbers, found, strict=True):
                waves[number] = person.voice
                meant = told is not None and person.slot == 0
                people.setdefault(number, []).append(
                    Sighting(
                        window, person.presence_prob, person.box,
                        (len(seer.keys), *person.masks.shape[1:]), masks.tell(),
                        close.get(person.slot), meant,
                        float(np.square(person.voice).mean()),
                        seer.voice_distance(person.voice, cue.voice)
                        if cue is not None and cue.voice is not None else None,
                    )
                )  # fmt: skip
                masks.write(person.masks.tobytes())
                masks.write(person.activity_prob.tobytes())
            first, parts = joiner.add(waves)
            for number, part in parts.items():
                _append(folder / f"wave-{number}.f32", first, part)
            done()
    return FirstPass(
        folder,
        playing.frames,
        playing.samples,
        playing.has_frame,
        starts,
        length,
        seer.keys,
        people,
        losses.missing_frames,
        losses.missing_sound,
        playing.mixdown,
        tuple(losses.remarks()),
    )


def _append(path: Path, first: int, wave: np.ndarray) -> None:
    with path.open("r+b" if path.exists() else "wb") as file:
        file.seek(first * 4)  # whoever comes late was silent before
        file.write(wave.tobytes())


def working_geometry(info: Probe, model: tuple[int, int], closely: bool) -> Geometry:
    """Frames as they are kept: as large as the model sees them, or larger for a second look."""
    height, width = info.display
    scale = min(model[0] / height, model[1] / width)
    if closely:
        scale = max(scale, min(1.0, LARGEST / max(height, width)))
    size = max(16, round(height * scale)), max(16, round(width * scale))
    return cut_from(info, size, size)


def _cued(cue: Cue, starts: list[int], keys: np.ndarray) -> tuple[int, int]:
    """Window and key frame that are nearest to when a cue was given."""
    frame = cue.time * RATE
    apart = np.abs(np.array(starts)[:, None] + keys - frame)
    window, key = np.unravel_index(int(apart.argmin()), apart.shape)
    return int(window), int(key)


def _closely(
    seer: WindowPredictor, frames: np.ndarray, wave: np.ndarray, people: list[DetectedPerson]
) -> tuple[list[DetectedPerson], dict[int, float]]:
    """A second look at whoever is small.

    Returns:
        people, and how many times larger they were shown, by slot.
    """
    found, close = [], {}
    picture = frames.shape[1], frames.shape[2]
    for person in people:
        box, closer = close_up(person.masks, picture, seer.shape.encoder.image_size)
        again = None
        if closer >= CLOSER:
            key = int((person.masks > 127).reshape(len(person.masks), -1).sum(1).argmax())
            mask = person.masks[key] > 127
            cue = Cue("mask", box=_box_of(mask), mask=mask)
            seen = seer.predict(frames, wave, box, cue, key)
            again = next((p for p in seen if p.slot == 0), None)
        if again is None or not _same(again, person, people, seer.keys):
            found.append(person)
        else:
            # How sure it is that somebody is there was said before the cue said so.
            found.append(again._replace(slot=person.slot, presence_prob=person.presence_prob))
            close[person.slot] = closer
    return found, close


def _same(
    again: DetectedPerson, person: DetectedPerson, people: list[DetectedPerson], keys: np.ndarray
) -> bool:
    """Whether a second look shows whom it was to show, and not somebody beside them."""
    seen = masks_at(again, keys, keys) > 0.5
    alike = {p.slot: overlap_of(seen, masks_at(p, keys, keys) > 0.5) for p in people}
    return alike[person.slot] >= AGREED and alike[person.slot] == max(alike.values())


def close_up(
    masks: np.ndarray, picture: tuple[int, int], model: tuple[int, int]
) -> tuple[Box, float]:
    """The part of the picture around somebody, and how many times larger the model sees it.

    Args:
        masks: uint8 [F, h, w], of the whole picture.
        picture, model: (height, width) in pixels.
    """
    left, top, right, bottom = _box_of((masks > 127).max(0))
    height, width = (bottom - top) * picture[0], (right - left) * picture[1]
    height, width = height * (1 + 2 * MARGIN), width * (1 + 2 * MARGIN)
    # As much beside them as the model's picture has room for, but no more than there are pixels.
    scale = min(model[0] / height, model[1] / width, 1.0)
    height, width = min(model[0] / scale, picture[0]), min(model[1] / scale, picture[1])
    whole = min(model[0] / picture[0], model[1] / picture[1])
    closer = min(model[0] / height, model[1] / width) / whole
    y, x = (top + bottom) / 2 * picture[0], (left + right) / 2 * picture[1]
    y = min(max(y - height / 2, 0), picture[0] - height)
    x = min(max(x - width / 2, 0), picture[1] - width)
    box = x / picture[1], y / picture[0], (x + width) / picture[1], (y + height) / picture[0]
    return box, closer


def _box_of(mask: np.ndarray) -> Box:
    """Around a mask, as shares; all of the picture around nothing."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return WHOLE
    height, width = mask.shape
    return (
        float(columns[0]) / width, float(rows[0]) / height,
        float(columns[-1] + 1) / width, float(rows[-1] + 1) / height,
    )  # fmt: skip
