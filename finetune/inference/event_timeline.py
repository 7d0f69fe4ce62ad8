"""Probabilities of classes over time: windows of a recording, and the labels that they give.

Shapes: W windows, B bins, K classes.
"""

import dataclasses
from typing import Any

import numpy as np

from cavmae.datasets.stream.features import FBANK_RATE, HOP
from cavmae.finetune.inference.overlap_add import window_starts

MIN_WEIGHT = 1e-3  # of a window at a bin on its edge


@dataclasses.dataclass(frozen=True)
class WindowPlan:
    """Windows that cover a recording, in fbank frames of 10 ms.

    The last window ends with the recording. A recording that is shorter than a window has one.

    Attributes:
        rows: length of the recording.
        length: of a window.
        hop: from a window to the next.
    """

    rows: int
    length: int
    hop: int

    @classmethod
    def of(cls, num_samples: int, length: int, hop: float) -> "WindowPlan":
        """Plan for a recording.

        Args:
            num_samples: of the recording at 16 kHz.
            length: of a window, in fbank frames.
            hop: as a fraction of a window.
        """
        return cls(max(1, -(-num_samples // HOP)), length, max(1, round(hop * length)))

    @property
    def starts(self) -> list[int]:
        """First fbank frames of the windows."""
        return window_starts(self.rows, self.length, self.hop)

    @property
    def bounds(self) -> np.ndarray:
        """Edges of the bins of the timeline, each as long as the hop: float64 [B + 1] seconds."""
        edges = [*range(0, self.rows, self.hop), self.rows]
        return np.array(edges) / FBANK_RATE

    def smoothed(self, window_probs: np.ndarray) -> np.ndarray:
        """Probabilities of the bins: mean of the windows over a bin, nearer ones counting more.

        The weight of a window falls linearly from its middle to its edges.

        Args:
            window_probs: float32 [W, K].

        Returns:
            float32 [B, K].
        """
        middles = (self.bounds[:-1] + self.bounds[1:]) / 2 * FBANK_RATE
        starts = np.array(self.starts)
        probs = np.empty((len(middles), window_probs.shape[1]), dtype=np.float32)
        for row, middle in zip(probs, middles, strict=True):
            over = np.flatnonzero((starts <= middle) & (middle < starts + self.length))
            distance = np.abs(middle - starts[over] - self.length / 2) / (self.length / 2)
            weights = np.maximum(1 - distance, MIN_WEIGHT)
            row[:] = weights @ window_probs[over] / weights.sum()
        return probs


@dataclasses.dataclass(frozen=True)
class EventTimeline:
    """Probabilities of classes over the time of a recording.

    Attributes:
        classes: names, in the order of the columns.
        bounds: edges of the bins, float64 [B + 1] seconds.
        probs: float32 [B, K].
    """

    classes: tuple[str, ...]
    bounds: np.ndarray
    probs: np.ndarray

    def records(self, top: int, listed: tuple[str, ...]) -> list[dict[str, Any]]:
        """Most probable classes of each bin, for ``events.json``.

        Args:
            top: number of classes.
            listed: classes that may be listed; empty: all.
        """
        columns = self._columns(listed)
        records = []
        for number, row in enumerate(self.probs):
            best = columns[np.argsort(-row[columns], kind="stable")[:top]]
            labels = [{"name": self.classes[k], "prob": _rounded(row[k])} for k in best]
            start, end = self.bounds[number : number + 2].tolist()
            records.append({"start": start, "end": end, "labels": labels})
        return records

    def labels(self, top: int, listed: tuple[str, ...], threshold: float) -> list[dict[str, Any]]:
        """Labels of the whole recording: classes that are ever present, and the most probable.

        Args:
            top: number of classes by their largest probability, present or not.
            listed: classes that may be listed; empty: all.
            threshold: probability from which a class is present.

        Returns:
            an object for each class, the most probable first, with ``spans``: (start, end) in
            seconds in which it is present, and ``probs``: its probability in each bin.
        """
        columns = self._columns(listed)
        peaks = self.probs[:, columns].max(axis=0)
        order = np.argsort(-peaks, kind="stable")
        count = max(top, int((peaks >= threshold).sum()))
        return [
            {
                "name": self.classes[columns[n]],
                "max_prob": _rounded(peaks[n]),
                "mean_prob": _rounded(self._mean(int(columns[n]))),
                "spans": self._spans(self.probs[:, columns[n]] >= threshold),
                "probs": [_rounded(prob) for prob in self.probs[:, columns[n]]],
            }
            for n in order[:count]
        ]

    def _columns(self, listed: tuple[str, ...]) -> np.ndarray:
        names = listed or self.classes
        numbers = {name: number for number, name in enumerate(self.classes)}
        return np.array([numbers[name] for name in names])

    def _mean(self, column: int) -> float:
        """Mean probability of a class over time; the last bin may be shorter than the others."""
        return float(np.average(self.probs[:, column], weights=np.diff(self.bounds)))

    def _spans(self, present: np.ndarray) -> list[list[float]]:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], present.astype(np.int8), [0]])))
        return [[float(self.bounds[a]), float(self.bounds[b])] for a, b in edges.reshape(-1, 2)]


def _rounded(prob: float) -> float:
    return round(float(prob), 4)
