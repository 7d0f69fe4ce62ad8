"""Windows of a long recording, and how what was found in them is joined.

Windows overlap by half or more. What lies under several is their weighted mean, with weights that
rise and fall smoothly and add up to one everywhere: no clicks, and no part that is louder.
"""

import bisect
from collections.abc import Mapping, Sequence

import numpy as np

FLOOR = 1e-3  # of a weight, so that the first and the last sample have one


def window_starts(frames: int, length: int, hop: int) -> list[int]:
    """First frames of windows that cover a recording; all of them lie within it.

    Args:
        frames: of the recording; a shorter one than a window has a single window.
        length: of a window.
        hop: from a window to the next; the last one may begin sooner, to end where all ends.

    Raises:
        ValueError: a hop that leaves something out.
    """
    if not 0 < hop <= length:
        raise ValueError(f"hop {hop} is not from 1 to the {length} frames of a window.")
    if frames <= length:
        return [0]
    return [*range(0, frames - length, hop), frames - length]


class CrossfadeWeights:
    """How much of each place of a window counts, beside the other windows that cover it.

    Args:
        starts: of windows, in order.
        length: of a window, in the unit of the starts.
    """

    def __init__(self, starts: Sequence[int], length: int):
        self.starts = starts
        self.length = length
        rising = np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2
        self._shape = (rising + FLOOR).astype(np.float32)

    def of(self, number: int) -> np.ndarray:
        """float32 [length], weights of a window; over all windows they add up to 1."""
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
    """Adds up what windows say of waves, and gives what no later window will change.

    Args:
        starts: first samples of windows, in order.
        length: samples of a window.
        samples: of the whole recording; what windows say beyond it is dropped.
    """

    def __init__(self, starts: Sequence[int], length: int, samples: int):
        self._weights = CrossfadeWeights(starts, length)
        self._samples = samples
        self._number = 0
        self._pending: dict[int, np.ndarray] = {}
        self._until: dict[int, int] = {}  # where what is known of somebody ends

    def add(self, waves: Mapping[int, np.ndarray]) -> tuple[int, dict[int, np.ndarray]]:
        """The next window.

        Args:
            waves: float32 [length] of whoever is in it, by name; others are silent in it.

        Returns:
            the first sample of the finished part, and that part of everybody who is in a window
            that covers it; others are silent in it.
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
