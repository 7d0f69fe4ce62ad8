"""Matching of separated voices to a reference voice.

A face does not determine its voice, so the reference is compared with the separated voices.
The features are mean and standard deviation of cepstra over the loudest frames. They separate
voices (and rooms and microphones) and hardly depend on the words. More than 40 coefficients, or
log-mel filter banks, discriminate less between voices that still leak into each other.
"""

import torch
from torch import Tensor
from torchaudio.functional import create_dct

from cavmae.finetune.speaker.cues import KINDS
from cavmae.finetune.speaker.model_tensors import (
    OFF_SCREEN,
    Inputs,
    SlotPredictions,
    VoicePredictions,
)

LOUDEST = 1 / 3  # fraction of frames, the loudest, that are compared
CEPSTRA = 40  # coefficients, without the first, which is the level
AUDIBLE = 0.01  # of the loudest voice's power; fainter ones may be leakage of another voice


def voice_features(fbank: Tensor) -> Tensor:
    """Level-independent features of a voice's fbank: [..., T, mel] -> [..., 2 CEPSTRA]."""
    count = max(1, round(fbank.shape[-2] * LOUDEST))
    frames = fbank.mean(-1).topk(count, dim=-1).indices
    loud_frames = fbank.gather(-2, frames[..., None].expand(*frames.shape, fbank.shape[-1]))
    cosines = create_dct(CEPSTRA + 1, fbank.shape[-1], "ortho")[:, 1:].to(loud_frames)
    cepstra = loud_frames @ cosines
    return torch.cat([cepstra.mean(-2), cepstra.std(-2, correction=0)], dim=-1)


def distances(voices: Tensor, reference: Tensor) -> Tensor:
    """Distances of voices' fbanks [N, Q, T, mel] from a reference's [N, T', mel]: [N, Q]."""
    return (voice_features(voices) - voice_features(reference)[:, None]).abs().mean(-1)


def target_to_slot0(
    inputs: Inputs,
    predictions: SlotPredictions,
    voices: VoicePredictions,
    waves: Tensor,
    fbanks: Tensor,
) -> tuple[SlotPredictions, VoicePredictions]:
    """Swap slot 0 with the slot whose voice is nearest to the reference voice.

    Clips without a voice cue, or without an audible on-screen person, are left unchanged.

    Args:
        waves: [N, Q, S], of all slots.
        fbanks: [N, Q, T, mel], of the waves, normalised as the reference.
    """
    n, q = waves.shape[:2]
    voice_distance = distances(fbanks[:, :-1], inputs.cues.voice)
    power = waves[:, :-1].square().mean(-1)
    audible = power >= AUDIBLE * power.amax(1, keepdim=True)
    candidates = audible & (voices.states[:, :-1].argmax(-1) < OFF_SCREEN)
    has_voice_cue = (inputs.cues.kind == KINDS.index("voice")) & candidates.any(1)
    nearest = voice_distance.masked_fill(~candidates, torch.inf).argmin(1)
    nearest = torch.where(has_voice_cue, nearest, 0)
    rows = torch.arange(n, device=waves.device)
    order = torch.arange(q, device=waves.device).repeat(n, 1)
    order[rows, nearest] = 0
    order[:, 0] = nearest
    person_order = order[:, :-1]

    def permute(values: Tensor, slot_order: Tensor) -> Tensor:
        return values[rows[:, None], slot_order]

    predictions = predictions._replace(
        slots=permute(predictions.slots, order),
        states=[permute(states, order) for states in predictions.states],
        masks=[permute(masks, person_order) for masks in predictions.masks],
    )
    voices = voices._replace(
        spectra=permute(voices.spectra, order),
        states=permute(voices.states, order),
        activity_logits=permute(voices.activity_logits, order),
        articulation=permute(voices.articulation, person_order),
    )
    return predictions, voices
