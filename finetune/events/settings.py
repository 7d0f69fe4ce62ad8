"""Settings of a fine-tuning run of the event classifier. Imports no PyTorch."""

import dataclasses
from typing import Any, Literal

from cavmae.common.errors import UsageError
from cavmae.datasets.format.weighted_sets import WeightedPaths, WeightedSet, weighted_sets
from cavmae.finetune.events.config import Modalities
from cavmae.finetune.laterals.settings import LateralOptions, NoLateralOptions
from cavmae.finetune.motion.settings import ConvMotionOptions, MotionOptions
from cavmae.pretrain.config import EncoderConfig
from cavmae.pretrain.engine.settings import LoopSettings, OptimizerSettings


@dataclasses.dataclass(frozen=True)
class EventDataSettings:
    """Labelled clips and their augmentation.

    Args:
        train: folder or URL of the shards to learn from; several in a list, such as
            ``[A, {path: B, weight: 2}]``: their clips come in proportion to the weights, which
            are 1 where none is given, and an epoch has as many as all have together. Every clip has
            labels.
        held_out: folder or URL of the shards to measure on; None: no evaluation.
        labels: CSV file of the classes with the columns ``index``, ``mid`` (ids, by which clips may
            name classes) and ``display_name``, as AudioSet's; None: the classes are the labels of
            the training sets, or those of ``model.init_from``.
        batch_size: clips that one process takes at a time.
        workers: processes that load, for each process that trains.
        shuffle_buffer: clips held as bytes to mix them; of several data sets each has its share.
        balanced: draw clips with replacement, those of rare classes more often; of several data
            sets, in each by its own classes.
        padding: of clips that are shorter than the model hears: ``zero`` as the reference, or
            ``silence``; initial weights keep their own. Longer clips are cut.
        mixup_prob: probability that a clip is mixed with another of its batch: waveforms, frames
            and labels by one weight (reference: 0.5).
        mixup_alpha: both parameters of the Beta distribution of that weight.
        label_smoothing: of labels, in training (reference: 0.1).
        freq_mask: largest number of mel bins that SpecAugment masks (reference: 48).
        time_mask: largest number of fbank frames that SpecAugment masks (reference: 192), and at
            most half of them.
        noise: add the reference's noise to the audio.
        roll: roll the audio in time by up to so many fbank frames (reference: 1024).
        crop: smallest share of a frame's height and width that training takes; 1: all of it, as the
            reference.
        flip: mirror every other clip.
        verify: check shards before the first step by ``hash`` or by ``size``.
        max_broken: share of broken clips an epoch, of each data set, that is still no error.
        cache_dir: for copies of remote shards.
        cache_gb: room for them.
    """

    train: WeightedPaths = ""
    held_out: str | None = None
    labels: str | None = None
    batch_size: int = 48
    workers: int = 4
    shuffle_buffer: int = 500
    balanced: bool = False
    padding: Literal["zero", "silence"] = "zero"
    mixup_prob: float = 0.5
    mixup_alpha: float = 10.0
    label_smoothing: float = 0.1
    freq_mask: int = 48
    time_mask: int = 192
    noise: bool = True
    roll: int = 1024
    crop: float = 1.0
    flip: bool = False
    verify: Literal["hash", "size"] = "hash"
    max_broken: float = 0.01
    cache_dir: str | None = None
    cache_gb: float = 50.0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("workers", 0), ("shuffle_buffer", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"data.{name} {getattr(self, name)}: at least {least}.")
        if self.mixup_alpha <= 0:
            raise UsageError(f"data.mixup_alpha {self.mixup_alpha} must be above 0.")
        weighted_sets(self.train, "data.train")

    @property
    def train_sets(self) -> tuple[WeightedSet, ...]:
        """Data sets of ``train``."""
        return weighted_sets(self.train, "data.train")


@dataclasses.dataclass(frozen=True)
class EventEncoderSettings(EncoderConfig):
    """Encoder of a classifier, from scratch, or with the weights of a checkpoint.

    Args:
        image_height: of a frame in pixels, a multiple of ``patch``; 0: as the weights have it, from
            scratch 224.
        image_width: likewise.
        audio_frames: fbank frames heard (10 ms each), a multiple of ``patch``; 0: as the weights
            have it, from scratch 1024.
        frames: of a clip that the model takes at once; 0: as many as the weights, from scratch 1.
    """

    image_height: int = 0
    image_width: int = 0
    audio_frames: int = 0
    frames: int = 0

    def __post_init__(self) -> None:
        # Checked, but not resolved: `encoder.size` alone must change what is left at 0.
        try:
            self.completed()
        except ValueError as error:
            raise UsageError(f"model.encoder: {error}") from error

    def completed(self) -> EncoderConfig:
        """Configuration of an encoder from scratch.

        Raises:
            ValueError: it makes no encoder.
        """
        values: dict[str, Any] = {}
        for field in dataclasses.fields(EncoderConfig):
            own = getattr(self, field.name)
            is_size = field.name in ("image_height", "image_width", "audio_frames", "frames")
            values[field.name] = own or field.default if is_size else own
        return EncoderConfig(**values)


@dataclasses.dataclass(frozen=True)
class EventModelSettings:
    """Model and initial weights.

    Args:
        encoder: its shape. With weights it is theirs, but for the size of frames, the length of
            audio and ``frames``, which may be set: positions are moved to the new grid. Weights
            of ``per-frame`` attention start every other one; those of another one need
            ``temporal`` set to it. A clip with fewer than ``frames`` repeats some.
        encoder_from: weights of the encoder, whose head is new: a folder of `cavmae pretrain`,
            `cavmae finetune` or `cavmae convert`, a published file, or a name in the box or on the
            hub.
        init_from: a whole classifier that is trained further: a folder or a name on the hub. Its
            encoder, classes, pooling, modalities, ``multi_label`` and motion pathway count; other
            values of these options are refused.
        pooling: of the encoder's tokens: their ``mean``, or ``attention`` of a learned query, for
            an attentive probe.
        modalities: that are trained on.
        multi_label: a clip may have several classes (binary cross-entropy of each); else exactly
            one (cross-entropy with soft labels).
        train_encoder: ``all`` of it, or leave it ``frozen``: a linear probe, with ``pooling``
            attention an attentive one.
        learned_positions: train the embeddings of positions, which pretraining keeps fixed
            (``tr_pos`` of the reference).
        head_lr_scale: learning rate of the head, and of a motion pathway with its laterals, over
            that of the encoder.
        motion_height: height of the grey frames of a motion pathway in pixels, a multiple of 4 from
            16 on and not above that of the frames; 0: none. Its 25 frames a second have to be in
            the shards (`cavmae shard --frame-rate 25`).
        motion_width: their width; the shape is that of the frames.
        motion: pathway over the grey frames.
        motion_from: weights of the pathway, of the same options: a folder of `cavmae finetune
            speakers`, whose pathway has learned to read lips, or of `cavmae finetune events`, or a
            name in the box or on the hub.
        train_motion: ``all`` of the pathway, or leave it ``frozen`` as ``motion_from`` or
            ``init_from`` has it, which spares its backward pass; its laterals learn.
        lateral: connections of audio, motion and frames.
    """

    encoder: EventEncoderSettings = EventEncoderSettings()
    encoder_from: str | None = None
    init_from: str | None = None
    pooling: Literal["mean", "attention"] = "mean"
    modalities: Modalities = "multimodal"
    multi_label: bool = True
    train_encoder: Literal["all", "frozen"] = "all"
    learned_positions: bool = False
    head_lr_scale: float = 1.0
    motion_height: int = 0
    motion_width: int = 0
    motion: MotionOptions = ConvMotionOptions()
    motion_from: str | None = None
    train_motion: Literal["all", "frozen"] = "all"
    lateral: LateralOptions = NoLateralOptions()

    def __post_init__(self) -> None:
        if self.head_lr_scale <= 0:
            raise UsageError(f"model.head_lr_scale {self.head_lr_scale} must be above 0.")
        if self.init_from is not None and self.encoder_from is not None:
            raise UsageError("model.init_from has an encoder: leave model.encoder_from out.")
        if self.motion_from is not None and not (self.motion_height and self.init_from is None):
            raise UsageError(
                "model.motion_from is for a motion pathway that is new: set model.motion_height "
                "and model.motion_width, and leave model.init_from out."
            )
        if self.train_motion == "frozen" and self.motion_from is None and self.init_from is None:
            raise UsageError(
                "A motion pathway from scratch has to learn: set model.train_motion to all, or "
                "give a pretrained pathway with --model.motion-from."
            )
        pretrained = self.init_from is not None or self.encoder_from is not None
        if self.train_encoder == "frozen" and not pretrained:
            raise UsageError(
                "An encoder from scratch has to learn: set model.train_encoder to all, or give a "
                "pretrained encoder with --model.encoder-from."
            )
        if self.train_encoder == "frozen" and self.learned_positions:
            raise UsageError("model.learned_positions: the positions of a frozen encoder are, too.")


@dataclasses.dataclass(frozen=True)
class EventLossSettings:
    """Losses beside that of the classes.

    Args:
        sync_weight: of the synchronisation of motion with audio; 0: none. It needs a
            ``model.lateral`` with an audio pathway.
    """

    sync_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.sync_weight < 0:
            raise UsageError(f"loss.sync_weight {self.sync_weight}: at least 0.")


@dataclasses.dataclass(frozen=True)
class EventSettings:
    """A fine-tuning run of the event classifier.

    Args:
        data: shards, batches and augmentation.
        model: its shape and initial weights.
        loss: losses beside that of the classes.
        optimizer: updates of the weights.
        loop: length and conduct of the run.
    """

    data: EventDataSettings = EventDataSettings()
    model: EventModelSettings = EventModelSettings()
    loss: EventLossSettings = EventLossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    loop: LoopSettings = LoopSettings()
