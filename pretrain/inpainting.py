"""Reconstruction of masked patches as spectrogram and image."""

from typing import NamedTuple

import torch
from torch import Tensor

from cavmae.pretrain.losses import PIXEL_EPS
from cavmae.pretrain.model import CAVMAE, channels_last
from cavmae.pretrain.positions import Grid
from cavmae.pretrain.settings import MaskMode


class Inpainting(NamedTuple):
    """Clips: original, masked and reconstructed.

    Attributes:
        audio, audio_masked, audio_rebuilt: normalised fbanks [N, frames, mel]; NaN where masked.
        image, image_masked, image_rebuilt: normalised frames [N F, 3, H, W]; NaN where masked.
    """

    audio: Tensor
    audio_masked: Tensor
    audio_rebuilt: Tensor
    image: Tensor
    image_masked: Tensor
    image_rebuilt: Tensor


def unpatchify(patches: Tensor, grid: Grid, channels: int) -> Tensor:
    """Image of patches: [N, L, p * p * C], channel fastest -> [N, C, rows * p, columns * p]."""
    n, _, values = patches.shape
    side = round((values / channels) ** 0.5)
    cut = patches.reshape(n, *grid, side, side, channels).permute(0, 5, 1, 3, 2, 4)
    return cut.reshape(n, channels, grid[0] * side, grid[1] * side)


def _denormalised(predicted: Tensor, target: Tensor) -> Tensor:
    """Predicted patches, denormalised by mean and spread of the true patches."""
    spread = (target.var(dim=-1, keepdim=True) + PIXEL_EPS) ** 0.5
    return predicted * spread + target.mean(dim=-1, keepdim=True)


@torch.inference_mode()
def inpaint(
    model: CAVMAE,
    audio: Tensor,
    image: Tensor,
    ratio: float = 0.75,
    mode: MaskMode = "unstructured",
    norm_pix_loss: bool = True,
) -> Inpainting:
    """Masks patches of clips and reconstructs them.

    Args:
        audio: normalised fbanks [N, frames, mel].
        image: normalised frames [N F, 3, H, W], those of a clip after each other, with the same
            patches masked.
        ratio: of both modalities' patches that are masked.
        mode: of the masks of the audio.
        norm_pix_loss: the model was trained on normalised patches; the means and spreads of the
            true patches are then given to it, as is customary.
    """
    model.eval()
    patches_a, patches_v = model.patchify(audio, image)
    target_v = channels_last(patches_v)
    masks = model.mask(len(audio), ratio, ratio, mode, frames=len(image) // len(audio))
    latents = model.forward_encoder(patches_a, patches_v, *masks)
    predicted_a, predicted_v = (x.float() for x in model.reconstruct(latents))
    if norm_pix_loss:
        predicted_a = _denormalised(predicted_a, patches_a)
        predicted_v = _denormalised(predicted_v, target_v)
    pairs = []
    for true, guess, masking, grid, channels in (
        (patches_a, predicted_a, latents.masking_a, model.config.audio_grid, 1),
        (target_v, predicted_v, latents.masking_v, model.config.image_grid, 3),
    ):
        hidden = masking.mask[..., None].bool()
        seen = true.masked_fill(hidden, float("nan"))
        rebuilt = torch.where(hidden, guess, true)
        pairs.append([unpatchify(x, grid, channels) for x in (true, seen, rebuilt)])
    spectrograms = [x[:, 0].transpose(1, 2) for x in pairs[0]]
    return Inpainting(*spectrograms, *pairs[1])
