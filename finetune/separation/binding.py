"""Binding of separated voices to people by the articulation that their audio implies.

A network predicts an articulation cue from each voice, which is correlated with the given cues, as
active speaker detection compares audio with lips (Chung and Zisserman, ACCV 2016, "Out of time").
Shapes: N mixtures, K people with a cue, Q queries, S samples, T = S / 640 frames of 40 ms, T' =
S / 160, C channels of a cue.
"""

import math
from typing import NamedTuple, Optional

import torch
from torch import Tensor, nn

from cavmae.finetune.separation.config import SoundSeparatorConfig
from cavmae.finetune.separators.layers import DilatedConvs
from cavmae.finetune.speaker.matcher import ACTIVE_DB, assign

BANDS = 32  # of a voice's energy, each of 8 bins
BAND_FLOOR = 1e-4  # of a band's power, relative to the voice's mean
LAYERS = 3  # dilated convolutions of the prediction
MAX_SHIFT = 2  # frames by which a cue may be early or late: 80 ms
STILL = 0.02  # standard deviation below which a cue hardly moves
FIRST_SCALE = 10.0  # of correlations before training
SILENT_LOGIT = -10.0  # of the activity of a person without a voice
UNBOUND_COST = 1e4  # of an output that is as good as silent


class SeparatedVoices(NamedTuple):
    """Separated voices of mixtures.

    Attributes:
        spectra: complex [N, K + 1, 257, S / 160 + 1], the residual last; their sum is the mixture.
        activity_logits: [N, K + 1, T], the residual last.
        binding: of outputs to the cues; None: each voice was extracted by its cue.
    """

    spectra: Tensor
    activity_logits: Tensor
    binding: Optional["Binding"] = None

    def among(self, numbers: Tensor, count: int) -> "SeparatedVoices":
        """These voices among ``count``, the others of which are silent.

        Args:
            numbers: int64 [K], of these voices.
        """
        places = torch.cat([numbers, numbers.new_tensor([count])])  # the residual stays last
        n, _, *size = self.spectra.shape
        spectra = self.spectra.new_zeros(n, count + 1, *size)
        logits = self.activity_logits.new_full(
            (n, count + 1, self.activity_logits.shape[-1]), SILENT_LOGIT
        )
        spectra[:, places], logits[:, places] = self.spectra, self.activity_logits
        return SeparatedVoices(spectra, logits, self.binding)


class Binding(NamedTuple):
    """Outputs of queries and their binding to people.

    Attributes:
        outputs: of the Q queries and the residual.
        logits: [N, Q + 1, N, K], of each output for each cue of the batch; last, of no output.
        assignment: int64 [N, K], the output of each person; Q: none.
    """

    outputs: SeparatedVoices
    logits: Tensor
    assignment: Tensor


def bind(outputs: SeparatedVoices, logits: Tensor, assignment: Tensor) -> SeparatedVoices:
    """Voices of people [N, K + 1, ...]: nothing for those without an output; the rest is residual.

    Permuted cues permute the voices to the bit, as unbound outputs are added up in their own order.

    Args:
        outputs: of Q queries and the residual.
        logits: see :class:`Binding`.
        assignment: int64 [N, K], the output of each person; Q: none.
    """
    spectra, activity = outputs.spectra, outputs.activity_logits
    rows = torch.arange(len(spectra), device=spectra.device)[:, None]
    unbound = torch.ones(spectra.shape[:2], dtype=torch.bool, device=spectra.device)
    unbound[rows, assignment] = False
    unbound[:, -1] = True  # the residual, whose place means none in an assignment
    voices = torch.cat([spectra[:, :-1], torch.zeros_like(spectra[:, :1])], dim=1)
    residual = (spectra * unbound[..., None, None]).sum(1, keepdim=True)
    logit = torch.cat([activity[:, :-1], torch.full_like(activity[:, :1], SILENT_LOGIT)], dim=1)
    rest = activity.masked_fill(~unbound[..., None], -torch.inf).amax(1, keepdim=True)
    return SeparatedVoices(
        torch.cat([voices[rows, assignment], residual], dim=1),
        torch.cat([logit[rows, assignment], rest], dim=1),
        Binding(outputs, logits, assignment),
    )


class VoiceBinder(nn.Module):
    """Assignment of outputs to cues by the articulation that is predicted from each output.

    Its gradient does not reach the separator, which learns without cues.

    Args:
        config: of the model.
    """

    def __init__(self, config: SoundSeparatorConfig):
        super().__init__()
        width = config.width
        self.band_proj = nn.Conv1d(BANDS, width, 8, stride=4, padding=2)
        self.convs = DilatedConvs(width, LAYERS)
        self.articulation_head = nn.Linear(width, config.cue_channels)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))
        self.none_logit = nn.Parameter(torch.tensor(0.0))

    def forward(
        self, spectra: Tensor, cues: Tensor, visible: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits [N, Q + 1, N, K] and assignment [N, K]; see :class:`Binding`.

        Args:
            spectra: complex [N, Q + 1, 257, T' + 1], the residual last.
            cues: [N, K, T, C].
            visible: bool [N, K, T], frames in which the cue is known; None: all.
        """
        power = spectra.detach().abs().square()[..., :-1, :-1]  # [N, Q + 1, 256, T']
        articulation = self.articulation(power[:, :-1])
        with torch.autocast(power.device.type, enabled=False):
            known = torch.ones_like(cues[..., 0]) if visible is None else visible
            pairs = correlations(
                articulation.flatten(0, 1).float(), cues.flatten(0, 1).float(), known.flatten(0, 1)
            )
            logits = (self.log_scale.exp() * pairs).logsumexp(-1) - math.log(pairs.shape[-1])
        n, k = cues.shape[:2]
        logits = logits.view(n, -1, n, k)
        none = self.none_logit.expand(n, 1, n, k)
        logits = torch.cat([logits, none], dim=1)
        total = spectra.detach().sum(1).abs().square().sum((-2, -1))[:, None]
        loud = power[:, :-1].sum((-2, -1)) > total * 10 ** (ACTIVE_DB / 10)
        rows = torch.arange(n, device=cues.device)
        return logits, assign_to_cues(logits[rows, :, rows], loud)

    def articulation(self, power: Tensor) -> Tensor:
        """Predicted articulation [N, Q, T, C] of voices' power [N, Q, 256, T']."""
        bands = power.unflatten(2, (BANDS, -1)).mean(3)
        mean = bands.mean((2, 3), keepdim=True) + 1e-8
        levels = (bands / mean + BAND_FLOOR).log10()
        x = self.band_proj(levels.flatten(0, 1))  # [N Q, D, T]
        x = self.convs(x).transpose(1, 2)  # [N Q, T, D]
        cues: Tensor = self.articulation_head(x).unflatten(0, power.shape[:2])
        return cues


def correlations(articulation: Tensor, cues: Tensor, visible: Tensor) -> Tensor:
    """Correlation over time of all pairs for shifts of up to 80 ms.

    Args:
        articulation: [A, T, C].
        cues: [B, T, C].
        visible: [B, T], frames in which the cue is known; the others add nothing.

    Returns:
        [A, B, 2 MAX_SHIFT + 1], from cues that are early to those that are late; of a cue that does
        not move: 0.
    """
    frames = cues.shape[1]
    shifts = []
    for shift in range(-MAX_SHIFT, MAX_SHIFT + 1):
        first, last = max(0, -shift), frames - max(0, shift)
        own = articulation[:, first:last]
        late = slice(first + shift, last + shift)
        shifts.append(
            _standardised(own, torch.ones_like(own[..., 0]))
            @ _standardised(cues[:, late], visible[:, late]).T
        )
    return torch.stack(shifts, dim=-1)


def _standardised(tracks: Tensor, visible: Tensor) -> Tensor:
    """Tracks [A, T, C] without their means and with a norm of 1, or less where still: [A, T C]."""
    weights = visible[..., None].float()
    mean = (tracks * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)
    flat = ((tracks - mean) * weights).flatten(1)
    return flat / (flat.square().sum(1, keepdim=True) + flat.shape[1] * STILL**2).sqrt()


def assign_to_cues(logits: Tensor, audible: Tensor) -> Tensor:
    """Assignment of outputs to people of the largest sum of logits: int64 [N, K], Q: none.

    Args:
        logits: [N, Q + 1, K]; last, of no output.
        audible: bool [N, Q]; other outputs are bound to nobody.
    """
    people = logits.shape[2]
    costs = (-logits[:, :-1]).masked_fill(~audible[..., None], UNBOUND_COST)
    none = -logits[:, -1:].expand(-1, people, -1)
    present = torch.ones_like(logits[:, 0], dtype=torch.bool)
    return assign(torch.cat([costs, none], dim=1), present).clamp(max=logits.shape[1] - 1)
