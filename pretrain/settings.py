"""Settings of a pretraining run."""

import dataclasses
from typing import Literal

from cavmae.common.errors import UsageError
from cavmae.datasets.format.weighted_sets import WeightedPaths, WeightedSet, weighted_sets
from cavmae.pretrain.config import CAVMAEConfig, as_base_config
from cavmae.pretrain.engine.settings import LoopSettings, OptimizerSettings

MaskMode = Literal["unstructured", "time", "freq", "tf"]
FrameMasks = Literal["tube", "independent"]


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Data and batches of pretraining.

    Args:
        train: folder or URL of the shards to learn from; several in a list, such as
            ``[A, {path: B, weight: 2}]``: their clips come in proportion to the weights, which
            are 1 where none is given, and an epoch has as many as all have together.
        held_out: folder or URL of the shards to measure on; None: no evaluation.
        batch_size: clips that one process takes at a time.
        window: seconds of a clip that are shown; None: as much as the model hears, from the
            beginning.
        frames: of a clip that are shown. As many as ``model.frames``: evenly spaced, all of them
            masked, reconstructed and contrasted with the clip's audio. More than one beside
            ``model.frames`` 1 serve the frame contrast only: they are drawn from its time bins, and
            the first of them is reconstructed. Clips with fewer frames repeat them.
        workers: processes that load, for each process that trains.
        shuffle_buffer: clips held as bytes to mix them; of several data sets each has its share.
        statistics: by which fbanks are normalised: the ``data`` set's own, which `cavmae check`
            measured (of several those of their mixture), or ``audioset``'s, for published weights.
        padding: of clips that are too short: ``zero`` as the reference, or ``silence``.
        noise: add the reference's noise to the audio.
        roll: roll the audio in time by up to so many fbank frames (reference: 1024).
        crop: smallest share of a frame's height and width that training shows, the same window in
            all frames of a clip; 1: all of it, as the reference.
        flip: mirror every other clip.
        verify: check shards before the first step by ``hash`` or by ``size``.
        max_broken: share of broken clips an epoch, of each data set, that is still no error.
        cache_dir: for copies of remote shards.
        cache_gb: room for them.
    """

    train: WeightedPaths = ""
    held_out: str | None = None
    batch_size: int = 48
    window: float | None = None
    frames: int = 1
    workers: int = 4
    shuffle_buffer: int = 500
    statistics: Literal["data", "audioset"] = "data"
    padding: Literal["zero", "silence"] = "zero"
    noise: bool = True
    roll: int = 0
    crop: float = 1.0
    flip: bool = False
    verify: Literal["hash", "size"] = "hash"
    max_broken: float = 0.01
    cache_dir: str | None = None
    cache_gb: float = 50.0

    def __post_init__(self) -> None:
        for name, least in (
            ("batch_size", 1),
            ("frames", 1),
            ("workers", 0),
            ("shuffle_buffer", 1),
        ):
            if getattr(self, name) < least:
                raise UsageError(f"data.{name} {getattr(self, name)}: at least {least}.")
        weighted_sets(self.train, "data.train")

    @property
    def train_sets(self) -> tuple[WeightedSet, ...]:
        """Data sets of ``train``."""
        return weighted_sets(self.train, "data.train")


@dataclasses.dataclass(frozen=True)
class ModelSettings(CAVMAEConfig):
    """Model and initial weights of pretraining.

    Args:
        contrast_width: of the embeddings of the frame contrast; only with
            ``objective.aligned_weight``.
        weights: start from these: a folder of ours, a published file, a name on the hub. Positions
            are moved to this model's grid and frames. Those of ``per-frame`` attention start every
            other ``temporal`` attention, those of another one only the same.
        partial: take of the weights what fits, and list what was left.
        mae: start from an ImageNet MAE: a file of timm's vit_base_patch16_224.mae, or ``timm`` to
            fetch it.
    """

    contrast_width: int = 128
    weights: str | None = None
    partial: bool = False
    mae: str | None = None

    def __post_init__(self) -> None:
        # Checked, but not resolved: `model.size` alone must change what other options leave at 0.
        try:
            as_base_config(self, CAVMAEConfig)
        except ValueError as error:
            raise UsageError(f"model: {error}") from error


@dataclasses.dataclass(frozen=True)
class ObjectiveSettings:
    """Objective of pretraining: a weighted sum of losses.

    Args:
        mae_weight: of the reconstruction; 0 leaves it out (CAV).
        contrastive_weight: of the contrast of whole clips; 0 leaves it out (AV-MAE).
        aligned_weight: of the contrast of frames and time bins; 0 leaves it out.
        contrast_view: clips are contrasted by what was left ``masked`` for the reconstruction, as
            published, or by ``whole`` audio and frames, which passes of their own see; the aligned
            contrast needs those anyway.
        center_embeddings: subtract the mean of the batch before the contrast (aligned: of the clip,
            among its own time bins). Started from scratch, contrasts of nearly equal embeddings
            otherwise make them all equal first, and stay there.
        norm_pix_loss: reconstruct patches normalised one by one.
        mask_ratio_audio: share of the audio's patches that is masked.
        mask_ratio_image: share of the frame's patches that is masked.
        mask_mode: of the audio.
        frame_masks: of several frames: ``tube``, the same patches in all frames of a clip, or
            ``independent``, drawn for each frame (not with ``divided`` attention, which attends to
            the same patch in other frames).
        decode_fraction: share of the masked patches that is decoded (decoder ``cross``).
        both_directions: also find the frame of every audio.
        temperature: of the contrasts.
        learned_temperature: learn one for each contrast, starting there.
        hard_negative_fraction: share of negatives of the same clip in the frame contrast, once
            they count.
        hard_after: share of training after which they count.
        frame_window: share of height and width of the frames that is looked at in training where
            nothing is masked (frame contrast): a window of patches put at random, the same in all
            frames of a clip. 0.5 is a quarter of the work. Evaluation sees whole frames.
        quiet_db: time bins so far below the loudest of their window are near-silent.
    """

    mae_weight: float = 1.0
    contrastive_weight: float = 0.01
    aligned_weight: float = 0.0
    contrast_view: Literal["masked", "whole"] = "masked"
    center_embeddings: bool = False
    norm_pix_loss: bool = True
    mask_ratio_audio: float = 0.75
    mask_ratio_image: float = 0.75
    mask_mode: MaskMode = "unstructured"
    frame_masks: FrameMasks = "tube"
    decode_fraction: float = 1.0
    both_directions: bool = False
    temperature: float = 0.05
    learned_temperature: bool = False
    hard_negative_fraction: float = 0.25
    hard_after: float = 0.5
    frame_window: float = 1.0
    quiet_db: float = 30.0

    def __post_init__(self) -> None:
        weights = self.mae_weight, self.contrastive_weight, self.aligned_weight
        if min(weights) < 0 or not any(weights):
            raise UsageError("objective: weights cannot be negative, and one must be above 0.")
        for name in ("mask_ratio_audio", "mask_ratio_image"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"objective.{name} {getattr(self, name)} is not in [0, 1).")
        for name in ("hard_negative_fraction", "hard_after"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"objective.{name} {getattr(self, name)} is not in [0, 1].")
        for name in ("decode_fraction", "frame_window"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"objective.{name} {getattr(self, name)} is not in (0, 1].")
        if self.temperature < 0.01 or self.quiet_db <= 0:
            raise UsageError(
                "objective.temperature must be at least 0.01, objective.quiet_db above 0."
            )
        if self.mae_weight and not (self.mask_ratio_audio and self.mask_ratio_image):
            raise UsageError("objective.mask_ratio: nothing masked leaves nothing to reconstruct.")

    @property
    def needs_unmasked(self) -> bool:
        """Whether the objective needs passes over unmasked audio and frames."""
        whole = self.contrastive_weight > 0 and self.contrast_view == "whole"
        return whole or self.aligned_weight > 0


@dataclasses.dataclass(frozen=True)
class PretrainSettings:
    """A pretraining run.

    Args:
        data: shards and batches.
        model: its shape and initial weights.
        objective: losses and masks.
        optimizer: updates of the weights.
        loop: length and conduct of the run.
    """

    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    loop: LoopSettings = LoopSettings()
