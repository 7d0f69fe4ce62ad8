"""Frame contrast: matches each frame with its own time bin of the audio.

One still frame and ten seconds of audio say nothing of who speaks now. Here several frames of a
window are each contrasted with the audio of their own time bin: a column of patches of the
spectrogram (160 ms where a patch has 16 fbank frames). After ideas of CAV-MAE Sync (Araujo et al.,
CVPR 2025), which aligns frames with seconds of audio, and of the synchronisation task of
audiovisual SlowFast (Xiao et al., arXiv 2001.08740): its hard negatives, which come late in
training, and its leaving out of near-silent audio.

Frames carry no time of their own, or they would be matched by it; audio is never rolled.

Shapes: N clips, F frames, T time bins, L tokens, D width of a token, C of an embedding.
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
    """Audio tokens by time bin: [N, rows * T, D] -> [N * T, rows, D]."""
    return tokens.unflatten(1, grid).transpose(1, 2).flatten(0, 1)


def loudness(fbank: Tensor, length: Tensor, time_bins: int) -> Tensor:
    """Loudness of each time bin.

    Args:
        fbank: log-mel as stored, not normalised [N, frames, mel].
        length: int [N], how many of the frames are real.
        time bins: T, into how many equal parts the frames are cut.

    Returns:
        float32 [N, T]: mean power over the time bin's frames, in dB; -inf where there is no audio.
    """
    power = fbank.float().logsumexp(dim=-1)
    real = torch.arange(power.shape[1], device=power.device) < length[:, None].to(power.device)
    power = power.masked_fill(~real, float("-inf")).unflatten(1, (time_bins, -1))
    return (power.logsumexp(dim=-1) - math.log(power.shape[-1])) * DECIBEL


def audible_bins(fbank: Tensor, length: Tensor, time_bins: int, quiet_db: float) -> Tensor:
    """Time bins that are not near-silent: bool [N, T].

    Near-silent is what lies more than ``quiet_db`` below the loudest time bin of its window, and
    what hardly differs from digital silence. For the other arguments see :func:`loudness`.
    """
    level = loudness(fbank, length, time_bins)
    return (level > level.amax(dim=1, keepdim=True) - quiet_db) & (level > FLOOR_DB)


def time_bins_of(times: Tensor, window: float, time_bins: int) -> Tensor:
    """Time bins of frames: seconds [N, F] -> int64 [N, F]."""
    return (times / window * time_bins).floor().long().clamp(0, time_bins - 1)


class TimeBins(NamedTuple):
    """Embeddings of the frames and time bins of a batch.

    Attributes:
        audio: [N, T, C].
        frames: [N, F, C].
        own: int64 [N, F]: each frame's time bin.
        audible: bool [N, F]: that time bin is not near-silent.
    """

    audio: Tensor
    frames: Tensor
    own_bin: Tensor
    audible: Tensor


class FrameContrastLosses(NamedTuple):
    """Cross-entropies in nats against other clips and within the clip, and accuracies of both.

    Accuracies are fractions of frames whose own time bin is the most similar: among those of other
    clips' frames and its own, and among all time bins of its clip.
    """

    easy: Tensor
    hard: Tensor
    easy_accuracy: Tensor
    hard_accuracy: Tensor


def frame_contrast(
    batch: TimeBins, temperature: Tensor | float, centered: bool = False
) -> FrameContrastLosses:
    """InfoNCE of frames and their own time bins, in both directions.

    *Easy* negatives are the frames and time bins of other clips, over all processes. *Hard* ones
    are of the same clip: all T time bins for a frame, the F frames for a time bin. Near-silent time
    bins are negatives only.

    Args:
        temperature: that cosines are divided by.
        centered: compare what differs from the mean: of all clips' frames and time bins (easy), of
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
    audio, frames = batch.audio.float(), batch.frames.float()
    own_audio = _of_frames(audio, batch.own_bin)
    audible = batch.audible.flatten().float()
    all_audible = all_gather_rows(audible[:, None])
    # The mean over processes of sums divided by this is the mean over all frames that are audible.
    share = audible / (all_audible.sum() * n * f / len(all_audible)).clamp(min=1)

    gathered = all_gather_rows(
        torch.stack([own_audio, frames], dim=-2).flatten(0, 1)
    )  # [all, 2, C]
    if centered:
        gathered = gathered - gathered.mean(dim=0)
    all_audio, all_frames = normalize(gathered, centered).unbind(dim=1)
    number = torch.arange(len(gathered), device=audio.device)
    rows = rank_offset(n * f) + number[: n * f]
    clip = number // f
    same = (clip[rows, None] == clip) & (number != rows[:, None])

    def against(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        logits = (queries @ keys.T / temperature).masked_fill(same, float("-inf"))
        loss = functional.cross_entropy(logits, rows, reduction="none")
        return loss @ share, (logits.argmax(1) == rows).float() @ share

    easy_v, accuracy = against(all_frames[rows], all_audio)
    easy_a, _ = against(all_audio[rows], all_frames)

    audio, frames = within_clips(audio, frames, centered)
    inside = (frames @ audio.transpose(1, 2) / temperature).flatten(0, 1)  # [N * F, T]
    targets = batch.own_bin.flatten()
    hard_v = functional.cross_entropy(inside, targets, reduction="none") @ share
    hard_accuracy = (inside.argmax(1) == targets).float() @ share
    back = _of_frames(audio, batch.own_bin) @ frames.transpose(1, 2) / temperature  # [N, F, F]
    # Two frames of one time bin (slow video) are both right: the other one is no negative.
    twin = (batch.own_bin[:, :, None] == batch.own_bin[:, None]) & ~torch.eye(
        f, dtype=torch.bool, device=audio.device
    )
    back = back.masked_fill(twin, float("-inf")).flatten(0, 1)
    order = number[:f].repeat(n)
    hard_a = functional.cross_entropy(back, order, reduction="none") @ share
    return FrameContrastLosses(
        (easy_v + easy_a) / 2, (hard_v + hard_a) / 2, accuracy, hard_accuracy
    )


def _of_frames(audio: Tensor, own: Tensor) -> Tensor:
    """Time bins of frames: [N, T, C] and [N, F] -> [N, F, C]."""
    return audio.gather(1, own[..., None].expand(-1, -1, audio.shape[-1]))


def within_clips(audio: Tensor, frames: Tensor, centered: bool) -> tuple[Tensor, Tensor]:
    """Unit embeddings for the comparison within a clip: [N, T, C] and [N, F, C].

    Args:
        centered: less the mean of the clip's time bins, and of its frames.
    """
    if centered:
        audio = audio - audio.mean(dim=1, keepdim=True)
        frames = frames - frames.mean(dim=1, keepdim=True)
    return normalize(audio, centered), normalize(frames, centered)


def hard_negative_fraction(progress: float, share: float, after: float) -> float:
    """Weight of hard negatives at a point of training, 0 in its first part.

    Args:
        progress: share of training that is done.
        share: from then on (audiovisual SlowFast: 0.25).
        after: share of training that goes without (audiovisual SlowFast: 0.5).
    """
    return share if progress >= after else 0.0
