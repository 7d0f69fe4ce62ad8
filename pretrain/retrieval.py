"""Audio-video retrieval: features of many clips, ranks in both directions.

The evaluation of CAV-MAE (Gong et al., ICLR 2023): mean-pooled unmasked tokens of each modality
alone, cosine similarity, recall at 1, 5 and 10 and the median rank.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cavmae.pretrain.encoder import Encoder

BLOCK = 2048  # rows of a matrix of similarities at a time: 100,000 clips never lie in one


class Features(NamedTuple):
    """Pooled features of clips.

    Attributes:
        keys: of the clips.
        audio, video: float32 [N, D], of unit length, on the CPU.
    """

    keys: list[str]
    audio: Tensor
    video: Tensor

    def normalized(self, centered: bool) -> "Features":
        """Unit features; ``centered``: after subtracting each modality's mean over clips."""
        audio, video = self.audio, self.video
        if centered:
            audio, video = audio - audio.mean(dim=0), video - video.mean(dim=0)
        unit = functional.normalize
        return Features(self.keys, unit(audio, dim=-1), unit(video, dim=-1))


@torch.inference_mode()
def extract(model: Encoder, batches: Iterable[Mapping[str, Any]], device: torch.device) -> Features:
    """Features of every clip.

    Args:
        batches: as :class:`~cavmae.datasets.stream.transforms.DeviceTransform` gives them: ``key``,
            ``fbank`` [N, frames, mel], ``frames`` [N, F, 3, H, W]. Features of several frames of
            a clip are averaged, or computed together where the model mixes frames.
    """
    model = model.to(device).eval()
    keys: list[str] = []
    audio, video = [], []
    for batch in batches:
        pooled = model.audio_features(batch["fbank"]).mean(dim=1)
        frames = batch["frames"]
        together = [frames] if model.encoder_config.mixes_frames else frames.split(1, dim=1)
        images = [model.frame_features(f).flatten(1, 2).mean(dim=1) for f in together]
        keys += batch["key"]
        audio.append(functional.normalize(pooled.float(), dim=-1).cpu())
        video.append(functional.normalize(torch.stack(images).mean(dim=0).float(), dim=-1).cpu())
    width = model.encoder_config.width
    empty = torch.zeros(0, width)
    return Features(keys, torch.cat([empty, *audio]), torch.cat([empty, *video]))


def ranks(queries: Tensor, gallery: Tensor, block: int = BLOCK) -> Tensor:
    """Rank of each query's partner (the row of its own number) among all of the gallery.

    By matrix products of blocks: memory grows with the number of clips, not with its square. Equal
    similarities share their ranks, so that features that are all the same are as good as chance.

    Args:
        queries, gallery: [N, D].

    Returns:
        float64 [N]: 1 is the best.
    """
    own = (queries * gallery).sum(dim=1)
    rank = torch.zeros(len(queries), dtype=torch.float64)
    for first in range(0, len(queries), block):
        rows = slice(first, first + block)
        for start in range(0, len(gallery), block):
            similar = queries[rows] @ gallery[start : start + block].T
            # The product that a row has with its own partner, rounded as its rivals' are.
            at = torch.arange(first, min(first + block, len(queries)))
            inside = (at >= start) & (at < start + similar.shape[1])
            mine = own[rows].clone()
            mine[inside] = similar[inside, at[inside] - start]
            rank[rows] += (similar > mine[:, None]).sum(1) + 0.5 * (similar == mine[:, None]).sum(1)
    return rank + 0.5


def recall_metrics(rank: Tensor) -> dict[str, float]:
    """Recall at 1, 5 and 10 (shares of the queries) and the median rank."""
    result = {f"recall_at_{k}": float((rank <= k).double().mean()) for k in (1, 5, 10)}
    return {**result, "median_rank": float(rank.median())}


def retrieval(features: Features) -> dict[str, dict[str, float]]:
    """Retrieval metrics in both directions, and their chance level."""
    count = len(features.keys)
    chance_level = {f"recall_at_{k}": min(1.0, k / count) for k in (1, 5, 10)}
    return {
        "video_to_audio": recall_metrics(ranks(features.video, features.audio)),
        "audio_to_video": recall_metrics(ranks(features.audio, features.video)),
        "chance": {**chance_level, "median_rank": (count + 1) / 2},
    }
