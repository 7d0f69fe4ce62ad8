"""What ``result.json`` says of the people of a recording: when, where, how loud."""

from typing import Any

import numpy as np

from cavmae.datasets.media.playback import RATE
from cavmae.finetune.inference.audio import Span, spans_of
from cavmae.finetune.inference.first_pass import FirstPass, Sighting
from cavmae.finetune.inference.overlap_add import CrossfadeWeights
from cavmae.finetune.inference.predictor import Cue
from cavmae.finetune.inference.settings import SeparateSettings

EVERY = 25  # frames from box to box in the result


def visible(found: FirstPass, sightings: list[Sighting]) -> np.ndarray:
    """bool [frames], when somebody is to be seen: where windows, as they are weighed, say so."""
    weights = CrossfadeWeights(found.starts, found.length)
    total = np.zeros(found.frames + found.length, dtype=np.float32)
    for sighting in sightings:
        start = found.starts[sighting.window]
        shown = (found.masks(sighting) > 127).any(axis=(1, 2)).astype(np.float32)
        share = np.interp(np.arange(found.length), found.keys, shown)
        total[start : start + found.length] += share * weights.of(sighting.window)
    seen: np.ndarray = (total[: found.frames] > 0.5) & found.seen
    return seen


def likely_heard(found: FirstPass, sightings: list[Sighting]) -> np.ndarray:
    """How likely somebody is heard: the weighted mean of the windows that show them.

    Returns:
        float32 [frames].
    """
    weights = CrossfadeWeights(found.starts, found.length)
    total = np.zeros((2, found.frames + found.length), dtype=np.float32)
    for sighting in sightings:
        start = found.starts[sighting.window]
        weight = weights.of(sighting.window)
        told = np.stack([weight * found.heard(sighting), weight])
        total[:, start : start + found.length] += told
    likely: np.ndarray = total[0] / np.maximum(total[1], 1e-6)
    return likely[: found.frames]


def decibels(levels: np.ndarray) -> float:
    """Of full scale, over all frames."""
    return round(float(10 * np.log10(np.power(10, levels / 10).mean() + 1e-12)), 1)


def person_record(
    found: FirstPass,
    number: int,
    sightings: list[Sighting],
    level: np.ndarray,
    spans: list[Span],
    settings: SeparateSettings,
) -> dict[str, Any]:
    """All that is told of somebody.

    Args:
        number: that they are given out under.
        level: float32 [frames], loudness of their voice in dB of full scale.
        spans: when they speak, in seconds.
    """
    boxes: dict[int, list[float]] = {}
    for sighting in sightings:
        start = found.starts[sighting.window]
        masks = found.masks(sighting)
        for key, mask in zip(found.keys, masks, strict=True):
            frame = start + int(key)
            rows, columns = np.flatnonzero((mask > 127).any(1)), np.flatnonzero((mask > 127).any(0))
            if rows.size and frame < found.frames:
                boxes[frame] = _box(sighting, rows, columns, mask.shape)
    shown: list[int] = []
    for frame in sorted(boxes):
        if not shown or frame - shown[-1] >= EVERY:
            shown.append(frame)
    close = [s for s in sightings if s.closer is not None]
    return {
        "number": number,
        "voice": f"person-{number}.wav",
        "mask": f"person-{number}.mp4" if settings.masks else None,
        "visible": spans_of(visible(found, sightings)),
        "speech": spans,
        "state": "speaking" if spans else "silent",
        "there": round(max(s.there for s in sightings), 3),
        "level_db": decibels(level),
        "boxes": [{"time": frame / RATE, "box": boxes[frame]} for frame in shown],
        "second_look": [
            {"start": found.starts[s.window] / RATE, "times_larger": round(s.closer or 0, 2)}
            for s in close
        ],
    }


def _box(
    sighting: Sighting, rows: np.ndarray, columns: np.ndarray, shape: tuple[int, ...]
) -> list[float]:
    """Left, top, right, bottom as shares of the picture."""
    left, top, right, bottom = sighting.box
    wide, high = right - left, bottom - top
    return [
        round(left + wide * float(columns[0]) / shape[1], 4),
        round(top + high * float(rows[0]) / shape[0], 4),
        round(left + wide * float(columns[-1] + 1) / shape[1], 4),
        round(top + high * float(rows[-1] + 1) / shape[0], 4),
    ]


def target_record(target: Cue | None) -> dict[str, Any] | None:
    """Who was asked for."""
    if target is None:
        return None
    if target.kind == "voice":
        return {"kind": "voice"}
    return {"kind": target.kind, "time": target.time, "box": list(target.box)}
