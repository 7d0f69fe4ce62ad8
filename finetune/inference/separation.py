"""Separation of one recording, from any source and before any output.

Files and arrays (:mod:`.result_files`, :mod:`.result_arrays`) are written from the same
:class:`SeparatedRecording`.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cavmae.common.errors import UsageError
from cavmae.datasets.media.playback import SAMPLES
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.finetune.inference.audio import RawWave, Span, loudness, speech_spans, write_residual
from cavmae.finetune.inference.first_pass import MIXTURE, FirstPass, Sighting, first_pass
from cavmae.finetune.inference.lip_sync import LipSync, OutOfSync
from cavmae.finetune.inference.overlap_add import window_starts
from cavmae.finetune.inference.predictor import Cue, WindowPredictor
from cavmae.finetune.inference.progress import ProgressCallback, part_of
from cavmae.finetune.inference.records import activity_prob, person_record
from cavmae.finetune.inference.selection import select_people
from cavmae.finetune.inference.settings import SeparateSettings
from cavmae.finetune.inference.sources import MediaSource
from cavmae.finetune.inference.unread_media import UnreadMedia

log = logging.getLogger("cavmae")
STILL_SECONDS = 0.5  # for which the last frame of a recording may stay without a remark


@dataclasses.dataclass(frozen=True)
class SeparatedRecording:
    """Voices, masks and records of a recording, in its working folder.

    Attributes:
        recording: result of the first pass.
        people: sightings of each person, by number from 1.
        voices: at 16 kHz, by number.
        mixture: at 16 kHz.
        residual: mixture minus all voices.
        spans: speech spans in seconds, by number.
        records: record of each person, by number.
        remarks: sentences about losses, and people who are left out since they stand still.
    """

    recording: FirstPass
    people: Mapping[int, list[Sighting]]
    voices: Mapping[int, RawWave]
    mixture: RawWave
    residual: RawWave
    spans: Mapping[int, list[Span]]
    records: Mapping[int, dict[str, Any]]
    remarks: tuple[str, ...]


def separate_media(
    predictor: WindowPredictor,
    name: str,
    media: MediaSource,
    audio_packets: int,
    folder: Path,
    settings: SeparateSettings,
    cue: Cue | None,
    progress: ProgressCallback,
) -> SeparatedRecording:
    """Separate a recording.

    Args:
        predictor: the model.
        name: of the recording, for log lines.
        media: the recording, from its beginning.
        audio_packets: number of its audio packets; 0: the audio is not decoded.
        folder: empty folder for waves and masks.
        settings: options of separation.
        cue: cue for the target; None: there is no target.
        progress: called at the start and after each window.

    Raises:
        MediaError: more of the recording is lost than the settings allow.
        NonFiniteError: the model gives NaN or Inf.
        CavmaeError: no person matches the target.
        UsageError: the model has no class of the hint's name, or its windows are no longer than
            twice ``settings.av_offset``.
    """
    recording = _first_pass_in_sync(
        predictor, name, media, audio_packets, folder, settings, cue, progress
    )
    selected, still = select_people(
        recording, settings.min_seconds, predictor.thresholds.min_movement_fraction, cue
    )
    remarks = (*recording.remarks, *_remarks_on_a_frozen_frame(media), *still)
    for remark in remarks:
        log.warning("%s: %s.", name, remark)
    # Numbered again, since some people of the first pass are dropped.
    voices = {number: recording.wave(track) for number, track in enumerate(selected, 1)}
    people = dict(enumerate(selected.values(), 1))
    mixture = recording.wave(MIXTURE)
    residual = write_residual(mixture, list(voices.values()), folder / "residual.f32")
    mixture_level = loudness(mixture)
    spans: dict[int, list[Span]] = {}
    records: dict[int, dict[str, Any]] = {}
    for number, sightings in people.items():
        level = loudness(voices[number])
        activity = activity_prob(recording, sightings)
        spans[number] = speech_spans(level, mixture_level, activity, predictor.thresholds)
        records[number] = person_record(
            recording, sightings, level, spans[number], predictor.thresholds
        )
    return SeparatedRecording(recording, people, voices, mixture, residual, spans, records, remarks)


def _remarks_on_a_frozen_frame(media: MediaSource) -> list[str]:
    if media.seconds - media.last_frame_time <= STILL_SECONDS:
        return []
    return [
        f"its last frame, of {media.last_frame_time:.2f} s, stays to its end at "
        f"{media.seconds:.2f} s; voices from then on follow no lips"
    ]


def sound_lead(predictor: WindowPredictor, settings: SeparateSettings) -> int:
    """Samples by which the sound is ahead of the pictures by the settings; 0 to measure it.

    Raises:
        UsageError: they are more than half of what the model sees at once.
    """
    if settings.av_offset == "auto":
        return 0
    seconds = predictor.config.frames / VIDEO_RATE
    if 2 * abs(settings.av_offset) > seconds:
        raise UsageError(
            f"--av-offset {settings.av_offset} is more than half of the {seconds:g} s that the "
            "model sees at once: give seconds, or shift the sound of the file itself."
        )
    return round(settings.av_offset * SAMPLE_RATE)


def _first_pass_in_sync(
    predictor: WindowPredictor,
    name: str,
    media: MediaSource,
    audio_packets: int,
    folder: Path,
    settings: SeparateSettings,
    cue: Cue | None,
    progress: ProgressCallback,
) -> FirstPass:
    """First pass; once more if it says that sound and pictures are apart, from the beginning."""
    hint = predictor.class_number(settings.hint)
    length = predictor.config.frames
    hop = max(1, round(settings.hop * length))
    lip_sync: LipSync | None = None
    lead = sound_lead(predictor, settings)
    if settings.av_offset == "auto":
        lip_sync = LipSync(length, settings.hop)
    done = 0.0

    def report(fraction: float) -> None:
        nonlocal done
        done = fraction
        progress(fraction)

    def run(lead: int, lip_sync: LipSync | None, progress: ProgressCallback) -> FirstPass:
        # Sound after the last picture or before the first one goes with that one.
        apart = -(-abs(lead) // SAMPLES)
        first = -apart if lead < 0 else 0
        starts = [first + s for s in window_starts(media.frames + apart, length, hop)]
        windows = f"{len(starts)} window{'s' if len(starts) > 1 else ''}"
        log.info("%s: %.1f s, %s.", name, media.seconds, windows)
        unread = UnreadMedia(media, audio_packets, settings.max_missing)
        return first_pass(
            predictor, media, starts, folder, cue, hint, settings.second_look, unread, progress,
            lead, lip_sync,
        )  # fmt: skip

    progress(0.0)
    try:
        return run(lead, lip_sync, report)
    except OutOfSync as apart:
        lead = apart.lead
    log.warning(
        "%s: its sound is %.2f s %s its pictures, as lips show; both are put in "
        "step (--av-offset 0: left apart).",
        name, abs(lead) / SAMPLE_RATE, "ahead of" if lead > 0 else "behind",
    )  # fmt: skip
    media.rewind()
    for wave in folder.glob("wave-*.f32"):
        wave.unlink()
    return run(lead, None, part_of(progress, done, 1.0))
