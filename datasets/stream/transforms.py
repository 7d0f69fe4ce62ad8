"""What happens to a batch on the training device: normalising and augmentation.

Batches arrive as stored (uint8 frames, float16 fbanks), which is a quarter of the bytes to move.
The defaults of every augmentation are those of the CAV-MAE reference (Gong et al., ICLR 2023).
"""

import dataclasses
import functools
from typing import Literal

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional

from cavmae.common import files
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.json_files import read_json, typed
from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.features import (
    AUDIOSET_MEAN,
    AUDIOSET_STD,
    MEL_BINS,
    SILENCE,
    fbank_batch,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
            CavmaeError: there is none, or it is damaged.
        """
        name = files.join(data_set, "stats.json")
        remedy = f"run `cavmae check {data_set}` again"
        try:
            record = read_json(name, remedy=remedy)
            found = cls(typed(record, "fbank_mean", float), typed(record, "fbank_std", float))
        except FileNotFoundError as error:
            raise CavmaeError(
                f"There is no {name}: run `cavmae check {data_set}`, which measures it."
            ) from error
        except ValueError as error:
            raise CavmaeError(f"{name} is damaged ({error}): {remedy}.") from error
        if found.std <= 0:
            raise CavmaeError(f"{name} has std {found.std}: the data set's sound is all the same.")
        return found


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Augmentations of training; all off by default.

    Args:
        freq_mask: mel bins that SpecAugment hides at most (reference: 48 in fine-tuning).
        time_mask: fbank frames that SpecAugment hides at most (reference: 192 in fine-tuning).
        noise: adds uniform noise of random strength, up to 0.1 in normalised units.
        roll: rolls the sound in time by up to so many frames (reference: 1024). It breaks the
            alignment of sound and picture.
        mixup: probability that a clip is mixed with another of its batch (reference: 0.5 in
            fine-tuning). Needs waveforms.
        mixup_alpha: both parameters of the Beta distribution of the mixing weight.
        label_smoothing: labels become this / classes, and 1 - this where the clip has the class.
        crop: the smallest share of a frame's height and width that is shown; each clip draws its
            own window, the same in all its frames and masks, and it is scaled to the whole size.
        flip: mirrors every other clip, all of its frames and masks.
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
    """ImageNet's, of bytes; copied to a device once, since it waits for the copy."""
    with torch.inference_mode(False):
        mean = torch.tensor(IMAGENET_MEAN, device=device) * 255
        return mean, torch.tensor(IMAGENET_STD, device=device) * 255


def normalise_frames(frames: Tensor) -> Tensor:
    """uint8 [..., height, width, 3] to float32 [..., 3, height, width], ImageNet's statistics."""
    mean, std = _frame_statistics(frames.device)
    return ((frames.float() - mean) / std).movedim(-1, -3)


def smooth_labels(labels: Tensor, smoothing: float) -> Tensor:
    """[batch, classes] of 0 and 1 to ``amount`` / classes and 1 - ``amount``."""
    return torch.where(labels > 0, 1 - smoothing, smoothing / labels.shape[-1])


def mixing_weights(batch: int, mixup_prob: float, alpha: float) -> Tensor:
    """[batch]: Beta(alpha, alpha) with this probability, else 1."""
    weights = torch.distributions.Beta(alpha, alpha).sample((batch,))
    return torch.where(torch.rand(batch) < mixup_prob, weights, torch.ones(()))


def mix_waveforms(waveforms: Tensor, lengths: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    """Mixes each waveform with its partner's, both with their mean removed.

    Args:
        waveforms: float [batch, samples], zero beyond its length.
        lengths: int [batch].
        partner: int [batch], row of the other one, which is cut or padded to this one's length.
        weight: float [batch], of this one; the other one's is 1 - weight.

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
    """Rolls each clip of [batch, frames, mel] by its own U{-most, most - 1} frames."""
    shift = torch.randint(-max_shift, max_shift, (len(fbank), 1), device=fbank.device)
    frames = torch.arange(fbank.shape[1], device=fbank.device)
    index = (frames - shift) % fbank.shape[1]
    return fbank.gather(1, index[..., None].expand_as(fbank))


def random_windows(clips: int, crop: float, flip: bool, device: torch.device) -> Tensor:
    """Random windows of pictures, for :func:`look_through`: float [clips, 2, 3].

    Args:
        crop: smallest share of height and width; a window lies anywhere inside.
        flip: mirror one in two.
    """
    scale = crop + (1 - crop) * torch.rand(clips, device=device)
    middle = (2 * torch.rand(clips, 2, device=device) - 1) * (1 - scale[:, None])
    sign = 1 - 2 * (torch.rand(clips, device=device) < 0.5).float() if flip else 1.0
    windows = torch.zeros(clips, 2, 3, device=device)
    windows[:, 0, 0], windows[:, 1, 1], windows[:, :, 2] = scale * sign, scale, middle
    return windows


def apply_windows(
    pictures: Tensor, windows: Tensor, mode: Literal["bilinear", "nearest"]
) -> Tensor:
    """Shows a window of each clip's pictures at the whole size.

    Args:
        pictures: float [clips, frames, channels, height, width].
        windows: [clips, 2, 3], from places of the result to places of the picture, both from -1
            (left, upper edge) to 1.
        mode: ``nearest`` for labels.
    """
    size = [len(pictures), 1, *pictures.shape[-2:]]
    grid = functional.affine_grid(windows, size, align_corners=False)
    together = pictures.flatten(1, 2)
    # Places outside the edge pixels' middles, by rounding only.
    shown = functional.grid_sample(together, grid, mode, "border", align_corners=False)
    return shown.view_as(pictures)


class DeviceTransform(nn.Module):
    """Turns a batch as loaded into what a model takes. Random only in training mode.

    Order: crop and flip of frames; mixup of waveforms, fbank, padding, SpecAugment, normalising,
    noise, roll.

    Args:
        statistics: of the fbanks of the data set (or AudioSet's, for published weights).
        augmentation: applied in training mode.
        padding: must be the view's.

    Raises:
        UsageError: an augmentation with a value that makes no sense.
    """

    def __init__(
        self,
        statistics: Statistics,
        augmentation: Augmentation = Augmentation(),
        padding: Literal["zero", "silence"] = "zero",
    ):
        super().__init__()
        if not 0 <= augmentation.mixup <= 1 or not 0 <= augmentation.label_smoothing < 1:
            raise UsageError("mixup and label_smoothing are shares from 0 to 1.")
        if not 0 < augmentation.crop <= 1:
            raise UsageError(f"crop {augmentation.crop}: a share above 0, at most 1.")
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
            augmentation.time_mask, iid_masks=True
        )

    @torch.no_grad()
    def forward(self, batch: Batch) -> Batch:
        """A new batch.

        Returns:
            as given, with ``fbank``: float32 [batch, frames, 128], normalised; ``frames``:
            float32 [batch, frames, 3, height, width], normalised; ``labels``: smoothed and mixed;
            ``waveform``: float32 [batch, samples] in [-1, 1], mixed.

        Raises:
            UsageError: mixup without waveforms.
        """
        done = dict(batch)
        augmentation = self.augmentation
        if "frames" in batch:
            done["frames"] = normalise_frames(batch["frames"])
            if self.training and (augmentation.crop < 1 or augmentation.flip):
                self._crop(done)
        if "waveform" in batch:
            done["waveform"] = batch["waveform"].float() / 32768
        if "labels" in batch and self.training and augmentation.label_smoothing:
            done["labels"] = smooth_labels(batch["labels"], augmentation.label_smoothing)
        if self.training and augmentation.mixup:
            self._mixup(done)
        if "fbank" in batch:
            done["fbank"] = self._fbank(done["fbank"].float())
        return done

    def _crop(self, done: Batch) -> None:
        frames, augmentation = done["frames"], self.augmentation
        windows = random_windows(len(frames), augmentation.crop, augmentation.flip, frames.device)
        done["frames"] = apply_windows(frames, windows, "bilinear")
        if "masks" in done:
            masks = apply_windows(done["masks"].unsqueeze(2).float(), windows, "nearest")
            done["masks"] = masks.squeeze(2).to(done["masks"].dtype)

    def _mixup(self, done: Batch) -> None:
        if "waveform" not in done:
            raise UsageError("mixup mixes waveforms: set waveform in the view.")
        waveform, lengths = done["waveform"], done["waveform_length"].to(done["waveform"].device)
        device = waveform.device
        weight = mixing_weights(
            len(waveform), self.augmentation.mixup, self.augmentation.mixup_alpha
        ).to(device)
        partner = torch.randperm(len(waveform)).to(device)
        done["waveform"] = mix_waveforms(waveform, lengths, partner, weight)
        for field in ("frames", "labels"):
            if field in done:
                own = weight.view(-1, *[1] * (done[field].dim() - 1))
                done[field] = own * done[field] + (1 - own) * done[field][partner]
        if "fbank" in done:
            mixed = fbank_batch(done["waveform"], lengths)
            real = torch.arange(done["fbank"].shape[1], device=device)
            real = real < done["fbank_length"].to(device)[:, None]
            whole = torch.full_like(done["fbank"], self._padding_value, dtype=torch.float32)
            frames = min(mixed.shape[1], whole.shape[1])
            whole[:, :frames] = mixed[:, :frames]
            done["fbank"] = torch.where(real[..., None], whole, self._padding_value)

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
