"""Hard cuts: a window that spans one shows different people in the same slots before and after it.

Masks of such a window are interpolated within a shot, and a slot that is visible in several shots
becomes a detection in each of them, which is told from the others by its appearance.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from cavmae.datasets.media.playback import SAMPLES
from cavmae.finetune.inference.detections import DetectedPerson

GRID = 36, 64  # pixels of a frame that are compared, at least: rows and columns
NEIGHBORS = 2  # changes of the picture on either side of a cut that are small beside it
RATIO = 2.0  # of a cut's difference to theirs
AROUND = 12  # frames in which they are, and in which a flash ends
REPEATED = 0.5  # difference, of 255, below which a frame repeats the one before it
LEAST_CHANGE = 0.15  # mean absolute difference of frames with a mean of 0 and a deviation of 1
FADE = 320  # samples of the crossfade from one shot's voice to the next


def thumbnail(frame: np.ndarray) -> np.ndarray:
    """The pixels of a frame, uint8 [h, w, 3], by which cuts are found; of those they are all."""
    rows, columns = (max(1, size // least) for size, least in zip(frame.shape, GRID, strict=False))
    return np.ascontiguousarray(frame[::rows, ::columns])


def find_cuts(frames: Sequence[np.ndarray], min_difference: float) -> tuple[int, ...]:
    """Frames that begin a shot, counted from the first of these frames.

    A cut changes the picture at once: its difference is large, and much larger than those around
    it, where frames that repeat the one before them do not count. More or less light is no cut, and
    no flash is, after which the picture is as before.

    Args:
        frames: uint8 [h, w, 3] each, of one size, or the :func:`thumbnail` of each.
        min_difference: least mean absolute difference of colors, of 255.
    """
    small = np.stack([thumbnail(frame) for frame in frames]).astype(np.float32)
    differences = np.abs(np.diff(small, axis=0)).mean((1, 2, 3))  # [frames - 1]
    changes = np.flatnonzero(differences >= REPEATED)
    cuts: list[int] = []
    for index in np.flatnonzero(differences >= min_difference):
        place = int(np.searchsorted(changes, index))
        near = [*changes[max(0, place - NEIGHBORS) : place], *changes[place + 1 :][:NEIGHBORS]]
        others = differences[[n for n in near if abs(n - index) <= AROUND]]
        if differences[index] < RATIO * others.max(initial=0.0):
            continue
        if difference_of_content(small[index], small[index + 1]) < LEAST_CHANGE:
            continue
        cut = int(index) + 1
        is_end_of_flash = (
            bool(cuts)
            and cut - cuts[-1] <= AROUND
            and np.abs(small[cuts[-1] - 1] - small[cut]).mean() < min_difference
        )
        if is_end_of_flash:
            cuts.pop()
        else:
            cuts.append(cut)
    return tuple(cuts)


def difference_of_content(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference of pictures of the same brightness and contrast."""
    plain = [(x - x.mean()) / max(float(x.std()), 1.0) for x in (first, second)]
    return float(np.abs(plain[0] - plain[1]).mean())


def shots_of(frames: np.ndarray, cuts: Sequence[int]) -> np.ndarray:
    """Number of the shot of each frame, from 0: int64 [N]."""
    return np.searchsorted(np.array(cuts, dtype=np.int64), frames, side="right")


def interpolate_keys(
    values: np.ndarray, frames: np.ndarray, keys: np.ndarray, cuts: Sequence[int] = ()
) -> np.ndarray:
    """Linear interpolation of what key frames have, within shots: float32 [N, ...].

    Args:
        values: [F, ...] of the key frames.
        frames: frames to interpolate at, counted from the start of the window.
        keys: key frames, likewise.
        cuts: first frames of shots, likewise. A frame between two key frames of which one is in
            another shot has the value of the other; one whose shot has no key frame is between
            both as if there were no cut.
    """
    position = np.interp(frames, keys, np.arange(len(keys)))
    before = np.floor(position).astype(np.int64)
    after = np.minimum(before + 1, len(keys) - 1)
    fraction = (position - before).astype(np.float32)
    if cuts:
        own, of_keys = shots_of(frames, cuts), shots_of(keys, cuts)
        is_before, is_after = of_keys[before] == own, of_keys[after] == own
        fraction[is_before & ~is_after] = 0
        fraction[is_after & ~is_before] = 1
    fraction = fraction.reshape(-1, *[1] * (values.ndim - 1))
    interpolated: np.ndarray = values[before] * (1 - fraction) + values[after] * fraction
    return interpolated


def interpolate_masks(
    masks: np.ndarray, frames: np.ndarray, keys: np.ndarray, cuts: Sequence[int] = ()
) -> np.ndarray:
    """Masks uint8 [F, h, w] of key frames at other frames: float32 [N, h, w], 0 to 1.

    See :func:`interpolate_keys` for the other arguments.
    """
    return interpolate_keys(masks, frames, keys, cuts) / np.float32(255)


def visible_keys(person: DetectedPerson) -> np.ndarray:
    """Key frames in which a person has a pixel: bool [F]."""
    largest: np.ndarray = person.masks.reshape(len(person.masks), -1).max(axis=1)
    return largest > 127


def split_at_cuts(
    people: Sequence[DetectedPerson],
    cuts: Sequence[int],
    keys: np.ndarray,
    min_area_fraction: float,
) -> list[DetectedPerson]:
    """Detections of a window, each within a shot, as far as people are visible in several.

    Voices of the parts add up to that of the slot. The voice of somebody who is visible in one shot
    only is left whole: it may go on after the cut. Parts have no movement, since that of the slot
    may be another person's.

    Args:
        people: of the window.
        cuts: frames that begin a shot, counted from the start of the window.
        keys: key frames, likewise.
        min_area_fraction: of the region of the masks, which somebody who is visible in a shot
            covers at least, in the mean of its key frames.
    """
    shots = shots_of(keys, cuts)
    parts: list[DetectedPerson] = []
    for person in people:
        areas = (person.masks > 127).mean((1, 2))
        visible = [n for n in np.unique(shots) if areas[shots == n].mean() >= min_area_fraction]
        if len(visible) < 2:
            parts.append(person)
            continue
        begins = [0, *(cuts[shot - 1] for shot in visible[1:])]
        ends = [*begins[1:], len(person.activity_prob)]
        weights = [_fade_in(begin, len(person.voice)) for begin in begins]
        gates = [now - later for now, later in itertools.pairwise(weights)] + weights[-1:]
        for shot, begin, end, gate in zip(visible, begins, ends, gates, strict=True):
            own = shots == shot
            activity = np.zeros_like(person.activity_prob)
            activity[begin:end] = person.activity_prob[begin:end]
            parts.append(
                person._replace(
                    masks=person.masks * own[:, None, None].astype(np.uint8),
                    voice=person.voice * gate,
                    activity_prob=activity,
                    colors=person.colors * own[:, None, None, None].astype(np.float32),
                    movement=None,
                )
            )
    return parts


def _fade_in(frame: int, samples: int) -> np.ndarray:
    """Weight of what begins at a frame: float32 [samples], from 0 to 1 around the frame."""
    if frame == 0:
        return np.ones(samples, dtype=np.float32)
    time = np.arange(samples, dtype=np.float32) - frame * SAMPLES
    weight: np.ndarray = (time / FADE + 0.5).clip(0, 1)
    return weight
