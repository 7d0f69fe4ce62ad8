"""Audiovisual synchronisation loss (AVS) of SlowFast networks (Xiao et al., arXiv 2001.08740).

Pooled features of both modalities *before* their fusion are projected to 64, normalised (L2) and
halved, so that distances d lie in 0 to 1; the loss of M pairs is
(d+^2 + max(0, 0.99 - d-)^2) / 2 M. A negative is *easy*, the audio of another clip, or *hard*, the
same clip shifted in time. In the first half of training all are easy, then a quarter is hard.

Differences: positives and hard negatives are windows of a third of the clip that never overlap (the
release keeps a distance of starts, so that its windows may); features are convolved before they are
pooled, as motion that is standardised in time has a mean of almost 0; pairs of the same audio are
those of the same log-mel spectrogram, since embeddings may be alike before training.

Shapes: M clips, T frames, W frames of a window, D width, R audio steps of a frame, B mel bins.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 64  # of an embedding
RADIUS = 0.5  # of the sphere of embeddings
MARGIN = 0.99
TAPS = 5  # frames
WINDOWS = 3  # in a clip: wherever one lies, there is place for another beside it
HARD_FROM = 0.5  # fraction of training
HARD_FRACTION = 0.25  # of negatives, afterwards
SILENT_VARIANCE = 0.01  # of log-mel values, up to which a window is near-silent
SAME_COSINE = 0.99999  # of two log-mel windows, from which they are the same audio


class SyncPairs(NamedTuple):
    """A positive and a negative for each clip.

    Attributes:
        start: int64 [M], first frame of the positive's window, in video and audio.
        negative: int64 [M], clip of the negative's audio; of a hard one the clip itself.
        negative_start: int64 [M], first frame of the negative's window.
        valid: bool [M], clips that have both.
    """

    start: Tensor
    negative: Tensor
    negative_start: Tensor
    valid: Tensor


def draw_pairs(ids: Tensor, usable: Tensor, frames: int, progress: float) -> SyncPairs:
    """Random pairs of the curriculum.

    Args:
        ids: int64 [M], sample id of each clip; clips of the same sample are no negatives.
        usable: bool [M], clips that may be in a pair.
        frames: T.
        progress: fraction of training that is done.
    """
    count, device = len(ids), ids.device
    window = frames // WINDOWS
    uniform = torch.rand(3, count, device=device, dtype=torch.float64)
    start = (uniform[0] * (frames - window + 1)).long()
    other = (ids[:, None] != ids) & usable  # [M, M]
    scores = torch.rand(count, count, device=device).masked_fill(~other, -1.0)
    easy_start = (uniform[1] * (frames - window + 1)).long()
    # Starts at least a window before or after the positive's.
    before = (start - window + 1).clamp(min=0)
    after = (frames - 2 * window - start + 1).clamp(min=0)
    hard_start = (uniform[1] * (before + after)).long()
    hard_start = torch.where(hard_start < before, hard_start, hard_start - before + start + window)
    hard = uniform[2] < (HARD_FRACTION if progress >= HARD_FROM else 0.0)
    return SyncPairs(
        start,
        torch.where(hard, torch.arange(count, device=device), scores.argmax(1)),
        torch.where(hard, hard_start, easy_start),
        usable & (hard | other.any(1)),
    )


def windows_of(x: Tensor, rows: Tensor, start: Tensor, length: int, steps: int = 1) -> Tensor:
    """Windows of sequences: [M, T * steps, D] -> [M, length * steps, D].

    Args:
        rows: int64 [M], sequence of each window.
        start: int64 [M], first frame.
        length: frames.
        steps: of the sequence in a frame.
    """
    offsets = torch.arange(length * steps, device=x.device)
    return x[rows[:, None], start[:, None] * steps + offsets]


def sync_distances(video: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Terms d+^2 + max(0, 0.99 - d-)^2 of projected features [M, D] each: [M], in float32."""
    video, positive, negative = (
        RADIUS * functional.normalize(x.float(), dim=1) for x in (video, positive, negative)
    )
    near = (video - positive).square().sum(1)
    # The root has no gradient at 0.
    far = (video - negative).square().sum(1).clamp(min=1e-12).sqrt()
    return near + functional.relu(MARGIN - far).square()


class SyncHead(nn.Module):
    """Embeddings of windows of one modality.

    Args:
        width: D of its features.
    """

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv1d(width, WIDTH, TAPS, padding=TAPS // 2)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Features to be pooled: [M, T, D] -> [M, T, 64]."""
        return functional.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)


class SyncLoss(nn.Module):
    """Synchronisation loss with its projections, of any two pathways.

    Args:
        video_width: D of video features.
        audio_width: D of audio features.
    """

    def __init__(self, video_width: int, audio_width: int):
        super().__init__()
        self.video_head = SyncHead(video_width)
        self.audio_head = SyncHead(audio_width)

    def forward(
        self, video: Tensor, audio: Tensor, log_mel: Tensor, ids: Tensor, audio_ids: Tensor,
        usable: Tensor, progress: float,
    ) -> Tensor:  # fmt: skip
        """Loss of a batch; 0 without a pair.

        Args:
            video: [M, T, D], features before any audio joins them; T is at least 3.
            audio: [M, T, D], features before any video joins them, at the rate of frames.
            log_mel: [M, R T, B], not normalised, of the same audio.
            ids: int64 [M], sample id of each row of ``video``.
            audio_ids: int64 [M], sample id of each row of ``audio`` and ``log_mel``: pairs are of
                the same id, in whatever order the rows come.
            usable: bool [M], rows of ``video`` whose audio belongs to them.
            progress: fraction of training that is done, for the curriculum.
        """
        frames = video.shape[1]
        window, steps = frames // WINDOWS, log_mel.shape[1] // frames
        order = (ids[:, None] == audio_ids).float().argmax(1)
        pairs = draw_pairs(ids, usable, frames, progress)
        rows = torch.arange(len(video), device=video.device)
        positive, negative = order, order[pairs.negative]
        positive_mel = windows_of(log_mel, positive, pairs.start, window, steps)
        negative_mel = windows_of(log_mel, negative, pairs.negative_start, window, steps)
        valid = pairs.valid & audible(positive_mel) & audible(negative_mel)
        cosine = functional.cosine_similarity(positive_mel.flatten(1), negative_mel.flatten(1))
        valid &= cosine < SAME_COSINE
        video, audio = self.video_head(video), self.audio_head(audio)
        terms = sync_distances(
            self.video_head.proj(windows_of(video, rows, pairs.start, window).mean(1)),
            self.audio_head.proj(windows_of(audio, positive, pairs.start, window).mean(1)),
            self.audio_head.proj(windows_of(audio, negative, pairs.negative_start, window).mean(1)),
        )
        return (terms * valid).sum() / (2 * valid.sum().clamp(min=1))


def audible(log_mel: Tensor) -> Tensor:
    """Whether windows [M, steps, B] are more than near-silent: bool [M]."""
    return log_mel.float().flatten(1).var(1, unbiased=False) > SILENT_VARIANCE
