"""First pass over a recording: window predictions, tracking, and overlap-add of the voices.

Waves and masks go to raw files in a working folder, so that memory does not grow with the
recording.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cavmae.common.boxes import Box
from cavmae.datasets.media.playback import SAMPLES
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.finetune.inference.audio import RawWave
from cavmae.finetune.inference.detections import DetectedPerson, Movement
from cavmae.finetune.inference.lip_sync import LipSync, OutOfSync
from cavmae.finetune.inference.overlap_add import OverlapAdd
from cavmae.finetune.inference.predictor import Cue, WindowPredictor
from cavmae.finetune.inference.progress import ProgressCallback
from cavmae.finetune.inference.sources import MediaSource
from cavmae.finetune.inference.tracker import Tracker
from cavmae.finetune.inference.unread_media import UnreadMedia
from cavmae.finetune.inference.window_prediction import predict_windows, windows_at_once
from cavmae.finetune.inference.window_reader import CropReader, read_windows

LEAST_VOICE = 3200  # samples that are compared with a reference voice
MIXTURE = 0  # number of the mixture among the waves; people count from 1


@dataclasses.dataclass(frozen=True)
class Sighting:
    """A detection of a person in a window.

    A person has several in a window with a cut, each with masks in other key frames.

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
        movement: over the window; None: not measured.
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
    movement: Movement | None = None


def by_window(sightings: Sequence[Sighting]) -> dict[int, list[Sighting]]:
    """Sightings of a person by the index of the window, which ascends."""
    return {
        window: list(group) for window, group in itertools.groupby(sightings, lambda s: s.window)
    }


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
        cuts: of each window, the frames that begin a shot, counted from its start.
        people: sightings by the number of the person, from 1.
        missing_frames: frames that could not be decoded.
        missing_audio: fraction of the audio packets that could not be decoded.
        mixdown: channel layouts of the audio, and their mixing.
        remarks: sentences about losses.
        sound_lead: samples by which the sound is ahead of the pictures. Voices have the times of
            the sound, masks and starts of windows those of the pictures.
    """

    folder: Path
    frames: int
    samples: int
    has_video: np.ndarray
    starts: Sequence[int]
    length: int
    keys: np.ndarray
    cuts: Sequence[tuple[int, ...]]
    people: dict[int, list[Sighting]]
    missing_frames: int = 0
    missing_audio: float = 0.0
    mixdown: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    sound_lead: int = 0

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
    media: MediaSource,
    starts: Sequence[int],
    folder: Path,
    cue: Cue | None,
    hint: int,
    second_look: bool,
    unread: UnreadMedia,
    progress: ProgressCallback,
    sound_lead: int = 0,
    lip_sync: LipSync | None = None,
) -> FirstPass:
    """Run the model on all windows of a recording.

    Args:
        predictor: the model.
        media: the recording, from its beginning, of
            :func:`~cavmae.finetune.inference.sources.working_size`.
        starts: first frames of the windows; those below 0 are the first one.
        folder: empty folder for waves and masks.
        cue: cue for the target; None: there is no target.
        hint: class number of the people; 0: none.
        second_look: run the model again on crops around small people.
        unread: losses of the recording.
        progress: called after each window.
        sound_lead: samples by which the sound is ahead of the pictures.
        lip_sync: measures what the sound is ahead beside that; None: that is not measured.

    Raises:
        OutOfSync: sound and pictures are apart, by ``lip_sync``.
        MediaError: more of the recording is lost than the settings allow.
        NonFiniteError: the model gives NaN or Inf.
        CavmaeError: no key frame is in the shot of a box, point or mask.
    """
    length = predictor.config.frames
    tracker = Tracker(starts, predictor.keys, length, SAMPLES, VIDEO_RATE, predictor.thresholds)
    overlap_add = OverlapAdd(
        [s * SAMPLES - sound_lead for s in starts], predictor.config.samples, media.num_samples
    )
    cue_window = None
    if cue is not None and cue.kind != "voice":
        cue_window = _central_window(cue.time, starts, length)
    cues = [cue if cue_window in (None, index) else None for index in range(len(starts))]
    sightings: dict[int, list[Sighting]] = {}
    cuts: list[tuple[int, ...]] = []
    with (
        (folder / "masks.u8").open("wb") as masks,
        CropReader(predictor, media, starts) as crop_reader,
        contextlib.closing(
            # Not where two windows at a time keep all cores busy.
            read_windows(
                predictor, media, starts, sound_lead, ahead=windows_at_once(predictor) == 1
            )
        ) as windows,
        contextlib.closing(
            predict_windows(
                predictor, windows, cues, hint, crop_reader if second_look else None, unread
            )
        ) as predictions,
    ):
        for index, (wave, prediction) in enumerate(predictions):
            people, cued, zooms, window_cuts, openings = prediction
            cuts.append(window_cuts)
            numbers = tracker.assign_numbers(people)
            waves = {MIXTURE: wave}
            for number, person, is_cued in zip(numbers, people, cued, strict=True):
                # Voices add up to the mixture, so those of a person before and after a cut do.
                waves[number] = waves[number] + person.voice if number in waves else person.voice
                sighting = Sighting(
                    window=index,
                    presence_prob=person.presence_prob,
                    box=person.box,
                    shape=(len(predictor.keys), *person.masks.shape[1:]),
                    offset=masks.tell(),
                    zoom=zooms.get(person.slot),
                    cued=is_cued,
                    power=float(np.square(person.voice).mean()),
                    voice_distance=_voice_distance(predictor, person, cue),
                    movement=person.movement,
                )
                sightings.setdefault(number, []).append(sighting)
                masks.write(person.masks.tobytes())
                masks.write(person.activity_prob.tobytes())
            first, parts = overlap_add.add(waves)
            for number, part in parts.items():
                _append(folder / f"wave-{number}.f32", first, part)
            if lip_sync is not None:
                lip_sync.add(openings, wave)
                is_last = index + 1 == len(starts)
                if lead := lip_sync.lead() if is_last else lip_sync.early_lead():
                    raise OutOfSync(lead)
            progress((index + 1) / len(starts))
    return FirstPass(
        folder=folder,
        frames=media.frames,
        samples=media.num_samples,
        has_video=media.has_frame,
        starts=starts,
        length=length,
        keys=predictor.keys,
        cuts=cuts,
        people=sightings,
        missing_frames=unread.missing_frames,
        missing_audio=unread.missing_audio,
        mixdown=media.mixdown,
        remarks=tuple(unread.remarks()),
        sound_lead=sound_lead,
    )


def _voice_distance(
    predictor: WindowPredictor, person: DetectedPerson, cue: Cue | None
) -> float | None:
    """Distance of a voice from the reference voice; None: there is none, or hardly a voice."""
    if cue is None or cue.voice is None:
        return None
    voice = np.trim_zeros(person.voice)  # which is silent beyond its shot
    if len(voice) < LEAST_VOICE:
        return None
    return predictor.voice_distance(voice, cue.voice)


def _append(path: Path, first: int, wave: np.ndarray) -> None:
    wave, first = wave[max(0, -first) :], max(0, first)  # before the sound begins is nothing
    with path.open("r+b" if path.exists() else "wb") as file:
        file.seek(first * 4)  # a voice is silent before its first window
        file.write(wave.tobytes())


def _central_window(time: float, starts: Sequence[int], length: int) -> int:
    """Index of the window in whose middle a time in seconds is, as nearly as may be."""
    middles = np.array(starts) + length / 2
    return int(np.abs(middles - time * VIDEO_RATE).argmin())
