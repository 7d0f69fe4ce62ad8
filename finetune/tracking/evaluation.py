"""Evaluation of separated recordings: their tracks and voices against ground truth.

Each recording goes through :class:`~cavmae.finetune.inference.separator.Separator`, as for a user,
and the files that it writes are compared with the truth.
"""

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import av
import numpy as np
import soundfile
import torch
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from cavmae.common.errors import CavmaeError
from cavmae.datasets.footage.truth import FootageTruth
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.finetune.inference.result_files import SeparatedFiles
from cavmae.finetune.inference.separator import Separator
from cavmae.finetune.inference.settings import SeparateSettings
from cavmae.finetune.speaker.metric_table import Metric
from cavmae.finetune.speaker.metrics import ALONE_DB, WORST_DB
from cavmae.finetune.tracking.metrics import TrackCounts, assign_tracks, count_tracks
from cavmae.finetune.tracking.overlaps import mask_overlaps

# Keys are those of the JSON record.
TRACK_METRICS = {
    "idf1": Metric("IDF1", "", 3),
    "switches": Metric("identity switches", "a recording", 2),
    "fragments": Metric("fragmentations", "a recording", 2),
    "missed_seconds": Metric("missed people, person-seconds", "a recording", 2),
    "false_seconds": Metric("false people, person-seconds", "a recording", 2),
    "iou": Metric("IoU of matched masks", "", 3),
    "people": Metric("people, true", "a recording", 2),
    "tracks": Metric("people, separated", "a recording", 2),
    "people_without_track": Metric("people without a track", "a recording", 2),
    "si_sdri": Metric("SI-SDR improvement", "dB", 2),
    "silence_db": Metric("energy of silent people", "dB", 1),
}


@dataclasses.dataclass(frozen=True)
class PersonVoice:
    """Voice of a person in the result.

    Attributes:
        track: number of the track assigned to the person; None: there is none.
        speaks: whether the person's voice is in the mixture.
        si_sdr: of the track's voice in dB, -30 for silence; None: no track, or a silent person.
        si_sdr_mixture: of the mixture in dB; None: a silent person.
        level_db: energy of the track's voice relative to the mixture; None: no track, or a person
            who speaks.
    """

    track: int | None
    speaks: bool
    si_sdr: float | None = None
    si_sdr_mixture: float | None = None
    level_db: float | None = None

    @property
    def si_sdri(self) -> float | None:
        """SI-SDR improvement in dB; None: undefined, or the mixture is this voice alone."""
        if self.si_sdr is None or self.si_sdr_mixture is None or self.si_sdr_mixture >= ALONE_DB:
            return None
        return self.si_sdr - self.si_sdr_mixture


@dataclasses.dataclass(frozen=True)
class RecordingTracks:
    """Metrics of a recording.

    Attributes:
        counts: of its tracks.
        voices: of its people, in the order of the truth.
    """

    counts: TrackCounts
    voices: tuple[PersonVoice, ...]


def evaluate_recording(
    separator: Separator, video: Path, truth: FootageTruth, settings: SeparateSettings
) -> RecordingTracks:
    """Separates a recording into a temporary folder, and compares the result with the truth.

    Args:
        separator: the model.
        video: file of the recording.
        truth: of the recording.
        settings: options of separation; there is no overlay, and masks have the size of the truth.

    Raises:
        CavmaeError: the recording cannot be separated, or is of another size than its truth.
    """
    height = truth.people.shape[1]
    settings = dataclasses.replace(settings, overlay=False, masks=True, height=max(64, height))
    with tempfile.TemporaryDirectory(prefix="cavmae-") as folder:
        files = separator.separate(video, Path(folder) / "result", settings)
        return compare(files, truth)


def compare(files: SeparatedFiles, truth: FootageTruth) -> RecordingTracks:
    """Compares a result with the truth of its recording.

    Raises:
        CavmaeError: the result is of another size than the truth.
    """
    masks = [_read_masks(person.mask) for person in files.people if person.mask is not None]
    try:
        overlaps = mask_overlaps(truth.people, len(truth.voices), masks)
    except ValueError as error:
        raise CavmaeError(
            f"{files.folder} does not belong to this truth ({error}): separate the recording again."
        ) from error
    voices = [_read_voice(person.voice) for person in files.people]
    mixture = _read_voice(files.residual) + sum(voices, np.float32(0))
    tracks = assign_tracks(overlaps)
    people = tuple(
        _person_voice(tracks.get(person), voices, voice, mixture)
        for person, voice in enumerate(truth.voices)
    )
    return RecordingTracks(count_tracks(overlaps), people)


def _read_masks(path: Path) -> Iterator[np.ndarray]:
    """Masks of a mask video, bool [height, width] at 25 Hz."""
    with av.open(f"file:{path}") as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="gray") > 127


def _read_voice(path: Path) -> np.ndarray:
    samples, _ = soundfile.read(str(path), dtype="float32")
    voice: np.ndarray = samples
    return voice


def _person_voice(
    track: int | None, voices: Sequence[np.ndarray], true: np.ndarray, mixture: np.ndarray
) -> PersonVoice:
    """Metrics of a person's voice.

    Args:
        track: index of the assigned track.
        voices: of the tracks, of the mixture's length.
        true: of the person; zeros if they are silent.
        mixture: as the recording plays it.
    """
    speaks = bool(true.any())
    number = None if track is None else track + 1
    voice = None if track is None else voices[track]
    if not speaks:
        if voice is None:
            return PersonVoice(number, speaks)
        power, total = (max(float(np.square(w).mean()), 1e-12) for w in (voice, mixture))
        return PersonVoice(number, speaks, level_db=10 * float(np.log10(power / total)))
    si_sdr = None if voice is None else _si_sdr(voice, true)
    return PersonVoice(number, speaks, si_sdr, _si_sdr(mixture, true))


def _si_sdr(wave: np.ndarray, true: np.ndarray) -> float:
    """SI-SDR in dB of a wave that may be some samples longer or shorter than the true one."""
    if not wave.any():
        return WORST_DB
    length = min(len(wave), len(true))
    pair = torch.from_numpy(wave[:length]), torch.from_numpy(true[:length])
    return float(scale_invariant_signal_distortion_ratio(*pair))


def track_summary(recordings: Sequence[RecordingTracks]) -> dict[str, float]:
    """Metrics of recordings, of :data:`TRACK_METRICS`; those that are undefined are left out.

    IDF1 and IoU are of all frames together, counts and seconds are means over recordings, and the
    metrics of voices are means over people.
    """
    counts = sum((recording.counts for recording in recordings), TrackCounts())
    voices = [voice for recording in recordings for voice in recording.voices]
    without = sum(voice.track is None for voice in voices)
    values = {
        "idf1": counts.idf1,
        "iou": counts.iou,
        "si_sdri": _mean([v.si_sdri for v in voices]),
        "silence_db": _mean([v.level_db for v in voices]),
    } | {
        name: total / counts.recordings
        for name, total in (
            ("switches", counts.switches),
            ("fragments", counts.fragments),
            ("missed_seconds", counts.missed_frames / VIDEO_RATE),
            ("false_seconds", counts.false_frames / VIDEO_RATE),
            ("people", counts.people),
            ("tracks", counts.tracks),
            ("people_without_track", without),
        )
        if counts.recordings
    }
    return {name: value for name, value in values.items() if value is not None}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def kind_summaries(
    recordings: Mapping[str, Sequence[RecordingTracks]],
) -> dict[str, dict[str, float]]:
    """Summary of ``all`` recordings, and of each kind."""
    every = [recording for of_kind in recordings.values() for recording in of_kind]
    return {"all": track_summary(every)} | {
        kind: track_summary(of_kind) for kind, of_kind in recordings.items()
    }
