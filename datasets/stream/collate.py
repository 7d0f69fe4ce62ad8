"""Collation: decoded samples to batches, in the types that are stored (uint8, float16).

:class:`cavmae.datasets.stream.transforms.DeviceTransform` converts and normalises on the device.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cavmae.common.errors import CavmaeError
from cavmae.datasets.stream.features import MEL_BINS
from cavmae.datasets.stream.view import View, num_waveform_samples

Batch = dict[str, Any]


class Collate:
    """Joins decoded samples to a batch.

    Args:
        view: that the samples were decoded with.
        labels: class names; a batch then has ``labels``: float32 [batch, classes], 1 where the
            clip has the class. Empty: no such field.
        label_ids: class name of every other label that a clip may have, such as AudioSet's ids.
    """

    def __init__(
        self,
        view: View,
        labels: Sequence[str] = (),
        label_ids: Mapping[str, str] = {},
    ):
        self._view = view
        numbers = {name: i for i, name in enumerate(labels)}
        self._num_classes = len(numbers)
        self._classes = {**{other: numbers[name] for other, name in label_ids.items()}, **numbers}

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> Batch:
        """Batch of decoded samples.

        Returns:
            ``key``, ``speaker``: lists; tensors of the fields of
            :meth:`cavmae.datasets.stream.view.Choice.decode`, stacked; ``fbank`` and ``waveform``
            padded or cut to the view's length, with ``fbank_length`` and ``waveform_length``: int64
            [batch], their lengths without padding.

        Raises:
            CavmaeError: frames that differ in size or number; a label that is no class.
        """
        batch: Batch = {
            "key": [sample["key"] for sample in samples],
            "speaker": [sample["info"].speaker for sample in samples],
        }
        for field in ("frames", "frame_times", "motion", "masks", "masked"):
            if field in samples[0]:
                arrays = [sample[field] for sample in samples]
                if len({array.shape for array in arrays}) > 1:
                    raise _shape_error(field, batch["key"], arrays)
                batch[field] = torch.from_numpy(np.stack(arrays))
        if "fbank" in samples[0]:
            shape = self._view.length, MEL_BINS
            padded = _pad([sample["fbank"] for sample in samples], shape, self._view.padding_value)
            batch["fbank"], batch["fbank_length"] = padded
        if "waveform" in samples[0]:
            padded = _pad(
                [sample["waveform"] for sample in samples], (num_waveform_samples(self._view),), 0
            )
            batch["waveform"], batch["waveform_length"] = padded
        if self._classes:
            batch["labels"] = self._labels(samples)
        return batch

    def _labels(self, samples: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        labels = torch.zeros(len(samples), self._num_classes)
        for row, sample in zip(labels, samples, strict=True):
            for name in sample["info"].labels:
                if name not in self._classes:
                    raise CavmaeError(
                        f"Sample {sample['key']} has the label {name!r}, which is not one of the "
                        f"{self._num_classes} classes; use the training set's list of labels."
                    )
                row[self._classes[name]] = 1
        return labels


def _pad(
    arrays: list[np.ndarray], shape: tuple[int, ...], value: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cuts or pads arrays in their first axis; returns [batch, *shape] and lengths [batch]."""
    batch = np.empty((len(arrays), *shape), dtype=arrays[0].dtype)
    lengths = []
    for row, array in zip(batch, arrays, strict=True):
        length = min(len(array), shape[0])
        row[:length] = array[:length]
        row[length:] = value
        lengths.append(length)
    return torch.from_numpy(batch), torch.tensor(lengths)


def _shape_error(field: str, keys: list[str], arrays: list[np.ndarray]) -> CavmaeError:
    other = next(i for i, a in enumerate(arrays) if a.shape != arrays[0].shape)
    return CavmaeError(
        f"A batch needs {field} of one shape; {keys[0]} has {arrays[0].shape}, {keys[other]} "
        f"{arrays[other].shape}. Set frame_size in the view, or a number of frames."
    )
