"""Results of a separation as arrays in memory."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from cavmae.datasets.media.writing import Wave
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.finetune.inference.audio import read_wave
from cavmae.finetune.inference.mask_tracks import MaskTrack
from cavmae.finetune.inference.progress import ProgressCallback
from cavmae.finetune.inference.records import activity_prob
from cavmae.finetune.inference.separation import SeparatedRecording


@dataclasses.dataclass(frozen=True)
class SeparatedArrays:
    """Voices and masks of the people in arrays.

    Attributes:
        ids: number of each person, from 1, in the order of all other attributes.
        voices: float32 [people, samples], in step with the waveform, at its level.
        residual: float32 [samples], the mono mixture minus all voices.
        sample_rate: of both, in Hz.
        masks: bool [people, T, H, W], of the input's frames; None: not requested. Masks change
            every 40 ms.
        activity_prob: float32 [people, times], probability that each voice is active.
        activity_rate: of these times, in Hz.
        records: visible spans, speech spans, boxes and level of each person, as in ``result.json``.
        remarks: sentences about people who are left out since they stand still.
    """

    ids: tuple[int, ...]
    voices: np.ndarray
    residual: np.ndarray
    sample_rate: int
    masks: np.ndarray | None
    activity_prob: np.ndarray
    activity_rate: int
    records: tuple[Mapping[str, Any], ...]
    remarks: tuple[str, ...]


def collect_arrays(
    separated: SeparatedRecording,
    frames: tuple[int, int, int],
    frame_rate: float,
    samples: int,
    sample_rate: int,
    with_masks: bool,
    progress: ProgressCallback,
) -> SeparatedArrays:
    """Read the results of a separation into arrays.

    Args:
        separated: the results.
        frames: (T, H, W) of the input.
        frame_rate: of the input, in Hz.
        samples: length of the voices at ``sample_rate``.
        sample_rate: of the voices, in Hz.
        with_masks: read the masks.
        progress: called after each person.
    """
    recording, numbers = separated.recording, tuple(separated.people)
    grid_frames = np.rint(np.arange(frames[0]) * VIDEO_RATE / frame_rate).astype(np.int64)
    grid_frames = np.minimum(grid_frames, recording.frames - 1)
    masks = np.zeros((len(numbers), *frames), dtype=bool) if with_masks else None
    voices = np.zeros((len(numbers), samples), dtype=np.float32)
    activity = np.zeros((len(numbers), recording.frames), dtype=np.float32)
    for index, number in enumerate(numbers):
        sightings = separated.people[number]
        voices[index] = _at_length(separated.voices[number], sample_rate, samples)
        activity[index] = activity_prob(recording, sightings)
        if masks is not None:
            track = MaskTrack(recording, sightings)
            for frame, grid_frame in enumerate(grid_frames.tolist()):
                region = track.at(grid_frame, frames[1:])
                if region is not None:
                    masks[index, frame][region.place] = region.mask
        progress((index + 1) / len(numbers))
    return SeparatedArrays(
        ids=numbers,
        voices=voices,
        residual=_at_length(separated.residual, sample_rate, samples),
        sample_rate=sample_rate,
        masks=masks,
        activity_prob=activity,
        activity_rate=VIDEO_RATE,
        records=tuple(separated.records.values()),
        remarks=separated.remarks,
    )


def _at_length(wave: Wave, rate: int, samples: int) -> np.ndarray:
    """Wave at a sample rate, cut or padded with silence: float32 [samples]."""
    resampled = read_wave(wave, rate)[:samples]
    return np.pad(resampled, (0, samples - len(resampled)))
