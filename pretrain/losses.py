"""Losses of CAV-MAE: reconstruction of masked patches, contrast of audio and video."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cavmae.pretrain.engine.distributed import all_gather_rows, rank_offset

LEAST_SPREAD = 1e-3  # length of an embedding less a mean, that still counts as a direction
PIXEL_EPS = 1e-6  # of the variance of a patch


def normalize_patches(patches: Tensor) -> Tensor:
    """Patches [N, L, P] with zero mean and unit (unbiased) standard deviation each."""
    mean = patches.mean(dim=-1, keepdim=True)
    variance = patches.var(dim=-1, keepdim=True)
    return (patches - mean) / (variance + PIXEL_EPS) ** 0.5


def reconstruction_loss(predicted: Tensor, target: Tensor, norm_pix_loss: bool) -> Tensor:
    """Mean squared error of masked patches.

    Args:
        predicted, target: [N, M, P], of the masked patches only.
        norm_pix_loss: compare with targets normalised patch by patch.

    Returns:
        a number: the mean over pixels, then over patches.
    """
    if norm_pix_loss:
        target = normalize_patches(target)
    return functional.mse_loss(predicted.float(), target.float())


def normalize(x: Tensor, centered: bool = False) -> Tensor:
    """Unit vectors along the last axis; ``centered`` vectors near zero stay near zero.

    What is the same everywhere (a still frame) has no direction left: noise of its rounding
    would have gradients that drown all others.
    """
    return functional.normalize(x, dim=-1, eps=LEAST_SPREAD if centered else 1e-12)


class Contrast(NamedTuple):
    """Contrastive loss in nats, and accuracy of the most similar partner."""

    loss: Tensor
    accuracy: Tensor


def info_nce(
    audio: Tensor,
    video: Tensor,
    temperature: Tensor | float,
    both: bool,
    centered: bool = False,
) -> Contrast:
    """InfoNCE over the batches of all processes; rows i of both modalities are pairs.

    Args:
        audio, video: [N, D], of any length; their cosine counts.
        temperature: that similarities are divided by.
        both: from every video among the audio and from every audio among the videos (their
            mean); else only the former, as CAV-MAE does.
        centered: compare what differs from the mean of all rows.

    Returns:
        of this process's rows; its mean over processes is that of one process with all rows.
    """
    with torch.autocast(audio.device.type, enabled=False):  # ties of 16 bits hide who is nearest
        return _info_nce(audio, video, temperature, both, centered)


def _info_nce(
    audio: Tensor, video: Tensor, temperature: Tensor | float, both: bool, centered: bool
) -> Contrast:
    right = rank_offset(len(audio)) + torch.arange(len(audio), device=audio.device)
    both_kinds = all_gather_rows(torch.stack([audio, video], dim=1).float())  # [all, 2, D]
    if centered:
        both_kinds = both_kinds - both_kinds.mean(dim=0)
    all_audio, all_video = normalize(both_kinds, centered).unbind(dim=1)
    audio, video = all_audio[right], all_video[right]

    def one_way(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        logits = queries @ keys.T / temperature
        accuracy = (logits.argmax(dim=1) == right).float().mean()
        return functional.cross_entropy(logits, right), accuracy

    loss, accuracy = one_way(video, all_audio)
    if both:
        other_loss, other_accuracy = one_way(audio, all_video)
        loss, accuracy = (loss + other_loss) / 2, (accuracy + other_accuracy) / 2
    return Contrast(loss, accuracy)
