"""Tracks people across overlapping windows.

People of consecutive windows are matched by their masks and voices in the frames that both windows
share, which holds when two people cross. People after a cut, and those who return after some
windows, are matched by their appearance. A person without a match starts a new track.

A window with a cut may have a person twice, in a slot before the cut and in another after it. Two
detections of a window are one person if no key frame has both, and if they match the same track.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from cavmae.common.boxes import Box
from cavmae.finetune.inference.appearance import mean_appearance, similarity
from cavmae.finetune.inference.detections import DetectedPerson
from cavmae.finetune.inference.settings import Thresholds
from cavmae.finetune.inference.shots import interpolate_masks, visible_keys

RASTER = 48  # points along each side of the raster on which masks are compared


@dataclasses.dataclass
class Track:
    """A person over all windows.

    Attributes:
        number: from 1, in the order of appearance.
        window: index of the last window with the person.
        detections: the person in that window, while it is the previous one: several, if each is
            visible in other key frames.
        colors: mean appearance over the detections.
        count: number of detections so far.
    """

    number: int
    window: int
    detections: list[DetectedPerson]
    colors: np.ndarray
    count: int = 1


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
        """Match the people of the next window to tracks, and return their numbers.

        People who are visible in different key frames may get the same number.
        """
        self._window += 1
        self._drop_stale()
        numbers = [0] * len(people)
        before = [
            (track, track.detections)
            for track in self.tracks
            if track.detections and track.window == self._window - 1
        ]
        again = False
        while matches := self._match_previous(before, people, _unmatched(numbers), again):
            for track, index in matches:
                numbers[index] = self._update(track, people[index])
            again = True
        visible = [visible_keys(person) for person in people]
        while left := _unmatched(numbers):
            # In the order of time, so that a person after a cut finds the tracks before it.
            first = min(int(visible[n].argmax()) for n in left)
            cohort = [n for n in left if int(visible[n].argmax()) == first]
            for track, index in self._match_colors(people, cohort):
                numbers[index] = self._update(track, people[index])
            for index in cohort:
                if not numbers[index]:
                    numbers[index] = self._start(people[index])
        return numbers

    def _drop_stale(self) -> None:
        """Drop ended tracks: long recordings can have hundreds of people."""
        first = self._starts[self._window] - self._thresholds.max_absence * self._rate
        self.tracks = [t for t in self.tracks if self._starts[t.window] + self._length >= first]
        for track in self.tracks:
            if track.window < self._window - 1:
                track.detections = []

    def _start(self, person: DetectedPerson) -> int:
        self._numbers += 1
        colors = mean_appearance(person.colors)
        self.tracks.append(Track(self._numbers, self._window, [person], colors))
        return self._numbers

    def _update(self, track: Track, person: DetectedPerson) -> int:
        is_second = track.window == self._window
        track.detections = [*track.detections, person] if is_second else [person]
        track.window = self._window
        track.count += 1
        track.colors = track.colors + (mean_appearance(person.colors) - track.colors) / track.count
        return track.number

    def _is_free(self, track: Track, person: DetectedPerson) -> bool:
        """Whether no detection of the track in this window is in a key frame of the person."""
        return track.window < self._window or not any(
            (visible_keys(other) & visible_keys(person)).any() for other in track.detections
        )

    def _match_previous(
        self,
        before: Sequence[tuple[Track, Sequence[DetectedPerson]]],
        people: Sequence[DetectedPerson],
        left: Sequence[int],
        again: bool,
    ) -> list[tuple[Track, int]]:
        """Match tracks of the previous window by masks and voices in the shared frames.

        Args:
            before: the tracks, and their detections in that window.
            people: of this window.
            left: indices of the people without a number.
            again: tracks may have a person of this window: others match in the frames in which
                they are visible, so that each covers a part of the track.
        """
        shift = self._starts[self._window] - self._starts[self._window - 1] if before else 0
        if not before or not left or shift >= self._length:
            return []
        # Key frames of this window that the previous window covers as well.
        shared = self._keys[self._keys + shift <= self._keys[-1]]
        if not shared.size:
            shared = self._keys[:1]
        then = [
            np.maximum.reduce([masks_at(p, shared + shift, self._keys) for p in detections])
            for _, detections in before
        ]
        voices = [
            np.sum([p.voice for p in detections], axis=0)[shift * self._samples :]
            for _, detections in before
        ]
        score = np.full((len(before), len(left)), -1.0)
        for column, index in enumerate(left):
            person = people[index]
            now = masks_at(person, shared, self._keys)
            voice = person.voice[: (self._length - shift) * self._samples]
            frames = now.reshape(len(now), -1).max(1) > (0.5 if again else -1)
            for row, (track, _) in enumerate(before):
                if frames.any() and self._is_free(track, person):
                    score[row, column] = soft_iou(
                        then[row][frames], now[frames]
                    ) + self._thresholds.voice_weight * _correlation(voices[row], voice)
        matches = _assign([track for track, _ in before], score, self._thresholds.min_track_score)
        return [(track, left[column]) for track, column in matches]

    def _match_colors(
        self, people: Sequence[DetectedPerson], left: Sequence[int]
    ) -> list[tuple[Track, int]]:
        """Match tracks that are not in the key frames of these people by their appearance."""
        if not self.tracks:
            return []
        colors = [mean_appearance(people[n].colors) for n in left]
        score = np.full((len(self.tracks), len(left)), -1.0)
        for row, track in enumerate(self.tracks):
            for column, index in enumerate(left):
                if self._is_free(track, people[index]):
                    score[row, column] = similarity(track.colors, colors[column])
        matches = _assign(self.tracks, score, self._thresholds.min_color_similarity)
        return [(track, left[column]) for track, column in matches]


def _unmatched(numbers: Sequence[int]) -> list[int]:
    return [index for index, number in enumerate(numbers) if not number]


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
