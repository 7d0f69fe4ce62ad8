"""Overlapping windows of a long recording, and the overlap-add of their predictions.

Predictions of overlapping windows are averaged with weights that rise and fall smoothly and add up
to one everywhere, so that the joints neither click nor change the level.
"""

import bisect
from collections.abc import Mapping, Sequence

import numpy as np

FLOOR = 1e-3  # smallest weight; the first and the last sample need one above 0


def window_starts(frames: int, length: int, hop: int) -> list[int]:
    """First frames of the windows that cover a recording.

    Args:
        frames: length of the recording; one shorter than a window has a single window.
        length: frames of a window.
        hop: frames from a window to the next; the last step may be shorter, so that the last
            window ends with the recording.

    Raises:
        ValueError: the hop is not from 1 to ``length``.
    """
    if not 0 < hop <= length:
        raise ValueError(f"hop {hop} is not from 1 to the {length} frames of a window.")
    if frames <= length:
        return [0]
    return [*range(0, frames - length, hop), frames - length]


class CrossfadeWeights:
    """Crossfade weights of overlapping windows.

    Args:
        starts: first positions of the windows, in order.
        length: size of a window, in the unit of the starts.
    """

    def __init__(self, starts: Sequence[int], length: int):
        self.starts = starts
        self.length = length
        rising = np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2
        self._shape = (rising + FLOOR).astype(np.float32)

    def of(self, number: int) -> np.ndarray:
        """Weights of a window, float32 [length]; over all windows they add up to 1."""
        start = self.starts[number]
        total = np.zeros(self.length, dtype=np.float32)
        before = bisect.bisect_right(self.starts, start - self.length)
        after = bisect.bisect_left(self.starts, start + self.length)
        for other in self.starts[before:after]:
            shift = other - start
            first, last = max(0, shift), min(self.length, self.length + shift)
            total[first:last] += self._shape[first - shift : last - shift]
        weights: np.ndarray = self._shape / total
        return weights


class OverlapAdd:
    """Streaming overlap-add of the waves of windows.

    Args:
        starts: first samples of windows, in order.
        length: samples of a window.
        samples: length of the recording; samples of windows beyond it are dropped.
    """

    def __init__(self, starts: Sequence[int], length: int, samples: int):
        self._weights = CrossfadeWeights(starts, length)
        self._samples = samples
        self._number = 0
        self._pending: dict[int, np.ndarray] = {}
        self._until: dict[int, int] = {}  # end of each pending wave, in samples

    def add(self, waves: Mapping[int, np.ndarray]) -> tuple[int, dict[int, np.ndarray]]:
        """Add the next window, and return the samples that no later window changes.

        Args:
            waves: float32 [length] by key; keys that are missing are silent in this window.

        Returns:
            the first sample of the finished part, and that part of each wave by key; keys that
            are missing are silent in it.
        """
        weights, length = self._weights, self._weights.length
        start = weights.starts[self._number]
        window_weights = weights.of(self._number)
        for name in [n for n, until in self._until.items() if until <= start]:
            del self._pending[name], self._until[name]
        for name, wave in waves.items():
            self._until[name] = start + length
            pending = self._pending.setdefault(name, np.zeros(length, dtype=np.float32))
            pending += window_weights * wave
        self._number += 1
        last = self._number == len(weights.starts)
        until = self._samples if last else weights.starts[self._number]
        count = min(max(0, until - start), length)
        finished = {}
        for name, pending in self._pending.items():
            finished[name] = pending[:count].copy()
            self._pending[name] = np.concatenate(
                [pending[count:], np.zeros(count, dtype=np.float32)]
            )
        return start, finished
