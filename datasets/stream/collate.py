"""Samples to batches: one array a field, as they are (uint8, float16); the device does the rest."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cavmae.common.errors import CavmaeError
from cavmae.datasets.stream.features import MEL_BINS
from cavmae.datasets.stream.view import View, samples_in

Batch = dict[str, Any]


class Collate:
    """Joins decoded visits.

    Args:
        view: what they show.
        labels: class names; a batch then has ``labels``: float32 [batch, classes], 1 where the
            clip has the class. Empty: no such field.
    """

    def __init__(self, view: View, labels: Sequence[str] = ()):
        self._view = view
        self._classes = {name: i for i, name in enumerate(labels)}

    def __call__(self, shown: Sequence[Mapping[str, Any]]) -> Batch:
        """A batch.

        Returns:
            ``key``, ``speaker``: lists; tensors of the fields of
            :meth:`cavmae.datasets.stream.view.Choice.decode`, stacked; ``fbank`` and ``waveform``
            padded or cut to the view's length, with ``fbank_length`` and ``waveform_length``: int64
            [batch], how much of them is real.

        Raises:
            CavmaeError: frames of several sizes or numbers; a label that is no class.
        """
        batch: Batch = {
            "key": [one["key"] for one in shown],
            "speaker": [one["info"].speaker for one in shown],
        }
        for field in ("frames", "frame_times", "masks", "masked"):
            if field in shown[0]:
                arrays = [one[field] for one in shown]
                if len({array.shape for array in arrays}) > 1:
                    raise _unequal(field, batch["key"], arrays)
                batch[field] = torch.from_numpy(np.stack(arrays))
        if "fbank" in shown[0]:
            shape = self._view.length, MEL_BINS
            padded = _pad([one["fbank"] for one in shown], shape, self._view.padding_value)
            batch["fbank"], batch["fbank_length"] = padded
        if "waveform" in shown[0]:
            padded = _pad([one["waveform"] for one in shown], (samples_in(self._view),), 0)
            batch["waveform"], batch["waveform_length"] = padded
        if self._classes:
            batch["labels"] = self._labels(shown)
        return batch

    def _labels(self, shown: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        labels = torch.zeros(len(shown), len(self._classes))
        for row, one in zip(labels, shown, strict=True):
            for name in one["info"].labels:
                if name not in self._classes:
                    raise CavmaeError(
                        f"Sample {one['key']} has the label {name!r}, which is not one of the "
                        f"{len(self._classes)} classes; use the training set's list of labels."
                    )
                row[self._classes[name]] = 1
        return labels


def _pad(
    arrays: list[np.ndarray], shape: tuple[int, ...], value: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """[batch, *shape] of arrays cut or padded in their first axis, and their lengths [batch]."""
    batch = np.empty((len(arrays), *shape), dtype=arrays[0].dtype)
    lengths = []
    for row, array in zip(batch, arrays, strict=True):
        length = min(len(array), shape[0])
        row[:length] = array[:length]
        row[length:] = value
        lengths.append(length)
    return torch.from_numpy(batch), torch.tensor(lengths)


def _unequal(field: str, keys: list[str], arrays: list[np.ndarray]) -> CavmaeError:
    other = next(i for i, a in enumerate(arrays) if a.shape != arrays[0].shape)
    return CavmaeError(
        f"A batch needs {field} of one shape; {keys[0]} has {arrays[0].shape}, {keys[other]} "
        f"{arrays[other].shape}. Set frame_size in the view, or a number of frames."
    )
