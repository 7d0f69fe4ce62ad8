"""Validation metrics of pretraining.

- Reconstruction of masked patches, beside what predicting each patch's mean gives.
- Contrast of clips in groups of a fixed size, and retrieval among all of them.
- The time bin of a frame among those of its window; and audio in step against the same audio beside
  frames of 400 ms later.

Masks follow from a clip's key and groups from the order of keys, so that the metrics do not depend
on the number of processes and the sizes of their batches.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.features import FBANK_RATE
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.pretrain.encoder import gather_tokens
from cavmae.pretrain.frame_contrast import audible_bins, within_clips
from cavmae.pretrain.losses import normalize_patches
from cavmae.pretrain.masking import Masking
from cavmae.pretrain.model import CAVMAE, channels_last
from cavmae.pretrain.retrieval import Features, ranks, retrieval
from cavmae.pretrain.settings import ObjectiveSettings

SHIFT = 0.4  # s
CONTRAST_GROUP = 64  # clips
FEWEST = 4  # time bins with audio, without which a clip says nothing of its step


def validation_record(
    model: CAVMAE, objective: ObjectiveSettings, normalized: Batch, raw: Batch
) -> dict[str, Any]:
    """Record of a batch for :func:`aggregate_records`.

    Args:
        normalized: output of :class:`~cavmae.datasets.stream.transforms.DeviceTransform`; with the
            frame contrast all frames of a window at 25 a second, else as many as the model takes.
        raw: as loaded.
    """
    record: dict[str, Any] = {"key": list(raw["key"])}
    fbank, frames = normalized["fbank"], normalized["frames"]
    middle = frames.shape[1] // 2
    clip = frames if model.config.frames > 1 else frames[:, middle : middle + 1]
    if objective.mae_weight:
        record |= _reconstruction(model, objective, fbank, clip, record["key"])
    if objective.contrastive_weight:
        audio = model.audio_features(fbank).mean(dim=1)
        image = model.frame_features(clip).flatten(1, 2).mean(dim=1)
        record["audio_features"], record["video_features"] = (
            audio.float().cpu(),
            image.float().cpu(),
        )
        record["center_embeddings"] = objective.center_embeddings
    if objective.aligned_weight:
        record |= _alignment(model, objective, fbank, frames, raw)
    return record


def _masks(
    model: CAVMAE, objective: ObjectiveSettings, frames: int, keys: Sequence[str]
) -> tuple[Masking, Masking]:
    """Masks of audio and of frames, each clip's by its key; see :meth:`CAVMAE.mask`."""
    device = model.modality_a.device
    maskings = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for key in keys:
            digest = hashlib.sha256(key.encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:8], "big", signed=True))
            maskings.append(
                model.mask(
                    1,
                    objective.mask_ratio_audio,
                    objective.mask_ratio_image,
                    objective.mask_mode,
                    frames=frames,
                    frame_masks=objective.frame_masks,
                )
            )
    audio, video = zip(*maskings, strict=True)
    return _joined(audio), _joined(video)


def _joined(maskings: Sequence[Masking]) -> Masking:
    return Masking(*(torch.cat(parts) for parts in zip(*maskings, strict=True)))


def _reconstruction(
    model: CAVMAE,
    objective: ObjectiveSettings,
    fbank: Tensor,
    clip: Tensor,
    keys: Sequence[str],
) -> dict[str, Tensor]:
    patches_a, patches_v = model.patchify(fbank, clip.flatten(0, 1))
    masking_a, masking_v = _masks(model, objective, clip.shape[1], keys)
    latents = model.forward_encoder(patches_a, patches_v, masking_a, masking_v, alone=False)
    decoded = model.forward_decoder(latents, masking_a.ids_masked, masking_v.ids_masked)
    heads = model.decoder_pred_a, model.decoder_pred_v
    targets = (
        gather_tokens(patches_a, masking_a.ids_masked),
        channels_last(gather_tokens(patches_v, masking_v.ids_masked)),
    )
    record = {}
    names = ("audio", "video")
    for name, tokens, head, target in zip(names, decoded, heads, targets, strict=True):
        mean = target.mean(dim=-1, keepdim=True).expand_as(target)
        if objective.norm_pix_loss:
            target, mean = normalize_patches(target), torch.zeros_like(target)
        # Rows of video are frames: their mean is that of the clip.
        errors = (head(tokens).float() - target).square(), (mean - target).square()
        own, of_mean = (x.reshape(len(fbank), -1).mean(dim=1) for x in errors)
        record[name], record[f"{name}_patch_mean"] = own.cpu(), of_mean.cpu()
    return record


def _alignment(
    model: CAVMAE, objective: ObjectiveSettings, fbank: Tensor, frames: Tensor, raw: Batch
) -> dict[str, Tensor]:
    time_bins = model.config.audio_grid[1]
    seconds = fbank.shape[1] / FBANK_RATE
    middles = ((torch.arange(time_bins) + 0.5) * seconds / time_bins * VIDEO_RATE).long()
    later = middles + round(SHIFT * VIDEO_RATE)
    both = int((later < frames.shape[1]).sum())  # time bins whose later frame is in the window
    audible = audible_bins(raw["fbank"], raw["fbank_length"], time_bins, objective.quiet_db)
    wanted = torch.cat([middles, later[:both]]).to(frames.device)
    seen = model.frame_embeddings(model.frame_features(frames[:, wanted])).float()
    audio = model.audio_bin_embeddings(model.audio_features(fbank)).float()

    def similar(audio: Tensor, frames: Tensor) -> Tensor:
        with torch.autocast(audio.device.type, enabled=False):
            audio, frames = within_clips(audio, frames, objective.center_embeddings)
            return frames @ audio.transpose(1, 2)

    own = similar(audio, seen[:, :time_bins])
    in_step = similar(audio[:, :both], seen[:, :both])
    shifted = similar(audio[:, :both], seen[:, time_bins:])
    order = torch.arange(time_bins, device=own.device)
    right = own[:, order, order]
    rank = (own > right[..., None]).sum(-1) + 0.5 * ((own == right[..., None]).sum(-1) - 1) + 1
    inside = audible[:, :both]
    return {
        "time_bin_rank": rank.masked_fill(~audible, float("nan")).cpu(),
        "time_bins": torch.full((len(own),), time_bins),
        "step": _score(in_step, inside).cpu(),
        "shifted": _score(shifted, inside).cpu(),
    }


def _score(similar: Tensor, audible: Tensor) -> Tensor:
    """Margin of frames' own time bins over other bins, over audible bins.

    Args:
        similar: [N, K frames, K time bins].
        audible: bool [N, K].

    Returns:
        [N]; NaN where there is hardly any audio.
    """
    gain = similar.diagonal(dim1=1, dim2=2) - similar.mean(dim=2)
    score = (gain * audible).sum(1) / audible.sum(1).clamp(min=1)
    return score.masked_fill(audible.sum(1) < FEWEST, float("nan"))


def aggregate_records(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Metrics of a held-out set.

    Returns:
        ``audio``, ``video``: mean squared errors, beside those ``of patch means``; retrieval in
        both directions, and what chance gives; ``time_bin_acc``: fraction of frames (with audio)
        whose own time bin is the most similar, ``time_bin_chance``; ``shift_auc``.
    """

    def joined(name: str) -> Tensor:
        return torch.cat([record[name] for record in records])

    metrics: dict[str, float] = {}
    names = set().union(*records)
    for name in ("audio", "audio_patch_mean", "video", "video_patch_mean"):
        if name in names:
            metrics[name] = float(joined(name).double().mean())
    if "audio_features" in names:
        keys = [key for record in records for key in record["key"]]
        features = Features(keys, joined("audio_features"), joined("video_features"))
        features = features.normalized(records[0]["center_embeddings"])
        metrics |= _contrast(features)
        for direction, values in retrieval(features).items():
            metrics |= {f"{direction}_{measure}": value for measure, value in values.items()}
    if "time_bin_rank" in names:
        rank = joined("time_bin_rank").flatten()
        rank = rank[~rank.isnan()]
        metrics["audible_time_bins"] = float(len(rank))
        metrics["time_bin_chance"] = 1 / float(records[0]["time_bins"][0])
        step, shifted = joined("step"), joined("shifted")
        known = ~(step.isnan() | shifted.isnan())
        if len(rank):
            metrics["time_bin_acc"] = float((rank < 1.5).double().mean())
        if known.any():
            from torchmetrics.functional.classification import binary_auroc  # takes seconds

            scores = torch.cat([step[known], shifted[known]])
            truth = torch.arange(len(scores)) < known.sum()
            # Ranks of the scores, since the metric takes probabilities.
            places = scores.double().unique(return_inverse=True)[1] / len(scores)
            metrics["shift_auc"] = float(binary_auroc(places, truth.long()))
    return metrics


def _contrast(features: Features) -> dict[str, float]:
    """Contrastive accuracy in both directions, and its chance level.

    It is that within groups of :data:`CONTRAST_GROUP` clips in the order of their keys.
    """
    count = len(features.keys)
    groups = torch.tensor(sorted(range(count), key=features.keys.__getitem__)).split(CONTRAST_GROUP)
    right = 0.0
    for group in groups:
        audio, video = features.audio[group], features.video[group]
        both = torch.cat([ranks(video, audio), ranks(audio, video)])
        right += float((both < 1.5).sum()) / 2
    return {"contrastive_acc": right / count, "contrastive_chance": len(groups) / count}
