"""Records of people: visible spans, speech spans, boxes, levels."""

from typing import Any

import numpy as np

from cavmae.common.boxes import pixel_box
from cavmae.datasets.media.playback import SAMPLES
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.finetune.inference.audio import Span, spans_of
from cavmae.finetune.inference.first_pass import FirstPass, Sighting, by_window
from cavmae.finetune.inference.overlap_add import CrossfadeWeights
from cavmae.finetune.inference.predictor import Cue
from cavmae.finetune.inference.settings import Thresholds
from cavmae.finetune.inference.shots import interpolate_keys

BOX_INTERVAL = 25  # frames between boxes in the record


def visible_frames(recording: FirstPass, sightings: list[Sighting]) -> np.ndarray:
    """Visibility of a person by frame, bool [frames], from the weighted masks of all windows."""
    weights = CrossfadeWeights(recording.starts, recording.length)
    total = np.zeros(recording.frames + recording.length, dtype=np.float32)
    frames = np.arange(recording.length)
    for sighting in sightings:
        start = recording.starts[sighting.window]
        masks = recording.masks(sighting)
        key_visible = (masks > 127).reshape(len(masks), -1).max(1).astype(np.float32)
        cuts = recording.cuts[sighting.window]
        window_visible = interpolate_keys(key_visible, frames, recording.keys, cuts)
        before = max(0, -start)  # frames before the recording
        weighted = window_visible * weights.of(sighting.window)
        total[start + before : start + recording.length] += weighted[before:]
    visible: np.ndarray = (total[: recording.frames] > 0.5) & recording.has_video
    return visible


def activity_prob(recording: FirstPass, sightings: list[Sighting]) -> np.ndarray:
    """Probability that a voice is active, as the weighted mean over windows with the person.

    Its times are those of the sound.

    Returns:
        float32 [frames].
    """
    weights = CrossfadeWeights(recording.starts, recording.length)
    # Windows end up to a window, and what the sound is behind, after the recording.
    total = np.zeros((2, recording.frames + 2 * recording.length), dtype=np.float32)
    for window, group in by_window(sightings).items():
        start = recording.starts[window] - round(recording.sound_lead / SAMPLES)
        before = max(0, -start)  # frames before the recording
        weight = weights.of(window)
        # Before a cut and after it, the person is in different slots.
        prob = np.maximum.reduce([recording.activity_prob(sighting) for sighting in group])
        weighted = np.stack([weight * prob, weight])
        total[:, start + before : start + recording.length] += weighted[:, before:]
    mean_prob: np.ndarray = total[0] / np.maximum(total[1], 1e-6)
    return mean_prob[: recording.frames]


def decibels(levels: np.ndarray) -> float:
    """Mean level of all frames in dB of full scale."""
    return round(float(10 * np.log10(np.power(10, levels / 10).mean() + 1e-12)), 1)


def person_record(
    recording: FirstPass,
    sightings: list[Sighting],
    level: np.ndarray,
    spans: list[Span],
    thresholds: Thresholds,
) -> dict[str, Any]:
    """Record of a person: when they are visible and speak, where, and how loud.

    Args:
        recording: result of the first pass.
        sightings: the person in each window.
        level: float32 [frames], level of the voice in dB of full scale.
        spans: speech spans in seconds.
        thresholds: of spans.
    """
    # Those of a window with a cut are parts of one look.
    zoomed = {s.window: s for s in sightings if s.zoom is not None}.values()
    end = round(recording.samples / SAMPLE_RATE, 4)  # a frame of 40 ms may end after it
    visible = spans_of(visible_frames(recording, sightings), thresholds)
    return {
        "visible": [(begin, min(finish, end)) for begin, finish in visible],
        "speech": [(begin, min(finish, end)) for begin, finish in spans],
        "state": "speaking" if spans else "silent",
        "presence_prob": round(max(s.presence_prob for s in sightings), 3),
        "level_db": decibels(level),
        "boxes": [
            {"time": time, "box": box} for time, box in boxes_of(recording, sightings).items()
        ],
        "second_look": [
            {
                "start": max(0, recording.starts[s.window]) / VIDEO_RATE,
                "zoom": round(s.zoom or 0, 2),
            }
            for s in zoomed
        ],
    }


def boxes_of(recording: FirstPass, sightings: list[Sighting]) -> dict[float, list[float]]:
    """Boxes of a person, at most one a second: left, top, right and bottom by time in seconds."""
    boxes: dict[int, list[float]] = {}
    for sighting in sightings:
        start = recording.starts[sighting.window]
        masks = recording.masks(sighting)
        for key, mask in zip(recording.keys, masks, strict=True):
            frame = start + int(key)
            box = pixel_box(mask > 127)
            if box is not None and 0 <= frame < recording.frames:
                boxes[frame] = _in_frame(sighting, box, mask.shape)
    listed: list[int] = []
    for frame in sorted(boxes):
        if not listed or frame - listed[-1] >= BOX_INTERVAL:
            listed.append(frame)
    return {frame / VIDEO_RATE: boxes[frame] for frame in listed}


def _in_frame(
    sighting: Sighting, box: tuple[int, int, int, int], shape: tuple[int, ...]
) -> list[float]:
    """Box as fractions of the frame, of a box in pixels of masks of a shape."""
    left, top, right, bottom = sighting.box
    width, height = right - left, bottom - top
    return [
        round(left + width * box[0] / shape[1], 4),
        round(top + height * box[1] / shape[0], 4),
        round(left + width * box[2] / shape[1], 4),
        round(top + height * box[3] / shape[0], 4),
    ]


def target_record(target: Cue | None) -> dict[str, Any] | None:
    """Record of the target in ``result.json``."""
    if target is None:
        return None
    if target.kind == "voice":
        return {"kind": "voice"}
    return {"kind": target.kind, "time": target.time, "box": list(target.box)}
