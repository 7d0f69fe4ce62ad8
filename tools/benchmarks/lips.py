"""`cavmae bench lips`: whether mouths show who speaks, measured in a rendered corpus.

Two measures of a mouth are compared with the envelopes of voices: the opening that was drawn, and
what a linear model (ridge regression, trained on other speakers) reads from the pixels of the
encoded video. If a corpus is any good, a mouth goes with its own voice at its own time, and with no
other voice and no other time.
"""

import contextlib
import dataclasses
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
from cavmae.datasets.media.probe import probe
from cavmae.datasets.media.sound import Sound
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.tools.benchmarks.table import machine

log = logging.getLogger("cavmae")
CROP = (24, 16)  # pixels to which a mouth is scaled
RANGE = 35.0  # dB of the envelope
SHIFT = 0.4  # s
READABLE = 0.8  # correlation of what is read with what was drawn
RIDGE = 1e3
NEIGHBOURS = 20  # voices a mouth is tried with


@dataclasses.dataclass(frozen=True)
class LipsBench:
    """What is measured.

    Args:
        corpus: folder made by `cavmae render-talkers`.
        clips: at most this many.
    """

    corpus: str
    clips: int = 400


class Lips(NamedTuple):
    """One person's mouth and voice over a clip.

    Attributes:
        speaker: their id.
        opening: as drawn, [frames].
        pixels: of the mouth in the encoded video, [frames, features].
        envelope: of the clean voice in dB, cut to its upper 35 dB, [frames].
        sound_late: ms by which the file's sound comes after the clean mixture.
    """

    speaker: str
    opening: np.ndarray
    pixels: np.ndarray
    envelope: np.ndarray
    sound_late: float


def envelope(sound: np.ndarray, rate: int, frames: int, frame_rate: float) -> np.ndarray:
    """float64 [frames]: level around each frame's time, in dB above ``RANGE`` below the loudest."""
    middle = np.rint(np.arange(frames) * rate / frame_rate).astype(int)
    half = round(rate / frame_rate / 2)
    energy = np.concatenate([[0.0], np.cumsum(sound.astype(np.float64) ** 2)])
    first, last = (np.clip(middle + d, 0, len(sound)) for d in (-half, half))
    power = (energy[last] - energy[first]) / np.maximum(last - first, 1)
    level = 10 * np.log10(power + 1e-12)
    found: np.ndarray = np.maximum(level - level.max() + RANGE, 0)
    return found


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's; 0 where one of them is constant."""
    if first.std() < 1e-9 or second.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def sound_lag(path: Path, mixture: np.ndarray) -> float:
    """Seconds by which a video's sound, read as for training, comes after the clean mixture."""
    with contextlib.closing(Sound(probe(str(path)))) as reader:
        heard, _ = reader.read(0.0, len(mixture) / SAMPLE_RATE)
    size = 2 * len(mixture)
    across = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(mixture, size)), size)
    lag = int(np.argmax(across))
    return (lag - size if lag > size // 2 else lag) / SAMPLE_RATE


def picture_lag(seen: np.ndarray, drawn: np.ndarray, frame_rate: float) -> float:
    """Seconds by which what is seen comes after what was drawn: the top of their correlation."""
    reach = 5
    inner = slice(reach, len(drawn) - reach)
    found = np.array(
        [
            correlation(seen[reach + lag : len(seen) - reach + lag], drawn[inner])
            for lag in range(-reach, reach + 1)
        ]
    )
    top = int(np.clip(np.argmax(found), 1, 2 * reach - 1))
    before, at, after = found[top - 1 : top + 2]
    curve = before - 2 * at + after
    between = 0.0 if curve == 0 else 0.5 * (before - after) / curve
    return float((top - reach + between) / frame_rate)


def _crops(path: Path, boxes: list[np.ndarray]) -> list[np.ndarray]:
    """[frames, features] of each mouth: grey crops around the middles of its boxes."""
    found: list[list[np.ndarray]] = [[] for _ in boxes]
    widths = [1.5 * float(np.percentile(b[:, 2] - b[:, 0], 90)) for b in boxes]
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            image = Image.fromarray(frame.to_ndarray(format="gray"))
            for person, track in enumerate(boxes):
                left, top, right, _ = track[number]
                # The upper lip hardly moves: crops hang from it.
                x, y, half = (left + right) / 2, top, widths[person] / 2
                box = (x - half, y - half * 0.35, x + half, y + half)
                crop = image.resize(CROP, Image.Resampling.BILINEAR, box=_inside(box, image.size))
                found[person].append(np.asarray(crop, np.float32).ravel())
    stacked = [np.stack(crops) for crops in found]
    # Each clip's own mean picture taken away: looks do not matter, movements do.
    return [(s - s.mean(0)) / (s.std() + 1.0) for s in stacked]


def _inside(
    box: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    left, top = max(box[0], 0.0), max(box[1], 0.0)
    return left, top, max(min(box[2], size[0]), left + 1), max(min(box[3], size[1]), top + 1)


def collect(corpus: Path, clips: int) -> Iterator[Lips]:
    """Mouths that are in sight, with voices that are heard, of clips in step."""
    folders = sorted((corpus / "clips").glob("*/truth.json"))[:clips]
    if not folders:
        raise CavmaeError(f"{corpus} has no clips; make some with `cavmae render-talkers`.")
    for path in folders:
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
        late = 1000 * sound_lag(video, mixture)
        for person, pixels in zip(people, crops, strict=True):
            sound, rate = soundfile.read(str(path.parent / person["voice"]), dtype="float32")
            level = envelope(sound, rate, truth["frames"], truth["frame_rate"])
            opening = np.array(person["mouth_opening"])
            yield Lips(person["speaker"], opening, pixels, level, late)


def _fit(lips: list[Lips], what: str) -> np.ndarray:
    """Weights [features] from pixels to the envelope or the opening, by ridge regression."""
    pixels = np.concatenate([x.pixels for x in lips]).astype(np.float64)
    target = np.concatenate([getattr(x, what) - getattr(x, what).mean() for x in lips])
    found: np.ndarray = np.linalg.solve(
        pixels.T @ pixels + RIDGE * np.eye(pixels.shape[1]), pixels.T @ target
    )
    return found


def measure(tracks: list[np.ndarray], voices: list[np.ndarray], shift: int) -> dict[str, float]:
    """Correlations of mouths with their own voice, with others, and with their own too late.

    Args:
        tracks: of each mouth, [frames].
        voices: envelope of each mouth's voice, [frames].
        shift: frames.
    """
    rng = np.random.default_rng(0)
    own, other, late, chosen, in_step = [], [], [], [], []
    for number, (track, voice) in enumerate(zip(tracks, voices, strict=True)):
        mine = correlation(track, voice)
        strangers = [n for n in range(len(voices)) if n != number]
        picked = rng.permutation(strangers)[:NEIGHBOURS]
        others = [correlation(track[: len(voices[n])], voices[n][: len(track)]) for n in picked]
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
        "own voice": float(np.mean(own)),
        "other voices": float(np.mean(other)),
        "400 ms off": float(np.mean(late)),
        "own voice found": float(np.mean(chosen)),
        "in step found": float(np.mean(in_step)),
    }


def evaluate(corpus: Path, clips: int) -> dict[str, dict[str, float]]:
    """Both measures of the mouths of speakers that the linear model was not trained on.

    Raises:
        CavmaeError: no corpus, or too few speakers in it.
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
    # Of mouths that the model reads well: in beards and bad light it sees no step to measure.
    clear = [x for x in held if correlation(x.pixels @ reading, x.opening) > READABLE]
    late = [1000 * picture_lag(x.pixels @ reading, x.opening, rate) for x in clear] or [np.nan]
    apart = [x.sound_late - p for x, p in zip(clear, late, strict=False)] or [np.nan]
    return {
        "opening as drawn": measure([x.opening for x in held], voices, shift),
        "read from pixels": measure([x.pixels @ weights for x in held], voices, shift),
        "mouths": {"measured": len(held), "trained on": len(known)},
        "ms": {
            "mouths read well": float(len(clear)),
            "sound late": float(np.median([x.sound_late for x in held])),
            "picture late": float(np.median(late)),
            "apart": float(np.median(np.abs(apart))),
            "apart in 95 of 100": float(np.percentile(np.abs(apart), 95)),
        },
    }


def run(bench: LipsBench) -> None:
    """Measures and prints."""
    found = evaluate(Path(bench.corpus), bench.clips)
    counts, steps = found.pop("mouths"), found.pop("ms")
    print(
        f"Mouths and voices ({time.strftime('%Y-%m-%d')}, {machine()}); "
        f"{counts['measured']:.0f} mouths, linear model of {counts['trained on']:.0f} others\n"
    )
    names = list(next(iter(found.values())))
    print(f"| correlation of the envelope with | {' | '.join(names)} |")
    print("|---|" + "---:|" * len(names))
    for name, values in found.items():
        cells = [f"{v:.0%}" if n.endswith("found") else f"{v:.2f}" for n, v in values.items()]
        print(f"| {name} | {' | '.join(cells)} |")
    print(
        f"\n'Own voice found': it correlates better than each of {NEIGHBOURS} others. 'In step "
        "found': better than 400 ms earlier and later.\n"
    )
    print(f"| in the encoded file, ms | {' | '.join(steps)} |")
    print("|---|" + "---:|" * len(steps))
    print(f"| | {' | '.join(f'{v:.3g}' for v in steps.values())} |")
