"""Aligned contrast: which moment of the sound belongs to a frame?

One still frame and ten seconds of sound say nothing of who speaks now. Here several frames of a
window are each contrasted with the sound of their own moment: a column of patches of the
spectrogram (160 ms where a patch has 16 fbank frames). After ideas of CAV-MAE Sync (Araujo et al.,
CVPR 2025), which aligns frames with seconds of sound, and of the synchronisation task of
audiovisual SlowFast (Xiao et al., arXiv 2001.08740): its hard negatives, which come late in
training, and its leaving out of near-silent sound.

Frames carry no time of their own, or they would be matched by it; sound is never rolled.

Shapes: N clips, F frames, T moments, L tokens, D width of a token, C of an embedding.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cavmae.datasets.stream.features import MEL_BINS, SILENCE
from cavmae.pretrain.engine.distributed import all_gather_rows, rank_offset
from cavmae.pretrain.losses import normalize
from cavmae.pretrain.positions import Grid

DECIBEL = 10 / math.log(10)  # of a natural logarithm of power
FLOOR_DB = (SILENCE + math.log(MEL_BINS)) * DECIBEL + 3  # hardly above digital silence


def group_by_bin(tokens: Tensor, grid: Grid) -> Tensor:
    """Tokens of sound by their moment: [N, rows * T, D] -> [N * T, rows, D]."""
    return tokens.unflatten(1, grid).transpose(1, 2).flatten(0, 1)


def loudness(fbank: Tensor, length: Tensor, moments: int) -> Tensor:
    """How loud each moment is.

    Args:
        fbank: log-mel as stored, not normalised [N, frames, mel].
        length: int [N], how many of the frames are real.
        moments: T, into how many equal parts the frames are cut.

    Returns:
        float32 [N, T]: mean power over the moment's frames, in dB; -inf where there is no sound.
    """
    power = fbank.float().logsumexp(dim=-1)
    real = torch.arange(power.shape[1], device=power.device) < length[:, None].to(power.device)
    power = power.masked_fill(~real, float("-inf")).unflatten(1, (moments, -1))
    return (power.logsumexp(dim=-1) - math.log(power.shape[-1])) * DECIBEL


def audible_bins(fbank: Tensor, length: Tensor, moments: int, quiet_db: float) -> Tensor:
    """Which moments are not near-silent: bool [N, T].

    Near-silent is what lies more than ``quiet_db`` below the loudest moment of its window, and
    what hardly differs from digital silence. For the other arguments see :func:`loudness`.
    """
    level = loudness(fbank, length, moments)
    return (level > level.amax(dim=1, keepdim=True) - quiet_db) & (level > FLOOR_DB)


def time_bins_of(times: Tensor, window: float, moments: int) -> Tensor:
    """Numbers of the moments that frames fall into: seconds [N, F] -> int64 [N, F]."""
    return (times / window * moments).floor().long().clamp(0, moments - 1)


class TimeBins(NamedTuple):
    """Embeddings of a batch's frames and moments.

    Attributes:
        sound: [N, T, C].
        frames: [N, F, C].
        own: int64 [N, F]: each frame's moment.
        heard: bool [N, F]: that moment is not near-silent.
    """

    audio: Tensor
    frames: Tensor
    own_bin: Tensor
    audible: Tensor


class FrameContrastLosses(NamedTuple):
    """Cross-entropies in nats against other clips and within the clip, and accuracies of both.

    Accuracies are shares of frames whose own moment is the most similar: of the moments of other
    clips' frames and its own, and of all moments of its clip.
    """

    easy: Tensor
    hard: Tensor
    easy_accuracy: Tensor
    hard_accuracy: Tensor


def frame_contrast(
    batch: TimeBins, temperature: Tensor | float, centered: bool = False
) -> FrameContrastLosses:
    """InfoNCE of frames and their own moments, in both directions.

    *Easy* negatives are the frames and moments of other clips, over all processes. *Hard* ones are
    of the same clip: a frame is told from all T moments, a moment from the F frames. Near-silent
    moments are nobody's match and ask for none: they are only what a talking face does not fit.

    Args:
        temperature: that cosines are divided by.
        centered: compare what differs from the mean: of all clips' frames and moments (easy), of
            the clip's own (hard).

    Returns:
        losses whose mean over processes is that of one process with all their clips.
    """
    with torch.autocast(batch.audio.device.type, enabled=False):
        return _aligned_contrast(batch, temperature, centered)


def _aligned_contrast(
    batch: TimeBins, temperature: Tensor | float, centered: bool
) -> FrameContrastLosses:
    n, f = batch.own_bin.shape
    sound, frames = batch.audio.float(), batch.frames.float()
    own_sound = _of_frames(sound, batch.own_bin)
    heard = batch.audible.flatten().float()
    all_heard = all_gather_rows(heard[:, None])
    # The mean over processes of sums divided by this is the mean over all frames that are heard.
    share = heard / (all_heard.sum() * n * f / len(all_heard)).clamp(min=1)

    gathered = all_gather_rows(
        torch.stack([own_sound, frames], dim=-2).flatten(0, 1)
    )  # [all, 2, C]
    if centered:
        gathered = gathered - gathered.mean(dim=0)
    all_sound, all_frames = normalize(gathered, centered).unbind(dim=1)
    number = torch.arange(len(gathered), device=sound.device)
    rows = rank_offset(n * f) + number[: n * f]
    clip = number // f
    same = (clip[rows, None] == clip) & (number != rows[:, None])

    def against(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        logits = (queries @ keys.T / temperature).masked_fill(same, float("-inf"))
        loss = functional.cross_entropy(logits, rows, reduction="none")
        return loss @ share, (logits.argmax(1) == rows).float() @ share

    easy_v, accuracy = against(all_frames[rows], all_sound)
    easy_a, _ = against(all_sound[rows], all_frames)

    sound, frames = within_clips(sound, frames, centered)
    inside = (frames @ sound.transpose(1, 2) / temperature).flatten(0, 1)  # [N * F, T]
    targets = batch.own_bin.flatten()
    hard_v = functional.cross_entropy(inside, targets, reduction="none") @ share
    found = (inside.argmax(1) == targets).float() @ share
    back = _of_frames(sound, batch.own_bin) @ frames.transpose(1, 2) / temperature  # [N, F, F]
    # Two frames of one moment (slow video) are both right: the other one is no negative.
    twin = (batch.own_bin[:, :, None] == batch.own_bin[:, None]) & ~torch.eye(
        f, dtype=torch.bool, device=sound.device
    )
    back = back.masked_fill(twin, float("-inf")).flatten(0, 1)
    order = number[:f].repeat(n)
    hard_a = functional.cross_entropy(back, order, reduction="none") @ share
    return FrameContrastLosses((easy_v + easy_a) / 2, (hard_v + hard_a) / 2, accuracy, found)


def _of_frames(sound: Tensor, own: Tensor) -> Tensor:
    """The moments of frames: [N, T, C] and [N, F] -> [N, F, C]."""
    return sound.gather(1, own[..., None].expand(-1, -1, sound.shape[-1]))


def within_clips(sound: Tensor, frames: Tensor, centered: bool) -> tuple[Tensor, Tensor]:
    """Embeddings of unit length, as they are compared within a clip: [N, T, C] and [N, F, C].

    Args:
        centered: less the mean of the clip's moments, and of its frames.
    """
    if centered:
        sound = sound - sound.mean(dim=1, keepdim=True)
        frames = frames - frames.mean(dim=1, keepdim=True)
    return normalize(sound, centered), normalize(frames, centered)


def hard_negative_fraction(progress: float, share: float, after: float) -> float:
    """The share of hard negatives at a point of training, 0 in its first part.

    Args:
        progress: share of training that is done.
        share: from then on (audiovisual SlowFast: 0.25).
        after: share of training that goes without (audiovisual SlowFast: 0.5).
    """
    return share if progress >= after else 0.0
