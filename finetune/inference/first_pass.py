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
from cavmae.finetune.inference.tracker import Tracker, masks_at, soft_iou
from cavmae.finetune.inference.unread_media import UnreadMedia

MAX_KEPT_SIDE = 1280  # pixels of the longer side that pictures are kept at for a second look
MIN_ZOOM = 1.5  # times as large as before is worth a second look
MARGIN = 0.2  # of a person's size, around them in a second look
MIN_AGREEMENT_IOU = 0.25  # IoU of both looks' masks from which on they are of one person
MAX_SAMPLE = 1e6  # of full scale, sample that no recording has; its square may not be a number
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
    presence_prob: float
    box: Box
    shape: tuple[int, int, int]
    offset: int
    zoom: float | None
    cued: bool
    power: float
    voice_distance: float | None


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
    has_video: np.ndarray
    starts: list[int]
    length: int
    keys: np.ndarray
    people: dict[int, list[Sighting]]
    missing_frames: int = 0
    missing_audio: float = 0.0
    mixdown: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def wave(self, number: int) -> RawWave:
        """What a person says; :data:`MIXTURE`: all that is heard."""
        return RawWave(self.folder / f"wave-{number}.f32", self.samples)

    def masks(self, sighting: Sighting) -> np.ndarray:
        """uint8 [F, h, w]."""
        count = int(np.prod(sighting.shape))
        with (self.folder / "masks.u8").open("rb") as file:
            file.seek(sighting.offset)
            return np.frombuffer(file.read(count), np.uint8).reshape(sighting.shape)

    def activity_prob(self, sighting: Sighting) -> np.ndarray:
        """float32 [length], probability that they are heard in each frame of the window."""
        with (self.folder / "masks.u8").open("rb") as file:
            file.seek(sighting.offset + int(np.prod(sighting.shape)))
            return np.frombuffer(file.read(4 * self.length), np.float32)


def first_pass(
    predictor: WindowPredictor,
    info: Probe,
    playback: Playback,
    folder: Path,
    settings: SeparateSettings,
    cue: Cue | None,
    on_start: Callable[[int], Callable[[], None]],
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
    shape = predictor.shape
    length = shape.frames
    starts = window_starts(playback.frames, length, max(1, round(settings.hop * length)))
    tracker = Tracker(starts, predictor.keys, length, SAMPLES, RATE)
    overlap_add = OverlapAdd([s * SAMPLES for s in starts], shape.samples, playback.samples)
    unread = UnreadMedia(info, playback, settings.max_missing)
    cue_at = (
        None
        if cue is None or cue.kind == "voice"
        else _nearest_key_frame(cue, starts, predictor.keys)
    )
    sightings: dict[int, list[Sighting]] = {}
    on_window = on_start(len(starts))
    with (folder / "masks.u8").open("wb") as masks:
        for window, start in enumerate(starts):
            frames = playback.pictures(start, length)
            wave = playback.sound(start, length)
            unread.check()
            if (peak := float(np.abs(wave).max())) > MAX_SAMPLE:
                raise MediaError("decode_error", f"its sound has samples as large as {peak:.1e}")
            window_cue = cue if cue_at is None or cue_at[0] == window else None
            key = cue_at[1] if cue_at is not None else 0
            zooms: dict[int, float] = {}
            people: list[DetectedPerson] = []
            if frames.any():  # in black, as where nothing decodes, nobody is to be seen
                people = predictor.predict(frames, wave, WHOLE, window_cue, key)
                if settings.second_look:
                    people, zooms = _refine_small_people(predictor, frames, wave, people)
            numbers = tracker.assign_numbers(people)
            waves = {MIXTURE: wave}
            for number, person in zip(numbers, people, strict=True):
                waves[number] = person.voice
                is_cued = window_cue is not None and person.slot == 0
                sightings.setdefault(number, []).append(
                    Sighting(
                        window, person.presence_prob, person.box,
                        (len(predictor.keys), *person.masks.shape[1:]), masks.tell(),
                        zooms.get(person.slot), is_cued,
                        float(np.square(person.voice).mean()),
                        predictor.voice_distance(person.voice, cue.voice)
                        if cue is not None and cue.voice is not None else None,
                    )
                )  # fmt: skip
                masks.write(person.masks.tobytes())
                masks.write(person.activity_prob.tobytes())
            first, parts = overlap_add.add(waves)
            for number, part in parts.items():
                _append(folder / f"wave-{number}.f32", first, part)
            on_window()
    return FirstPass(
        folder,
        playback.frames,
        playback.samples,
        playback.seen,
        starts,
        length,
        predictor.keys,
        sightings,
        unread.missing_frames,
        unread.missing_audio,
        playback.mixdown,
        tuple(unread.remarks()),
    )


def _append(path: Path, first: int, wave: np.ndarray) -> None:
    with path.open("r+b" if path.exists() else "wb") as file:
        file.seek(first * 4)  # whoever comes late was silent before
        file.write(wave.tobytes())


def working_geometry(info: Probe, model: tuple[int, int], second_look: bool) -> Geometry:
    """Frames as they are kept: as large as the model sees them, or larger for a second look."""
    height, width = info.display
    scale = min(model[0] / height, model[1] / width)
    if second_look:
        scale = max(scale, min(1.0, MAX_KEPT_SIDE / max(height, width)))
    size = max(16, round(height * scale)), max(16, round(width * scale))
    return cut_from(info, size, size)


def _nearest_key_frame(cue: Cue, starts: list[int], keys: np.ndarray) -> tuple[int, int]:
    """Window and key frame that are nearest to when a cue was given."""
    frame = cue.time * RATE
    distance = np.abs(np.array(starts)[:, None] + keys - frame)
    window, key = np.unravel_index(int(distance.argmin()), distance.shape)
    return int(window), int(key)


def _refine_small_people(
    predictor: WindowPredictor, frames: np.ndarray, wave: np.ndarray, people: list[DetectedPerson]
) -> tuple[list[DetectedPerson], dict[int, float]]:
    """A second look at whoever is small.

    Returns:
        people, and how many times larger they were shown, by slot.
    """
    refined, zooms = [], {}
    frame_size = frames.shape[1], frames.shape[2]
    for person in people:
        box, zoom = zoom_box(person.masks, frame_size, predictor.shape.encoder.image_size)
        closer_view = None
        if zoom >= MIN_ZOOM:
            key = int((person.masks > 127).reshape(len(person.masks), -1).sum(1).argmax())
            mask = person.masks[key] > 127
            cue = Cue("mask", box=_box_of(mask), mask=mask)
            detected = predictor.predict(frames, wave, box, cue, key)
            closer_view = next((p for p in detected if p.slot == 0), None)
        if closer_view is None or not _is_same_person(closer_view, person, people, predictor.keys):
            refined.append(person)
        else:
            # How sure it is that somebody is there was said before the cue said so.
            refined.append(
                closer_view._replace(slot=person.slot, presence_prob=person.presence_prob)
            )
            zooms[person.slot] = zoom
    return refined, zooms


def _is_same_person(
    closer_view: DetectedPerson,
    person: DetectedPerson,
    people: list[DetectedPerson],
    keys: np.ndarray,
) -> bool:
    """Whether a second look shows whom it was to show, and not somebody beside them."""
    mask = masks_at(closer_view, keys, keys) > 0.5
    ious = {p.slot: soft_iou(mask, masks_at(p, keys, keys) > 0.5) for p in people}
    return ious[person.slot] >= MIN_AGREEMENT_IOU and ious[person.slot] == max(ious.values())


def zoom_box(
    masks: np.ndarray, frame_size: tuple[int, int], model: tuple[int, int]
) -> tuple[Box, float]:
    """The part of the picture around somebody, and how many times larger the model sees it.

    Args:
        masks: uint8 [F, h, w], of the whole picture.
        picture, model: (height, width) in pixels.
    """
    left, top, right, bottom = _box_of((masks > 127).max(0))
    height, width = (bottom - top) * frame_size[0], (right - left) * frame_size[1]
    height, width = height * (1 + 2 * MARGIN), width * (1 + 2 * MARGIN)
    # As much beside them as the model's picture has room for, but no more than there are pixels.
    scale = min(model[0] / height, model[1] / width, 1.0)
    height, width = min(model[0] / scale, frame_size[0]), min(model[1] / scale, frame_size[1])
    whole = min(model[0] / frame_size[0], model[1] / frame_size[1])
    zoom = min(model[0] / height, model[1] / width) / whole
    y, x = (top + bottom) / 2 * frame_size[0], (left + right) / 2 * frame_size[1]
    y = min(max(y - height / 2, 0), frame_size[0] - height)
    x = min(max(x - width / 2, 0), frame_size[1] - width)
    box = (
        x / frame_size[1],
        y / frame_size[0],
        (x + width) / frame_size[1],
        (y + height) / frame_size[0],
    )
    return box, zoom


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
