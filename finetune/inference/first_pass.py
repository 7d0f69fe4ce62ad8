"""First pass over a recording: window predictions, tracking, and overlap-add of the voices.

Waves and masks go to raw files in a working folder, so that memory does not grow with the
recording.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cavmae.datasets.media import MediaError, Probe
from cavmae.datasets.media.geometry import Geometry, cut_from
from cavmae.datasets.media.playback import SAMPLES, Playback
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.finetune.inference.audio import RawWave
from cavmae.finetune.inference.overlap_add import OverlapAdd, window_starts
from cavmae.finetune.inference.predictor import WHOLE, Box, Cue, DetectedPerson, WindowPredictor
from cavmae.finetune.inference.settings import SeparateSettings
from cavmae.finetune.inference.tracker import Tracker, masks_at, soft_iou
from cavmae.finetune.inference.unread_media import UnreadMedia

MAX_KEPT_SIDE = 1280  # pixels of the longer side of frames that are kept for a second look
MIN_ZOOM = 1.5  # smallest magnification that justifies a second look
MARGIN = 0.2  # around a person in a second look, as a fraction of their size
MIN_AGREEMENT_IOU = 0.25  # IoU of the masks of both looks at one person
MAX_SAMPLE = 1e6  # of full scale; squares of larger samples may overflow
MIXTURE = 0  # number of the mixture among the waves; people count from 1


@dataclasses.dataclass(frozen=True)
class Sighting:
    """One person in one window.

    Attributes:
        window: index of the window.
        presence_prob: probability that the slot holds a person.
        box: region of the frame that the masks cover.
        shape: (key frames, height, width) of the masks.
        offset: byte offset of the masks in ``masks.u8``; the activity probabilities follow them.
        zoom: magnification of the second look; None: there was none.
        cued: whether a cue means this person.
        power: mean square of the voice.
        voice_distance: distance from the reference voice; None: there is none.
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
    """Result of the first pass.

    Attributes:
        folder: holds ``wave-N.f32`` and ``masks.u8``.
        frames: length of the recording in frames, 25 a second.
        samples: length of the recording at 16 kHz, not rounded to whole frames.
        has_video: bool [frames], whether a frame has video.
        starts: first frames of the windows.
        length: frames of a window.
        keys: key frames, counted from the start of a window.
        people: sightings by the number of the person, from 1.
        missing_frames: frames that could not be decoded.
        missing_audio: fraction of the audio packets that could not be decoded.
        mixdown: channel layouts of the audio, and their mixing.
        remarks: sentences about losses.
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
        """Voice of a person; for :data:`MIXTURE`, the mixture."""
        return RawWave(self.folder / f"wave-{number}.f32", self.samples)

    def masks(self, sighting: Sighting) -> np.ndarray:
        """Masks of the key frames: uint8 [F, h, w]."""
        count = int(np.prod(sighting.shape))
        with (self.folder / "masks.u8").open("rb") as file:
            file.seek(sighting.offset)
            return np.frombuffer(file.read(count), np.uint8).reshape(sighting.shape)

    def activity_prob(self, sighting: Sighting) -> np.ndarray:
        """Probability that the voice is active in each frame of the window: float32 [length]."""
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
    """Run the model on all windows of a recording.

    Args:
        predictor: the model.
        info: streams of the recording.
        playback: the recording, from its beginning, in :func:`working_geometry`.
        folder: empty folder for waves and masks.
        settings: options of separation.
        cue: cue for the target; None: there is no target.
        on_start: called with the number of windows; returns a function to call after each.

    Raises:
        MediaError: more of the recording is lost than the settings allow.
        NonFiniteError: the model gives NaN or Inf.
    """
    shape = predictor.shape
    length = shape.frames
    starts = window_starts(playback.frames, length, max(1, round(settings.hop * length)))
    tracker = Tracker(starts, predictor.keys, length, SAMPLES, VIDEO_RATE)
    overlap_add = OverlapAdd([s * SAMPLES for s in starts], shape.samples, playback.num_samples)
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
            frames = playback.read_frames(start, length)
            wave = playback.read_audio(start, length)
            unread.check()
            if (peak := float(np.abs(wave).max())) > MAX_SAMPLE:
                raise MediaError("decode_error", f"its audio has samples as large as {peak:.1e}")
            window_cue = cue if cue_at is None or cue_at[0] == window else None
            key = cue_at[1] if cue_at is not None else 0
            zooms: dict[int, float] = {}
            people: list[DetectedPerson] = []
            if frames.any():  # black, as where nothing decodes, shows no people
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
        playback.num_samples,
        playback.has_frame,
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
        file.seek(first * 4)  # a voice is silent before its first window
        file.write(wave.tobytes())


def working_geometry(info: Probe, model_size: tuple[int, int], second_look: bool) -> Geometry:
    """Geometry of the frames that are kept: the model's input size, or more for a second look."""
    height, width = info.display
    scale = min(model_size[0] / height, model_size[1] / width)
    if second_look:
        scale = max(scale, min(1.0, MAX_KEPT_SIDE / max(height, width)))
    size = max(16, round(height * scale)), max(16, round(width * scale))
    return cut_from(info, size, size)


def _nearest_key_frame(cue: Cue, starts: list[int], keys: np.ndarray) -> tuple[int, int]:
    """Indices of the window and the key frame that are nearest to the time of a cue."""
    frame = cue.time * VIDEO_RATE
    distance = np.abs(np.array(starts)[:, None] + keys - frame)
    window, key = np.unravel_index(int(distance.argmin()), distance.shape)
    return int(window), int(key)


def _refine_small_people(
    predictor: WindowPredictor, frames: np.ndarray, wave: np.ndarray, people: list[DetectedPerson]
) -> tuple[list[DetectedPerson], dict[int, float]]:
    """Run the model again on crops around small people.

    Returns:
        people, and the magnification of each second look by slot.
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
            # The cue of the second look biases the presence probability, so the first one stays.
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
    """Whether a second look shows the intended person and not a neighbor."""
    mask = masks_at(closer_view, keys, keys) > 0.5
    ious = {p.slot: soft_iou(mask, masks_at(p, keys, keys) > 0.5) for p in people}
    return ious[person.slot] >= MIN_AGREEMENT_IOU and ious[person.slot] == max(ious.values())


def zoom_box(
    masks: np.ndarray, frame_size: tuple[int, int], model_size: tuple[int, int]
) -> tuple[Box, float]:
    """Crop around a person, and its magnification relative to the whole frame.

    Args:
        masks: uint8 [F, h, w], of the whole frame.
        frame_size: (height, width) of the frame in pixels.
        model_size: (height, width) of the model's input in pixels.
    """
    left, top, right, bottom = _box_of((masks > 127).max(0))
    height, width = (bottom - top) * frame_size[0], (right - left) * frame_size[1]
    height, width = height * (1 + 2 * MARGIN), width * (1 + 2 * MARGIN)
    # The crop fills the model's input, but is not upsampled and does not exceed the frame.
    scale = min(model_size[0] / height, model_size[1] / width, 1.0)
    height, width = (
        min(model_size[0] / scale, frame_size[0]),
        min(model_size[1] / scale, frame_size[1]),
    )
    whole = min(model_size[0] / frame_size[0], model_size[1] / frame_size[1])
    zoom = min(model_size[0] / height, model_size[1] / width) / whole
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
    """Bounding box of a mask, as fractions of its size; the whole frame for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return WHOLE
    height, width = mask.shape
    return (
        float(columns[0]) / width, float(rows[0]) / height,
        float(columns[-1] + 1) / width, float(rows[-1] + 1) / height,
    )  # fmt: skip
