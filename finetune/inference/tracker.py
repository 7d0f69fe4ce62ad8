"""Tracks people across overlapping windows.

People of consecutive windows are matched by their masks and voices in the frames that both windows
share, which holds when two people cross. People who return after some windows are matched by their
color histograms. A person without a match starts a new track.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from cavmae.common.boxes import Box
from cavmae.finetune.inference.predictor import DetectedPerson
from cavmae.finetune.inference.settings import Thresholds

RASTER = 48  # points along each side of the raster on which masks are compared


@dataclasses.dataclass
class Track:
    """A person over all windows.

    Attributes:
        number: from 1, in the order of appearance.
        window: index of the last window with the person.
        person: prediction of that window, while it is the previous one.
        colors: mean color histogram.
        windows: number of windows with the person.
    """

    number: int
    window: int
    person: DetectedPerson | None
    colors: np.ndarray
    windows: int = 1


class Tracker:
    """Numbers the people of consecutive windows.

    Args:
        starts: first frames of the windows.
        keys: key frames of a window, counted from its start.
        length: frames of a window.
        samples: audio samples of a frame.
        rate: frames a second.
        thresholds: of tracks.
    """

    def __init__(
        self,
        starts: Sequence[int],
        keys: np.ndarray,
        length: int,
        samples: int,
        rate: int,
        thresholds: Thresholds,
    ):
        self._starts, self._keys, self._length = starts, keys, length
        self._samples, self._rate, self._thresholds = samples, rate, thresholds
        self.tracks: list[Track] = []  # people who may still return
        self._window = -1
        self._numbers = 0

    def assign_numbers(self, people: Sequence[DetectedPerson]) -> list[int]:
        """Match the people of the next window to tracks, and return their numbers."""
        self._window += 1
        self._drop_stale()
        numbers = [0] * len(people)
        for track, index in self._match_previous(people):
            numbers[index] = self._update(track, people[index])
        for track, index in self._match_returning(
            people, [n for n, v in enumerate(numbers) if not v]
        ):
            numbers[index] = self._update(track, people[index])
        for index, person in enumerate(people):
            if not numbers[index]:
                self._numbers += 1
                self.tracks.append(Track(self._numbers, self._window, person, person.colors))
                numbers[index] = self._numbers
        return numbers

    def _drop_stale(self) -> None:
        """Drop ended tracks: long recordings can have hundreds of people."""
        first = self._starts[self._window] - self._thresholds.max_absence * self._rate
        self.tracks = [t for t in self.tracks if self._starts[t.window] + self._length >= first]
        for track in self.tracks:
            if track.window < self._window - 1:
                track.person = None

    def _update(self, track: Track, person: DetectedPerson) -> int:
        track.window, track.person = self._window, person
        track.windows += 1
        track.colors = track.colors + (person.colors - track.colors) / track.windows
        return track.number

    def _match_previous(self, people: Sequence[DetectedPerson]) -> list[tuple[Track, int]]:
        """Match tracks of the previous window by masks and voices in the shared frames."""
        before = [
            (track, track.person)
            for track in self.tracks
            if track.person is not None and track.window == self._window - 1
        ]
        if not before or not people:
            return []
        shift = self._starts[self._window] - self._starts[self._window - 1]
        if shift >= self._length:
            return []
        # Key frames of this window that the previous window covers as well.
        shared = self._keys[self._keys + shift <= self._keys[-1]]
        if not shared.size:
            shared = self._keys[:1]
        now = [masks_at(p, shared, self._keys) for p in people]
        then = [masks_at(last, shared + shift, self._keys) for _, last in before]
        shared_samples = (
            slice(shift * self._samples, None),
            slice(0, (self._length - shift) * self._samples),
        )
        score = np.array(
            [
                [
                    soft_iou(a, b)
                    + self._thresholds.voice_weight
                    * _correlation(last.voice[shared_samples[0]], person.voice[shared_samples[1]])
                    for person, b in zip(people, now, strict=True)
                ]
                for (_, last), a in zip(before, then, strict=True)
            ]
        )
        return _assign([track for track, _ in before], score, self._thresholds.min_track_score)

    def _match_returning(
        self, people: Sequence[DetectedPerson], left: Sequence[int]
    ) -> list[tuple[Track, int]]:
        """Match tracks of earlier windows by color histograms."""
        away = [t for t in self.tracks if t.window < self._window]
        if not away or not left:
            return []
        similarity = np.array(
            [[float(np.sqrt(t.colors * people[n].colors).sum()) for n in left] for t in away]
        )
        matches = _assign(away, similarity, self._thresholds.min_color_similarity)
        return [(track, left[index]) for track, index in matches]


def _assign(
    tracks: Sequence[Track], score: np.ndarray, min_score: float
) -> list[tuple[Track, int]]:
    rows, columns = linear_sum_assignment(-score)
    return [
        (tracks[row], int(column))
        for row, column in zip(rows, columns, strict=True)
        if score[row, column] >= min_score
    ]


def masks_at(person: DetectedPerson, frames: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Masks of a person on a raster of the whole frame: float32 [N, RASTER, RASTER], 0 to 1.

    Args:
        person: prediction of a window.
        frames: frames to interpolate at, counted from the start of the window.
        keys: key frames, counted from the start of the window.
    """
    values = interpolate_masks(person.masks, frames, keys)
    return np.stack([_on_raster(value, person.box) for value in values])


def interpolate_masks(masks: np.ndarray, frames: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Linear interpolation of masks [F, h, w] of key frames: float32 [N, h, w], 0 to 1."""
    position = np.interp(frames, keys, np.arange(len(keys)))
    before = np.floor(position).astype(np.int64)
    after = np.minimum(before + 1, len(keys) - 1)
    fraction = (position - before).astype(np.float32)[:, None, None]
    interpolated: np.ndarray = (
        masks[before] * (1 - fraction) + masks[after] * fraction
    ) / np.float32(255)
    return interpolated


def _on_raster(mask: np.ndarray, box: Box) -> np.ndarray:
    """Sample the mask of a region of the frame at the points of the raster."""
    centers = (np.arange(RASTER) + 0.5) / RASTER
    raster = np.zeros((RASTER, RASTER), dtype=np.float32)
    across = (centers - box[0]) / max(box[2] - box[0], 1e-6)
    down = (centers - box[1]) / max(box[3] - box[1], 1e-6)
    columns, rows = (across >= 0) & (across < 1), (down >= 0) & (down < 1)
    x = (across[columns] * mask.shape[1]).astype(np.int64)
    y = (down[rows] * mask.shape[0]).astype(np.int64)
    raster[np.ix_(rows, columns)] = mask[np.ix_(y, x)]
    return raster


def soft_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Soft IoU of masks with values from 0 to 1."""
    either = float(np.maximum(first, second).sum())
    return float(np.minimum(first, second).sum()) / either if either else 0.0


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two waves, at least 0; 0 if one of them is silent."""
    size = float(np.sqrt(np.square(first).sum() * np.square(second).sum()))
    return max(0.0, float((first * second).sum()) / size) if size > 1e-6 else 0.0
