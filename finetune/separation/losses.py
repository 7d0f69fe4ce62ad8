"""Losses of the sound separator, in float32: each voice is compared with its cue's voice.

Under the conditioning ``binding`` the outputs are assigned to voices by the least loss
(permutation-invariant training, Yu et al., ICASSP 2017, arXiv 1607.00325), whatever cues bind.
Shapes: N mixtures, K voices, Q queries, S samples.
"""

import torch
from torch import Tensor
from torch.nn import functional

from cavmae.datasets.mixtures.sound_mixer import SoundBatch
from cavmae.finetune.separation.binding import Binding, SeparatedVoices, bind
from cavmae.finetune.separation.settings import SoundLossSettings
from cavmae.finetune.separators.stft import compressed, spectrum, wave
from cavmae.finetune.speaker.matcher import (
    ACTIVE_DB,
    FRAME_ACTIVE_DB,
    assign,
    energies_db,
    frame_energies_db,
    sdr,
    sdr_pairs,
)

SILENCE_COST = 0.1  # of a dB of energy of a silent person, for an assignment; of a dB of SDR: 1


def separation_losses(
    output: SeparatedVoices, batch: SoundBatch, settings: SoundLossSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Total loss and its parts by name.

    Args:
        output: of the model.
        batch: what the mixtures consist of.
        settings: weights of the losses.
    """
    binding = output.binding
    if binding is not None:
        assignment = assign_to_voices(binding.outputs, batch)
        output = bind(binding.outputs, binding.logits, assignment)
    waves = wave(output.spectra, batch.mixture.shape[-1])  # [N, K + 1, S]
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
    if binding is not None:
        parts["binding"] = binding_loss(binding, assignment, spoken)
        total = total + parts["binding"]
    return total, parts


@torch.no_grad()
def assign_to_voices(outputs: SeparatedVoices, batch: SoundBatch) -> Tensor:
    """Assignment of outputs to true voices of the least cost: int64 [N, K].

    The cost is minus the SDR of audible voices, and the energy of what silent people get. What is
    assigned to nobody belongs to the residual.

    Args:
        outputs: of Q queries and the residual, Q at least K.
        batch: what the mixtures consist of.
    """
    waves = wave(outputs.spectra[:, :-1], batch.mixture.shape[-1])
    audible = energies_db(batch.voices, batch.mixture) > ACTIVE_DB
    energies = energies_db(waves, batch.mixture)[..., None]  # [N, Q, 1]
    costs = -sdr_pairs(waves, batch.voices)
    costs = torch.where(audible[:, None], costs, SILENCE_COST * energies)
    return assign(costs, torch.ones_like(audible))


def binding_loss(binding: Binding, assignment: Tensor, audible: Tensor) -> Tensor:
    """Cross-entropy of cues for an audible voice, and of outputs (or none of them) for a cue.

    Args:
        binding: whose logits compare all outputs with all cues of the batch.
        assignment: int64 [N, K], the output of each person.
        audible: bool [N, K].
    """
    n, k = assignment.shape
    rows = torch.arange(n, device=assignment.device)
    cues = torch.arange(n * k, device=assignment.device).view(n, k)
    voice_logits = binding.logits[rows[:, None], assignment].flatten(2)  # [N, K, N K]
    by_voice = functional.cross_entropy(voice_logits.transpose(1, 2), cues, reduction="none")
    by_voice = (by_voice * audible).sum() / audible.sum().clamp(min=1)
    cue_logits = binding.logits[rows, :, rows]  # [N, Q + 1, K], none last
    none = cue_logits.shape[1] - 1
    by_cue = functional.cross_entropy(cue_logits, torch.where(audible, assignment, none))
    return by_voice + by_cue
