"""Losses of the sound separator, in float32: each voice is compared with its cue's voice.

Shapes: N mixtures, K voices, S samples.
"""

import torch
from torch import Tensor
from torch.nn import functional

from cavmae.datasets.mixtures.sound_mixer import SoundBatch
from cavmae.finetune.separation.model import SeparatedVoices
from cavmae.finetune.separation.settings import SoundLossSettings
from cavmae.finetune.separators.stft import compressed, spectrum
from cavmae.finetune.speaker.matcher import (
    ACTIVE_DB,
    FRAME_ACTIVE_DB,
    energies_db,
    frame_energies_db,
    sdr,
)


def separation_losses(
    output: SeparatedVoices, waves: Tensor, batch: SoundBatch, settings: SoundLossSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Total loss and its parts by name.

    Args:
        output: of the model.
        waves: [N, K + 1, S], waveforms of its spectra, the residual last.
        batch: what the mixtures consist of.
        settings: weights of the losses.
    """
    wanted = torch.cat([batch.voices, batch.residual[:, None]], dim=1)
    audible = energies_db(wanted, batch.mixture) > ACTIVE_DB  # [N, K + 1]
    count = audible.sum().clamp(min=1)
    voices, spoken = waves[:, :-1], audible[:, :-1]
    ratio = (sdr(voices, batch.voices) * spoken).sum() / spoken.sum().clamp(min=1)
    energy = energies_db(voices, batch.mixture)
    silence = (energy * ~spoken).sum() / (~spoken).sum().clamp(min=1)
    frames = output.activity_logits.shape[-1]
    active = frame_energies_db(wanted, batch.mixture, frames) > FRAME_ACTIVE_DB
    activity = functional.binary_cross_entropy_with_logits(output.activity_logits, active.float())
    predicted = compressed(output.spectra[..., :-1, :-1])
    true = compressed(spectrum(wanted)[..., :-1, :-1])
    distance = (predicted - true).abs().mean(dim=(2, 3, 4))
    distance = (distance * audible).sum() / count
    parts = {"sdr": ratio, "silence": silence, "activity": activity, "spectrum": distance}
    total = (
        settings.silence_weight * silence
        - settings.sdr_weight * ratio
        + settings.activity_weight * activity
        + settings.spectrum_weight * distance
    )
    return total, parts
