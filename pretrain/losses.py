"""What CAV-MAE minimises: reconstruction of masked patches, and contrast of sound and picture."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

PIXEL_EPS = 1e-6  # of the variance of a patch


def normalised(patches: Tensor) -> Tensor:
    """[N, L, P]: each patch less its mean, over its standard deviation (unbiased)."""
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
        target = normalised(target)
    return functional.mse_loss(predicted.float(), target.float())


class Contrast(NamedTuple):
    """A contrastive loss in nats, and how often the right partner was the most similar."""

    loss: Tensor
    accuracy: Tensor


def info_nce(audio: Tensor, video: Tensor, temperature: Tensor | float, both: bool) -> Contrast:
    """InfoNCE over the batch: row i of both belongs together.

    Args:
        audio, video: [N, D], of any length; their cosine counts.
        temperature: that similarities are divided by.
        both: from every video among the sounds and from every sound among the videos (their
            mean); else only the former, as CAV-MAE does.
    """
    audio, video = (functional.normalize(x.float(), dim=-1) for x in (audio, video))
    total = video @ audio.T / temperature  # [videos, sounds]
    right = torch.arange(len(total), device=total.device)
    loss = functional.cross_entropy(total, right)
    accuracy = (total.argmax(dim=1) == right).float().mean()
    if both:
        loss = (loss + functional.cross_entropy(total.T, right)) / 2
        accuracy = (accuracy + (total.argmax(dim=0) == right).float().mean()) / 2
    return Contrast(loss, accuracy)
