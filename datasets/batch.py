"""Samples to batches: one array a field, as they are (uint8, float16); the device does the rest."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cavmae.datasets.errors import CavmaeError
from cavmae.datasets.view import View, samples_in

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
            :meth:`cavmae.datasets.view.Choice.decode`, stacked; waveforms padded with zeros.

        Raises:
            CavmaeError: frames of several sizes or numbers; a label that is no class.
        """
        batch: Batch = {
            "key": [one["key"] for one in shown],
            "speaker": [one["info"].speaker for one in shown],
        }
        for field in ("fbank", "frames", "frame_times", "masks", "masked"):
            if field in shown[0]:
                arrays = [one[field] for one in shown]
                if len({array.shape for array in arrays}) > 1:
                    raise _unequal(field, batch["key"], arrays)
                batch[field] = torch.from_numpy(np.stack(arrays))
        if "fbank" in batch:
            batch["fbank_length"] = torch.tensor([one["fbank_length"] for one in shown])
        if "waveform" in shown[0]:
            batch["waveform"] = torch.from_numpy(self._waveforms(shown))
            lengths = [min(one["waveform_length"], samples_in(self._view)) for one in shown]
            batch["waveform_length"] = torch.tensor(lengths)
        if self._classes:
            batch["labels"] = self._labels(shown)
        return batch

    def _waveforms(self, shown: Sequence[Mapping[str, Any]]) -> np.ndarray:
        samples = samples_in(self._view)
        waveforms = np.zeros((len(shown), samples), dtype=np.int16)
        for row, one in zip(waveforms, shown, strict=True):
            part = one["waveform"][:samples]
            row[: len(part)] = part
        return waveforms

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


def _unequal(field: str, keys: list[str], arrays: list[np.ndarray]) -> CavmaeError:
    other = next(i for i, a in enumerate(arrays) if a.shape != arrays[0].shape)
    return CavmaeError(
        f"A batch needs {field} of one shape; {keys[0]} has {arrays[0].shape}, {keys[other]} "
        f"{arrays[other].shape}. Set frame_size in the view, or a number of frames."
    )
