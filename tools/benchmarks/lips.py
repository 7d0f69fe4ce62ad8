"""`cavmae bench lips`: agreement of mouths and voices in a rendered corpus.

Two signals of a mouth are correlated with the envelopes of voices: the drawn opening, and the
prediction of a linear model (ridge regression, trained on other speakers) from the pixels of the
encoded video. In a good corpus a mouth correlates with its own voice at its own time, and with no
other voice and no other time.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import soundfile
from PIL import Image

from cavmae.common.errors import CavmaeError
from cavmae.common.json_files import read_json
from cavmae.common.tables import markdown_table
from cavmae.datasets.media.audio_reader import AudioReader
from cavmae.datasets.media.probe import probe
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.tools.benchmarks.settings import LipsBench
from cavmae.tools.benchmarks.table import machine

log = logging.getLogger("cavmae")
CROP = (24, 16)  # pixels of a scaled mouth
RANGE = 35.0  # dB of the envelope
SHIFT = 0.4  # s
READABLE = 0.8  # correlation of the predicted opening with the drawn one
RIDGE = 1e3
CLIPS = 400  # at most
NEIGHBOURS = 20  # other voices that a mouth is compared with
# Titles of the results in the tables.
TITLES = {
    "drawn_opening": "opening as drawn",
    "pixels": "read from pixels",
    "own_voice": "own voice",
    "other_voices": "other voices",
    "shifted_400_ms": "400 ms off",
    "own_voice_fraction": "own voice found",
    "in_step_fraction": "in step found",
    "readable_mouths": "mouths read well",
    "audio_delay": "audio late",
    "video_delay": "video late",
    "offset": "apart",
    "offset_p95": "apart in 95 of 100",
}


class Lips(NamedTuple):
    """Mouth and voice of one person over a clip.

    Attributes:
        speaker: id of the person.
        opening: as drawn, [frames].
        pixels: of the mouth in the encoded video, [frames, features].
        envelope: of the clean voice in dB, cut to its upper 35 dB, [frames].
        audio_delay: of the file's audio relative to the clean mixture, in ms.
    """

    speaker: str
    opening: np.ndarray
    pixels: np.ndarray
    envelope: np.ndarray
    audio_delay: float


def envelope(wave: np.ndarray, rate: int, frames: int, frame_rate: float) -> np.ndarray:
    """Envelope of a voice at the times of video frames.

    Returns:
        float64 [frames]: dB above the level that lies ``RANGE`` below the maximum; at least 0.
    """
    middle = np.rint(np.arange(frames) * rate / frame_rate).astype(int)
    half = round(rate / frame_rate / 2)
    energy = np.concatenate([[0.0], np.cumsum(wave.astype(np.float64) ** 2)])
    first, last = (np.clip(middle + d, 0, len(wave)) for d in (-half, half))
    power = (energy[last] - energy[first]) / np.maximum(last - first, 1)
    level = 10 * np.log10(power + 1e-12)
    above: np.ndarray = np.maximum(level - level.max() + RANGE, 0)
    return above


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson correlation; 0 if one of the signals is constant."""
    if first.std() < 1e-9 or second.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def audio_lag(path: Path, mixture: np.ndarray) -> float:
    """Delay in seconds of a video's audio, read as for training, relative to the clean mixture."""
    with contextlib.closing(AudioReader(probe(str(path)))) as reader:
        wave, _ = reader.read(0.0, len(mixture) / SAMPLE_RATE)
    size = 2 * len(mixture)
    across = np.fft.irfft(np.fft.rfft(wave, size) * np.conj(np.fft.rfft(mixture, size)), size)
    lag = int(np.argmax(across))
    return (lag - size if lag > size // 2 else lag) / SAMPLE_RATE


def video_lag(predicted: np.ndarray, drawn: np.ndarray, frame_rate: float) -> float:
    """Delay in seconds of the predicted opening relative to the drawn one.

    It is the maximum of their correlation over lags, interpolated by a parabola.
    """
    reach = 5
    inner = slice(reach, len(drawn) - reach)
    correlations = np.array(
        [
            correlation(predicted[reach + lag : len(predicted) - reach + lag], drawn[inner])
            for lag in range(-reach, reach + 1)
        ]
    )
    peak = int(np.clip(np.argmax(correlations), 1, 2 * reach - 1))
    before, at, after = correlations[peak - 1 : peak + 2]
    curvature = before - 2 * at + after
    between = 0.0 if curvature == 0 else 0.5 * (before - after) / curvature
    return float((peak - reach + between) / frame_rate)


def _crops(path: Path, boxes: list[np.ndarray]) -> list[np.ndarray]:
    """Grey crops of each mouth around the middles of its boxes, [frames, features] each."""
    crops_of: list[list[np.ndarray]] = [[] for _ in boxes]
    widths = [1.5 * float(np.percentile(b[:, 2] - b[:, 0], 90)) for b in boxes]
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            image = Image.fromarray(frame.to_ndarray(format="gray"))
            for person, track in enumerate(boxes):
                left, top, right, _ = track[number]
                # Crops are anchored at the upper lip, which hardly moves.
                x, y, half = (left + right) / 2, top, widths[person] / 2
                box = (x - half, y - half * 0.35, x + half, y + half)
                crop = image.resize(CROP, Image.Resampling.BILINEAR, box=_inside(box, image.size))
                crops_of[person].append(np.asarray(crop, np.float32).ravel())
    stacked = [np.stack(crops) for crops in crops_of]
    # Without the mean frame of the clip, movement counts and appearance does not.
    return [(s - s.mean(0)) / (s.std() + 1.0) for s in stacked]


def _inside(
    box: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    left, top = max(box[0], 0.0), max(box[1], 0.0)
    return left, top, max(min(box[2], size[0]), left + 1), max(min(box[3], size[1]), top + 1)


def collect(corpus: Path, clips: int) -> Iterator[Lips]:
    """Visible mouths with audible voices, of clips whose audio and video are in step.

    Raises:
        CavmaeError: the corpus has no clips.
    """
    paths = sorted((corpus / "clips").glob("*/truth.json"))[:clips]
    if not paths:
        raise CavmaeError(f"{corpus} has no clips; make some with `cavmae render-talkers`.")
    for path in paths:
        truth: dict[str, Any] = read_json(path)
        people = [
            p
            for p in truth["people"]
            if p["role"] == "speaking" and p["speaking"] and np.mean(p["mouth_visible"]) > 0.98
        ]
        if truth["shift_ms"] or not people:
            continue
        boxes = [np.array(p["mouth_boxes"]) for p in people]
        video = path.parent / f"{path.parent.name}.mp4"
        crops = _crops(video, boxes)
        mixture, _ = soundfile.read(str(path.parent / "mixture.flac"), dtype="float32")
        delay = 1000 * audio_lag(video, mixture)
        for person, pixels in zip(people, crops, strict=True):
            wave, rate = soundfile.read(str(path.parent / person["voice"]), dtype="float32")
            level = envelope(wave, rate, truth["frames"], truth["frame_rate"])
            opening = np.array(person["mouth_opening"])
            yield Lips(person["speaker"], opening, pixels, level, delay)


def _fit(lips: list[Lips], attribute: str) -> np.ndarray:
    """Ridge regression from pixels to the envelope or the opening: weights [features]."""
    pixels = np.concatenate([x.pixels for x in lips]).astype(np.float64)
    target = np.concatenate([getattr(x, attribute) - getattr(x, attribute).mean() for x in lips])
    weights: np.ndarray = np.linalg.solve(
        pixels.T @ pixels + RIDGE * np.eye(pixels.shape[1]), pixels.T @ target
    )
    return weights


def measure(tracks: list[np.ndarray], voices: list[np.ndarray], shift: int) -> dict[str, float]:
    """Mean correlations of mouths with their own voice, with others, and with their own shifted.

    Args:
        tracks: signal of each mouth, [frames].
        voices: envelope of each mouth's voice, [frames].
        shift: frames, earlier and later.

    Returns:
        means, and fractions of mouths whose own voice correlates better than each of
        :data:`NEIGHBOURS` others, and better than when shifted.
    """
    rng = np.random.default_rng(0)
    own, other, late, chosen, in_step = [], [], [], [], []
    for number, (track, voice) in enumerate(zip(tracks, voices, strict=True)):
        mine = correlation(track, voice)
        candidates = [n for n in range(len(voices)) if n != number]
        neighbours = rng.permutation(candidates)[:NEIGHBOURS]
        others = [correlation(track[: len(voices[n])], voices[n][: len(track)]) for n in neighbours]
        shifted = [
            correlation(track[:-shift], voice[shift:]),
            correlation(track[shift:], voice[:-shift]),
        ]
        own.append(mine)
        other += others
        late += shifted
        chosen.append(mine > max(others))
        in_step.append(mine > max(shifted))
    return {
        "own_voice": float(np.mean(own)),
        "other_voices": float(np.mean(other)),
        "shifted_400_ms": float(np.mean(late)),
        "own_voice_fraction": float(np.mean(chosen)),
        "in_step_fraction": float(np.mean(in_step)),
    }


def evaluate(corpus: Path, clips: int) -> dict[str, dict[str, float]]:
    """Results of both signals, for speakers that the linear model was not trained on.

    Raises:
        CavmaeError: the corpus has no clips, or too few of different speakers.
    """
    lips = list(collect(corpus, clips))
    trained_on = set(sorted({x.speaker for x in lips})[::2])
    known = [x for x in lips if x.speaker in trained_on]
    held = [x for x in lips if x.speaker not in trained_on]
    if len(held) < 3 or len(known) < 3:
        raise CavmaeError(f"{corpus} has too few clips of different speakers; render more.")
    weights, reading = _fit(known, "envelope"), _fit(known, "opening")
    truth = read_json(next((corpus / "clips").glob("*/truth.json")))
    shift = round(SHIFT * truth["frame_rate"])
    voices = [x.envelope for x in held]
    rate = truth["frame_rate"]
    # Beards and bad light hide the lips: only mouths that the model reads well have a delay.
    readable = [x for x in held if correlation(x.pixels @ reading, x.opening) > READABLE]
    delays = [1000 * video_lag(x.pixels @ reading, x.opening, rate) for x in readable] or [np.nan]
    offsets = [x.audio_delay - p for x, p in zip(readable, delays, strict=False)] or [np.nan]
    return {
        "drawn_opening": measure([x.opening for x in held], voices, shift),
        "pixels": measure([x.pixels @ weights for x in held], voices, shift),
        "mouths": {"measured": len(held), "trained_on": len(known)},
        "ms": {
            "readable_mouths": float(len(readable)),
            "audio_delay": float(np.median([x.audio_delay for x in held])),
            "video_delay": float(np.median(delays)),
            "offset": float(np.median(np.abs(offsets))),
            "offset_p95": float(np.percentile(np.abs(offsets), 95)),
        },
    }


def run(bench: LipsBench) -> None:
    """Measure and print the tables."""
    results = evaluate(Path(bench.corpus), CLIPS)
    counts, delays = results.pop("mouths"), results.pop("ms")
    print(
        f"Mouths and voices ({time.strftime('%Y-%m-%d')}, {machine()}); "
        f"{counts['measured']:.0f} mouths, linear model of {counts['trained_on']:.0f} others\n"
    )
    names = [TITLES[name] for name in next(iter(results.values()))]
    rows = []
    for name, values in results.items():
        cells = [f"{v:.0%}" if n.endswith("_fraction") else f"{v:.2f}" for n, v in values.items()]
        rows.append([TITLES[name], *cells])
    print(markdown_table(["correlation of the envelope with", *names], rows))
    print(
        f"\n'Own voice found': it correlates better than each of {NEIGHBOURS} others. 'In step "
        "found': better than 400 ms earlier and later.\n"
    )
    head = ["in the encoded file, ms", *(TITLES[name] for name in delays)]
    print(markdown_table(head, [["", *(f"{v:.3g}" for v in delays.values())]]))
