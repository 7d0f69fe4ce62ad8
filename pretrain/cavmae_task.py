"""Pretraining task: reconstruction, contrast of clips, contrast of frames with time bins."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.features import FBANK_RATE
from cavmae.datasets.stream.transforms import DeviceTransform, Statistics
from cavmae.pretrain import evaluation
from cavmae.pretrain.blocks import Modality
from cavmae.pretrain.config import CAVMAEConfig
from cavmae.pretrain.engine.task import Embeddings, Record, StepOutput, Task
from cavmae.pretrain.frame_contrast import (
    TimeBins,
    audible_bins,
    frame_contrast,
    hard_negative_fraction,
    time_bins_of,
)
from cavmae.pretrain.losses import info_nce
from cavmae.pretrain.masking import random_windows
from cavmae.pretrain.model import CAVMAE, CAVMAEOutput
from cavmae.pretrain.settings import ObjectiveSettings

LARGEST_SCALE = 100.0  # of similarities, where their temperature is learned (as CLIP)


class CAVMAETask(Task):
    """CAV-MAE, CAV or AV-MAE, each with or without the frame contrast.

    Args:
        model: what is trained.
        objective: what it is to learn.
        transform: normalises batches.
        frames: of a clip in a training batch.
    """

    model: CAVMAE

    def __init__(
        self,
        model: CAVMAE,
        objective: ObjectiveSettings,
        transform: DeviceTransform,
        frames: int = 1,
    ):
        super().__init__()
        self.model = model
        self.objective = objective
        self.transform = transform
        self.frames = frames
        self.needs_global_batch = bool(objective.contrastive_weight or objective.aligned_weight)
        self.needs_unmasked = objective.needs_unmasked
        # One axis: FSDP shards no scalars.
        scale = torch.tensor([math.log(1 / objective.temperature)])
        learned = objective.learned_temperature
        self.scale_clips = nn.Parameter(
            scale.clone(), requires_grad=learned and objective.contrastive_weight > 0
        )
        self.scale_bins = nn.Parameter(
            scale.clone(), requires_grad=learned and objective.aligned_weight > 0
        )
        passes: list[Modality] = [None] if objective.mae_weight else []
        passes += ["a", "v"] if self.needs_global_batch else []
        for parameter in model.parameters_without_gradient(
            passes, frames if self.needs_unmasked else model.config.frames
        ):
            parameter.requires_grad_(False)  # DDP waits for gradients that never come

    @staticmethod
    def _temperature(scale: nn.Parameter, count: int) -> Tensor:
        """Temperature of a contrast that each of a step's ``count`` batches computes in full."""
        with torch.no_grad():
            scale.clamp_(max=math.log(LARGEST_SCALE))
        share = scale / count
        return 1 / (share + (scale - share).detach()).exp()

    def training_step(
        self, batch: Batch, progress: float, embeddings: Sequence[Embeddings], micro_index: int
    ) -> StepOutput:
        """See :meth:`Task.training_step`. Logs: every loss before weighting, and accuracies."""
        objective = self.objective
        own, output = self._forward(batch, reconstruct=objective.mae_weight > 0)
        count = max(1, len(embeddings))
        loss = total = torch.zeros((), device=self.scale_clips.device)
        logs: dict[str, Tensor] = {}
        if output.audio_loss is not None and output.video_loss is not None:
            total = objective.mae_weight * (output.audio_loss + output.video_loss)
            loss = total / count
            logs |= {"audio": output.audio_loss, "video": output.video_loss}
        whole = own
        if embeddings:
            whole = {
                name: torch.cat(
                    [
                        own[name] if i == micro_index else other[name]
                        for i, other in enumerate(embeddings)
                    ]
                )
                for name in own
            }
        if objective.contrastive_weight:
            contrast = info_nce(
                whole["audio"],
                whole["video"],
                self._temperature(self.scale_clips, count),
                objective.both_directions,
                objective.center_embeddings,
            )
            loss = loss + objective.contrastive_weight * contrast.loss
            total = total + objective.contrastive_weight * contrast.loss.detach()
            logs |= {"contrastive": contrast.loss, "accuracy": contrast.accuracy}
        if objective.aligned_weight:
            aligned = frame_contrast(
                TimeBins(whole["audio_bins"], whole["frames"], whole["own_bin"], whole["audible"]),
                self._temperature(self.scale_bins, count),
                objective.center_embeddings,
            )
            hard = hard_negative_fraction(
                progress, objective.hard_negative_fraction, objective.hard_after
            )
            mixed = (1 - hard) * aligned.easy + hard * aligned.hard
            loss = loss + objective.aligned_weight * mixed
            total = total + objective.aligned_weight * mixed.detach()
            logs |= {
                "aligned_easy": aligned.easy,
                "aligned_hard": aligned.hard,
                "aligned_easy_accuracy": aligned.easy_accuracy,
                "aligned_hard_accuracy": aligned.hard_accuracy,
            }
        logs = {"loss": total, **logs}
        return StepOutput(loss, {name: value.detach() for name, value in logs.items()})

    def embed(self, batch: Batch) -> Embeddings:
        """See :meth:`Task.embed`."""
        return self._forward(batch, reconstruct=False)[0]

    def _forward(self, batch: Batch, reconstruct: bool) -> tuple[Embeddings, CAVMAEOutput]:
        """Embeddings for the contrasts, and the output of the masked pass."""
        objective, model = self.objective, self.model
        normalized = self.transform(batch)
        fbank, frames = (
            normalized["fbank"],
            normalized["frames"],
        )  # [N, frames, mel], [N, F, 3, H, W]
        # With frames of the frame contrast alone, model.frames is 1: the first is masked.
        clip = frames[:, : model.config.frames]
        masking = model.mask(
            len(fbank),
            objective.mask_ratio_audio,
            objective.mask_ratio_image,
            objective.mask_mode,
            frames=clip.shape[1],
            frame_masks=objective.frame_masks,
        )
        visible = None
        if self.needs_unmasked and objective.frame_window < 1:
            grid, share = model.config.image_grid, objective.frame_window
            visible = random_windows(len(frames), grid, share, frames.device)
        contrast = objective.contrastive_weight > 0 and objective.contrast_view == "masked"
        output = CAVMAEOutput(None, None, None, None)
        if reconstruct or contrast:
            output = model(
                fbank, clip.flatten(0, 1), *masking, reconstruct, contrast,
                objective.norm_pix_loss, objective.decode_fraction,
            )  # fmt: skip
        embeddings: Embeddings = {}
        if output.audio is not None and output.video is not None:
            embeddings |= {"audio": output.audio, "video": output.video}
        if self.needs_unmasked:
            # Unmasked: the mouth is visible, and every time bin has its audio.
            tokens_a, tokens_v = model.audio_features(fbank), model.frame_features(frames, visible)
        if self.needs_unmasked and not contrast and objective.contrastive_weight:
            embeddings |= {"audio": tokens_a.mean(1), "video": tokens_v.mean((1, 2))}
        if objective.aligned_weight:
            time_bins = model.config.audio_grid[1]
            seconds = fbank.shape[1] / FBANK_RATE
            own_bin = time_bins_of(batch["frame_times"], seconds, time_bins)
            audible = audible_bins(
                batch["fbank"], batch["fbank_length"], time_bins, objective.quiet_db
            )
            embeddings |= {
                "audio_bins": model.audio_bin_embeddings(tokens_a),
                "frames": model.frame_embeddings(tokens_v),
                "own_bin": own_bin,
                "audible": audible.gather(1, own_bin),
            }
        return embeddings, output

    @torch.no_grad()
    def validation_step(self, batch: Batch) -> Record:
        """See :meth:`Task.validation_step`."""
        return evaluation.validation_record(
            self.model, self.objective, self.transform(batch), batch
        )

    def aggregate(self, records: Sequence[Record]) -> Mapping[str, float]:
        """See :func:`cavmae.pretrain.evaluation.aggregate_records`."""
        return evaluation.aggregate_records(records)

    def preprocessing(self) -> dict[str, Any]:
        """See :meth:`Task.preprocessing`."""
        statistics = self.transform.statistics
        return {
            "fbank_mean": statistics.mean,
            "fbank_std": statistics.std,
            "padding": self.transform.padding,
            "center_embeddings": self.objective.center_embeddings,
        }

    def flops_per_sample(self) -> float:
        """See :func:`training_flops`."""
        return training_flops(self.model.config, self.objective, self.frames)


def training_flops(config: CAVMAEConfig, objective: ObjectiveSettings, frames: int = 1) -> float:
    """FLOPs of a forward and a backward pass for one clip, without the contrasts among clips.

    PyTorch counts linear maps and attention of a forward pass on the meta device, which holds no
    weights; the backward pass counts twice the forward pass.

    Args:
        config: of the model.
        objective: of the training.
        frames: of a clip.
    """
    with torch.device("meta"):
        task = CAVMAETask(CAVMAE(config), objective, DeviceTransform(Statistics()), frames)
        clip = {
            "fbank": torch.zeros(1, config.audio_frames, config.mel_bins),
            "fbank_length": torch.zeros(1, dtype=torch.int64),
            "frames": torch.zeros(1, frames, *config.image_size, 3, dtype=torch.uint8),
            "frame_times": torch.zeros(1, frames),
        }
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        task._forward(clip, reconstruct=objective.mae_weight > 0)
    return float(3 * counter.get_total_flops())
