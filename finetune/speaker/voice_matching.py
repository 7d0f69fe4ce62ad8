"""Whose voice is most like a recording of somebody: how a reference voice finds its person.

What a voice sounds like, and a face looks like, have nothing to do with each other: only what was
separated can be compared. Compared are the mean and the spread of cepstra over the loudest frames,
which tell voices (and rooms and microphones) apart and hardly depend on the words. Fine detail,
beyond the first 40 of them, tells voices that still hold some of each other less well apart, and so
do log-mel filter banks themselves.
"""

import torch
from torch import Tensor
from torchaudio.functional import create_dct

from cavmae.finetune.speaker.cues import KINDS
from cavmae.finetune.speaker.model import OFF_SCREEN, Inputs, SlotPredictions, VoicePredictions

LOUDEST = 1 / 3  # of the frames are compared
CEPSTRA = 40  # without the first of all, which is how loud it is
AUDIBLE = 0.01  # of the power of the loudest: fainter ones may be what leaked of another voice


def traits(fbank: Tensor) -> Tensor:
    """What a voice is known by, however loud: [..., T, mel] -> [..., 2 CEPSTRA]."""
    count = max(1, round(fbank.shape[-2] * LOUDEST))
    place = fbank.mean(-1).topk(count, dim=-1).indices
    loud = fbank.gather(-2, place[..., None].expand(*place.shape, fbank.shape[-1]))
    cosines = create_dct(CEPSTRA + 1, fbank.shape[-1], "ortho")[:, 1:].to(loud)
    cepstra = loud @ cosines
    return torch.cat([cepstra.mean(-2), cepstra.std(-2, correction=0)], dim=-1)


def distances(voices: Tensor, reference: Tensor) -> Tensor:
    """Of voices' filter banks [N, Q, T, mel] from a reference's [N, T', mel]: [N, Q]."""
    return (traits(voices) - traits(reference)[:, None]).abs().mean(-1)


def target_to_slot0(
    inputs: Inputs, looked: SlotPredictions, voices: VoicePredictions, waves: Tensor, fbanks: Tensor
) -> tuple[SlotPredictions, VoicePredictions]:
    """Slot 0 changes places with the slot whose voice is most like the reference voice.

    Where the cue is no voice, or nobody is said to be there, all stays as it is.

    Args:
        waves: [N, Q, S], of all slots, the residual last.
        fbanks: [N, Q, T, mel], of the waves, normalised as the reference is.
    """
    n, q = waves.shape[:2]
    apart = distances(fbanks[:, :-1], inputs.cues.voice)
    power = waves[:, :-1].square().mean(-1)
    heard = power >= AUDIBLE * power.amax(1, keepdim=True)
    possible = heard & (voices.states[:, :-1].argmax(-1) < OFF_SCREEN)
    by_voice = (inputs.cues.kind == KINDS.index("voice")) & possible.any(1)
    best = apart.masked_fill(~possible, torch.inf).argmin(1)
    best = torch.where(by_voice, best, 0)
    rows = torch.arange(n, device=waves.device)
    order = torch.arange(q, device=waves.device).repeat(n, 1)
    order[rows, best] = 0
    order[:, 0] = best
    people = order[:, :-1]

    def placed(values: Tensor, by: Tensor) -> Tensor:
        return values[rows[:, None], by]

    looked = looked._replace(
        slots=placed(looked.slots, order),
        states=[placed(states, order) for states in looked.states],
        masks=[placed(masks, people) for masks in looked.masks],
    )
    voices = voices._replace(
        spectra=placed(voices.spectra, order),
        states=placed(voices.states, order),
        activity_logits=placed(voices.activity_logits, order),
    )
    return looked, voices
