"""Normalisation and augmentation of a batch on the training device.

Batches arrive as stored (uint8 frames, float16 fbanks), which is a quarter of the bytes to move.
The defaults of every augmentation are those of the CAV-MAE reference (Gong et al., ICLR 2023).
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional

from cavmae.common import files
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.json_files import read_json, typed
from cavmae.datasets.format.weighted_sets import WeightedSet
from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.features import (
    AUDIOSET_MEAN,
    AUDIOSET_STD,
    MEL_BINS,
    SILENCE,
    fbank_batch,
)
from cavmae.datasets.stream.interleaving import shares_of

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MOST_MASKED = 0.5  # of the fbank frames by SpecAugment: short clips are not masked as a whole


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of a data set's fbanks, over unpadded frames."""

    mean: float = AUDIOSET_MEAN
    std: float = AUDIOSET_STD

    @classmethod
    def load(cls, data_set: str) -> "Statistics":
        """Reads ``stats.json``, which `cavmae check` writes.

        Args:
            data_set: folder (path or URL) of the shards.

        Raises:
            CavmaeError: the file is missing or damaged.
        """
        name = files.join(data_set, "stats.json")
        remedy = f"run `cavmae check {data_set}`"
        if files.is_url(data_set):  # where the check cannot write
            remedy += f" with --out DIR, and copy DIR/stats.json to {name}"
        try:
            record = read_json(name, remedy=remedy)
            statistics = cls(typed(record, "fbank_mean", float), typed(record, "fbank_std", float))
        except FileNotFoundError as error:
            raise CavmaeError(f"There is no {name}: {remedy}.") from error
        except ValueError as error:
            raise CavmaeError(f"{name} is damaged ({error}): {remedy}.") from error
        if statistics.std <= 0:
            raise CavmaeError(
                f"{name} has fbank_std {statistics.std}, not above 0: the data set's audio is "
                "constant; use a data set with audio."
            )
        return statistics

    @classmethod
    def of_mixture(cls, sets: Sequence[WeightedSet]) -> "Statistics":
        """Statistics of the samples of several data sets, drawn in proportion to the weights.

        Clips of all data sets are taken to be of one length.

        Raises:
            CavmaeError: see :meth:`load`.
        """
        own = [cls.load(data_set.path) for data_set in sets]
        if len(own) == 1:
            return own[0]
        shares = shares_of([data_set.weight for data_set in sets])
        parts = list(zip(shares, own, strict=True))
        mean = sum(share * part.mean for share, part in parts)
        square = sum(share * (part.std**2 + (part.mean - mean) ** 2) for share, part in parts)
        return cls(mean, math.sqrt(square))


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Augmentations of training; all off by default.

    Args:
        freq_mask: largest number of mel bins that SpecAugment masks (reference: 48 in fine-tuning).
        time_mask: largest number of fbank frames that SpecAugment masks (reference: 192 in
            fine-tuning), and at most half of them.
        noise: adds uniform noise of random strength, up to 0.1 in normalised units.
        roll: largest shift of the fbank in time, in frames (reference: 1024). It breaks the
            alignment of audio and video.
        mixup: probability that a clip is mixed with another of its batch (reference: 0.5 in
            fine-tuning). Audio is mixed as waveforms, which the view then has to give.
        mixup_alpha: both parameters of the Beta distribution of the mixing weight.
        label_smoothing: labels become this / classes, and 1 - this where the clip has the class.
        crop: smallest fraction of a frame's height and width in a random window; each clip draws
            its own window, the same in all its frames and masks, and scales it to the frame size.
        flip: mirrors a clip with probability 0.5, all of its frames and masks.
    """

    freq_mask: int = 0
    time_mask: int = 0
    noise: bool = False
    roll: int = 0
    mixup: float = 0.0
    mixup_alpha: float = 10.0
    label_smoothing: float = 0.0
    crop: float = 1.0
    flip: bool = False


@functools.lru_cache(maxsize=8)
def _frame_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """ImageNet's mean and std of bytes; copied to a device once, since the copy blocks."""
    with torch.inference_mode(False):
        mean = torch.tensor(IMAGENET_MEAN, device=device) * 255
        return mean, torch.tensor(IMAGENET_STD, device=device) * 255


def normalise_frames(frames: Tensor) -> Tensor:
    """Normalises uint8 [..., height, width, 3] to float32 [..., 3, height, width] as ImageNet."""
    mean, std = _frame_statistics(frames.device)
    return ((frames.float() - mean) / std).movedim(-1, -3)


def smooth_labels(labels: Tensor, smoothing: float) -> Tensor:
    """Smooths labels [batch, classes]: 0 to ``smoothing`` / classes, 1 to 1 - ``smoothing``."""
    return torch.where(labels > 0, 1 - smoothing, smoothing / labels.shape[-1])


def mix_labels(labels: Tensor, partner: Tensor, weight: Tensor, smoothing: float) -> Tensor:
    """Smooths and mixes labels [batch, classes], as the CAV-MAE reference does.

    A clip that is mixed has ``smoothing`` / classes, plus ``weight`` (1 - ``smoothing``) for its
    own classes, plus (1 - ``weight``) (1 - ``smoothing``) for those of its partner. Other clips
    have the labels of :func:`smooth_labels`.

    Args:
        partner: int [batch], row of the partner.
        weight: float [batch], of the row itself; 1: it is not mixed.
    """
    present, own = (labels > 0).float(), weight[:, None]
    mixed = own * present + (1 - own) * present[partner]
    mixed = smoothing / labels.shape[-1] + (1 - smoothing) * mixed
    return torch.where(own < 1, mixed, smooth_labels(labels, smoothing))


def mixing_weights(batch: int, mixup_prob: float, alpha: float) -> Tensor:
    """Mixing weights, float [batch]: Beta(alpha, alpha) with ``mixup_prob``, else 1."""
    weights = torch.distributions.Beta(alpha, alpha).sample((batch,))
    return torch.where(torch.rand(batch) < mixup_prob, weights, torch.ones(()))


def mix_waveforms(waveforms: Tensor, lengths: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    """Mixes each waveform with its partner's, both with their mean removed.

    Args:
        waveforms: float [batch, samples], zero beyond its length.
        lengths: int [batch].
        partner: int [batch], row of the partner, which is cut or padded to the row's length.
        weight: float [batch], of the row itself; the partner's weight is 1 - weight.

    Returns:
        float [batch, samples], mean removed again, zero beyond the length.
    """
    inside = torch.arange(waveforms.shape[1], device=waveforms.device) < lengths[:, None]
    count = lengths[:, None].clamp(min=1)
    centred = (waveforms - waveforms.sum(1, keepdim=True) / count) * inside
    mixed = weight[:, None] * centred + (1 - weight[:, None]) * centred[partner] * inside
    return (mixed - mixed.sum(1, keepdim=True) / count) * inside


def add_noise(fbank: Tensor) -> Tensor:
    """Adds U[0, 1) * u / 10 to each value, with one u ~ U[0, 1) a clip. [batch, frames, mel]."""
    strength = torch.rand(len(fbank), 1, 1, device=fbank.device) / 10
    return fbank + torch.rand_like(fbank) * strength


def roll_in_time(fbank: Tensor, max_shift: int) -> Tensor:
    """Rolls each clip of [batch, frames, mel] by U{-max_shift, max_shift - 1}."""
    shift = torch.randint(-max_shift, max_shift, (len(fbank), 1), device=fbank.device)
    frames = torch.arange(fbank.shape[1], device=fbank.device)
    index = (frames - shift) % fbank.shape[1]
    return fbank.gather(1, index[..., None].expand_as(fbank))


def random_windows(clips: int, crop: float, flip: bool, device: torch.device) -> Tensor:
    """Random crop windows for :func:`apply_windows`, float [clips, 2, 3].

    Args:
        crop: smallest fraction of height and width; a window lies anywhere inside the frame.
        flip: mirror a window with probability 0.5.
    """
    scale = crop + (1 - crop) * torch.rand(clips, device=device)
    center = (2 * torch.rand(clips, 2, device=device) - 1) * (1 - scale[:, None])
    sign = 1 - 2 * (torch.rand(clips, device=device) < 0.5).float() if flip else 1.0
    windows = torch.zeros(clips, 2, 3, device=device)
    windows[:, 0, 0], windows[:, 1, 1], windows[:, :, 2] = scale * sign, scale, center
    return windows


def apply_windows(frames: Tensor, windows: Tensor, mode: Literal["bilinear", "nearest"]) -> Tensor:
    """Crops a window of each clip's frames and scales it to the frame size.

    Args:
        frames: float [clips, frames, channels, height, width].
        windows: float [clips, 2, 3], affine maps from coordinates of the result to coordinates of
            the frame, both from -1 (left, upper edge) to 1.
        mode: ``nearest`` for masks.

    Returns:
        float, of the shape of ``frames``.
    """
    size = [len(frames), 1, *frames.shape[-2:]]
    grid = functional.affine_grid(windows, size, align_corners=False)
    channels = frames.flatten(1, 2)  # [clips, frames * channels, height, width]
    # "border": by rounding, coordinates may lie outside the centers of the edge pixels.
    cropped = functional.grid_sample(channels, grid, mode, "border", align_corners=False)
    return cropped.view_as(frames)


class DeviceTransform(nn.Module):
    """Converts a loaded batch to a model's inputs. Random only in training mode.

    Order: crop and flip of frames; mixup of waveforms, fbank, padding, SpecAugment, normalising,
    noise, roll.

    Args:
        statistics: of the fbanks of the data set (or AudioSet's, for published weights).
        augmentation: applied in training mode.
        padding: must be the view's.

    Raises:
        UsageError: an augmentation with a value out of range.
    """

    def __init__(
        self,
        statistics: Statistics,
        augmentation: Augmentation = Augmentation(),
        padding: Literal["zero", "silence"] = "zero",
    ):
        super().__init__()
        if not 0 <= augmentation.mixup <= 1 or not 0 <= augmentation.label_smoothing < 1:
            raise UsageError(
                "mixup and label_smoothing must be from 0 to 1 (label_smoothing below 1)."
            )
        if not 0 < augmentation.crop <= 1:
            raise UsageError(f"crop {augmentation.crop}: must be above 0 and at most 1.")
        if min(augmentation.freq_mask, augmentation.time_mask, augmentation.roll) < 0:
            raise UsageError("freq_mask, time_mask and roll cannot be negative.")
        if augmentation.freq_mask > MEL_BINS:
            raise UsageError(f"freq_mask {augmentation.freq_mask}: there are {MEL_BINS} mel bins.")
        self.statistics = statistics
        self.augmentation = augmentation
        self.padding = padding
        self._padding_value = 0.0 if padding == "zero" else SILENCE
        # iid: every clip of a batch has its own masks.
        self._freq_masking = torchaudio.transforms.FrequencyMasking(
            augmentation.freq_mask, iid_masks=True
        )
        self._time_masking = torchaudio.transforms.TimeMasking(
            augmentation.time_mask, iid_masks=True, p=MOST_MASKED
        )

    @torch.no_grad()
    def forward(self, batch: Batch) -> Batch:
        """Normalises and augments a batch.

        Returns:
            a new batch with ``fbank``: float32 [batch, frames, 128], normalised; ``log_mel``: the
            same before SpecAugment, normalising and noise; ``frames``:
            float32 [batch, frames, 3, height, width], normalised; ``motion``: uint8 [batch, T,
            height, width] as loaded, or float32 where it is cropped or mixed as ``frames`` are;
            ``labels``: smoothed and mixed;
            ``waveform``: float32 [batch, samples] in [-1, 1], mixed.

        Raises:
            UsageError: mixup of audio without waveforms.
        """
        result = dict(batch)
        augmentation = self.augmentation
        if "frames" in batch:
            result["frames"] = normalise_frames(batch["frames"])
            if self.training and (augmentation.crop < 1 or augmentation.flip):
                self._crop(result)
        if "waveform" in batch:
            result["waveform"] = batch["waveform"].float() / 32768
        if self.training and augmentation.mixup:
            self._mixup(result)
        elif self.training and augmentation.label_smoothing and "labels" in batch:
            result["labels"] = smooth_labels(batch["labels"], augmentation.label_smoothing)
        if "fbank" in batch:
            result["log_mel"] = result["fbank"].float()
            result["fbank"] = self._fbank(result["log_mel"])
        return result

    def _crop(self, batch: Batch) -> None:
        frames, augmentation = batch["frames"], self.augmentation
        windows = random_windows(len(frames), augmentation.crop, augmentation.flip, frames.device)
        batch["frames"] = apply_windows(frames, windows, "bilinear")
        if "motion" in batch:
            motion = batch["motion"].unsqueeze(2).float()  # [batch, T, 1, height, width]
            batch["motion"] = apply_windows(motion, windows, "bilinear").squeeze(2)
        if "masks" in batch:
            masks = batch["masks"].unsqueeze(2).float()  # [batch, frames, 1, height, width]
            masks = apply_windows(masks, windows, "nearest")
            batch["masks"] = masks.squeeze(2).to(batch["masks"].dtype)

    def _mixup(self, batch: Batch) -> None:
        augmentation = self.augmentation
        if "fbank" in batch and "waveform" not in batch:
            raise UsageError("mixup needs waveforms: set waveform in the view.")
        device = (batch["waveform"] if "waveform" in batch else batch["frames"]).device
        count = len(batch["key"])
        weight = mixing_weights(count, augmentation.mixup, augmentation.mixup_alpha).to(device)
        partner = torch.randperm(count).to(device)
        for field in ("frames", "motion"):
            if field in batch:
                own = weight.view(-1, *[1] * (batch[field].ndim - 1))
                batch[field] = own * batch[field] + (1 - own) * batch[field][partner]
        if "labels" in batch:
            labels = batch["labels"]
            batch["labels"] = mix_labels(labels, partner, weight, augmentation.label_smoothing)
        if "waveform" in batch:
            lengths = batch["waveform_length"].to(device)
            batch["waveform"] = mix_waveforms(batch["waveform"], lengths, partner, weight)
        if "fbank" in batch:
            mixed = fbank_batch(batch["waveform"], lengths)
            inside = torch.arange(batch["fbank"].shape[1], device=device)
            inside = inside < batch["fbank_length"].to(device)[:, None]
            padded = torch.full_like(batch["fbank"], self._padding_value, dtype=torch.float32)
            frames = min(mixed.shape[1], padded.shape[1])
            padded[:, :frames] = mixed[:, :frames]
            batch["fbank"] = torch.where(inside[..., None], padded, self._padding_value)

    def _fbank(self, fbank: Tensor) -> Tensor:
        augmentation = self.augmentation
        if self.training and (augmentation.freq_mask or augmentation.time_mask):
            masked = fbank.transpose(1, 2).unsqueeze(1)  # [batch, 1, mel, frames]
            masked = self._freq_masking(masked) if augmentation.freq_mask else masked
            masked = self._time_masking(masked) if augmentation.time_mask else masked
            fbank = masked.squeeze(1).transpose(1, 2)
        fbank = (fbank - self.statistics.mean) / self.statistics.std
        if self.training and augmentation.noise:
            fbank = add_noise(fbank)
        if self.training and augmentation.roll:
            fbank = roll_in_time(fbank, augmentation.roll)
        return fbank
