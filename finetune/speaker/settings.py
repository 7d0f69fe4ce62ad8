"""Settings of a fine-tuning run of the speaker model."""

import dataclasses
from typing import Literal

from cavmae.common.errors import UsageError
from cavmae.datasets.format.weighted_sets import WeightedPaths, WeightedSet, weighted_sets
from cavmae.datasets.mixtures.scene_spec import NOT_SINGLE, ComposeSettings
from cavmae.finetune.laterals.settings import NoLateralOptions
from cavmae.finetune.separation.config import SoundSeparatorConfig
from cavmae.finetune.speaker.config import SpeakerConfig
from cavmae.pretrain.config import EncoderConfig, as_base_config
from cavmae.pretrain.engine.settings import LoopSettings, OptimizerSettings


@dataclasses.dataclass(frozen=True)
class SpeakerDataSettings:
    """Training and evaluation data.

    Args:
        train: folder or URL of the shards with clips of single people (`--profile speakers`), from
            which scenes are composed; several in a list, such as ``[A, {path: B, weight: 2}]``:
            their scenes come in proportion to the weights, which are 1 where none is given, and an
            epoch has as many as all have together. A scene is composed from one data set.
        held_out: list of scenes for evaluation, from `cavmae make-scenes`; None: no evaluation.
        held_out_shards: folder or URL of the shards of that list.
        batch_size: scenes in a batch, for each process that trains.
        workers: processes that compose scenes, for each process that trains.
        clips: number of clips to use of each data set, a random subset by the seed; 0: all.
        exclude: labels of clips that are not used; backgrounds may have those of sound.
        verify: check of the shards before the first step: by ``hash`` or by ``size``.
        max_broken: largest fraction of broken scenes in an epoch, of each data set, before the run
            fails.
        cache_dir: for copies of remote shards.
        cache_gb: room for them.
    """

    train: WeightedPaths = ""
    held_out: str | None = None
    held_out_shards: str | None = None
    batch_size: int = 16
    workers: int = 2
    clips: int = 0
    exclude: tuple[str, ...] = NOT_SINGLE
    verify: Literal["hash", "size"] = "hash"
    max_broken: float = 0.01
    cache_dir: str | None = None
    cache_gb: float = 50.0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("workers", 0), ("clips", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"data.{name} {getattr(self, name)}: at least {least}.")
        if (self.held_out is None) != (self.held_out_shards is None):
            raise UsageError(
                "data.held_out and data.held_out_shards go together: give both or none."
            )
        weighted_sets(self.train, "data.train")

    @property
    def train_sets(self) -> tuple[WeightedSet, ...]:
        """Data sets of ``train``."""
        return weighted_sets(self.train, "data.train")


@dataclasses.dataclass(frozen=True)
class EncoderSettings(EncoderConfig):
    """Encoder of a speaker model, from scratch, or with the weights of a checkpoint."""

    def __post_init__(self) -> None:
        # Checked, but not resolved: `encoder.size` alone must change what is left at 0.
        try:
            as_base_config(self, EncoderConfig)
        except ValueError as error:
            raise UsageError(f"model.encoder: {error}") from error


@dataclasses.dataclass(frozen=True)
class SpeakerSoundSettings(SoundSeparatorConfig):
    """Sound separator of a speaker model, from scratch, or with the weights of a checkpoint."""

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            raise UsageError(f"model.sound: {error}") from error


@dataclasses.dataclass(frozen=True)
class SpeakerModelSettings(SpeakerConfig):
    """Model and its initial weights.

    Args:
        encoder: configuration of the encoder. The size of frames and the length of clips are those
            of the scenes (``compose``), the others those of ``encoder_from``, if that is given.
        init_from: checkpoint of `cavmae finetune speakers`, a folder or a name in the box (`cavmae
            models`) or on the hub, whose
            model is trained further: its configuration counts. None: a new model.
        add_classes: classes that are appended to those of ``init_from``, which has learned without
            them; each starts as no class.
        freeze: ``trunk``: only the embeddings of ``add_classes`` learn, and results for other
            classes and without a hint stay the same; ``voices``: no voice is decoded in training,
            so that masks, states and articulation cues learn in less time (with
            ``loss.articulation_weight`` 0 only masks and states, in half of that); ``masks``: nor
            is a mask predicted, and only what reads articulation cues learns, under people's true
            masks, in a fraction of the time; ``none``: all weights learn.
        sound: configuration of the sound separator; with ``sound_from`` that of its weights.
        encoder_from: model whose encoder is taken: a folder of `cavmae pretrain` or `cavmae
            finetune`, a published file, or a name in the box or on the hub; None: an encoder from
            scratch.
        sound_from: checkpoint of `cavmae finetune separator`, or of `cavmae finetune speakers`,
            whose separator is taken: a folder, or a name in the box or on the hub; None: a sound
            separator from scratch, or that of ``init_from``, which it replaces if both are given.
        lips_from: checkpoint of `cavmae finetune speakers` with ``head_size`` (after ``freeze
            masks``, for instance), a folder or a name on the hub, whose reader of articulation cues
            is taken, with its configuration; None: one from scratch, or that of ``init_from``,
            which it replaces if both are given.
        train_encoder: ``frozen``, or ``all``: every block, with layer-wise learning rate decay.
        layer_decay: factor of the learning rate from each encoder block to the one before it; not
            from scratch.
        sound_lr_scale: factor of the learning rate of the sound separator; 0: it is frozen.
    """

    encoder: EncoderSettings = EncoderSettings()
    sound: SpeakerSoundSettings = SpeakerSoundSettings()
    init_from: str | None = None
    add_classes: tuple[str, ...] = ()
    freeze: Literal["none", "trunk", "voices", "masks"] = "none"
    encoder_from: str | None = None
    sound_from: str | None = None
    lips_from: str | None = None
    train_encoder: Literal["frozen", "all"] = "frozen"
    layer_decay: float = 0.75
    sound_lr_scale: float = 1.0

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            raise UsageError(f"model: {error}") from error
        if not 0 < self.layer_decay <= 1:
            raise UsageError(f"model.layer_decay {self.layer_decay} is not in (0, 1].")
        if not 0 <= self.sound_lr_scale <= 1:
            raise UsageError(f"model.sound_lr_scale {self.sound_lr_scale} is not from 0 to 1.")
        if self.init_from is not None and self.encoder_from is not None:
            raise UsageError(
                "model.init_from is a whole model with an encoder of its own: leave "
                "model.encoder_from out."
            )
        if (
            self.freeze == "masks"
            and self.head_size == 0
            and not isinstance(self.lateral, NoLateralOptions)
        ):
            raise UsageError(
                f"model.freeze masks: lateral {self.lateral.name} joins audio to the motion that "
                "cues are read from; set model.head_size, or model.lateral to none."
            )
        self._check_added_classes()

    def _check_added_classes(self) -> None:
        if self.freeze == "trunk" and not self.add_classes:
            raise UsageError(
                "model.freeze trunk leaves nothing to learn: name new classes in model.add_classes."
            )
        if self.freeze == "trunk" and self.train_encoder != "frozen":
            raise UsageError(
                "model.freeze trunk freezes the encoder, too: set model.train_encoder to frozen."
            )
        if self.classes and self.init_from is not None:
            raise UsageError(
                "model.init_from has classes of its own: leave model.classes out, and name "
                "new ones in model.add_classes."
            )
        if self.add_classes and self.init_from is None:
            raise UsageError(
                "model.add_classes are added to a trained model: name it in model.init_from, or "
                "name the classes of a new one in model.classes."
            )
        if "" in self.add_classes or len(set(self.add_classes)) < len(self.add_classes):
            raise UsageError(
                f"model.add_classes {list(self.add_classes)}: each needs a name of its own."
            )


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """Weights of the losses, whose sum is minimised, and the curriculum.

    Args:
        state_weight: of the cross-entropy of states (speaking, silent, none).
        no_object_weight: of slots without a person in that, relative to people.
        entropy_weight: of the masks' binary cross-entropy.
        dice_weight: of the masks' dice loss.
        center_vote_weight: of the distance of votes from a person's center, as a fraction of the
            frame.
        mixer_weight: of the dice loss of the cross-modal mixer.
        activity_weight: of the cross-entropy of activity in each 40 ms.
        articulation_weight: of the difference of articulation cues from those of clean voices.
        sdr_weight: of a dB of the voices' SDR (not scale-invariant: their sum is the mixture).
        spectrum_weight: of the L1 difference of compressed complex spectra.
        silence_weight: of a dB of energy, relative to the mixture, in slots that are to be silent.
        sync_weight: of the synchronisation of people's motion with their clean voices; 0: none. It
            needs a ``model.lateral`` with an audio pathway.
        points: sampled pixels of a key frame for the losses of masks.
        cue_only_until: fraction of training in which every scene has a cue.
        cue_prob: probability of a cue afterwards.
        hint_prob: probability of a hint (``model.classes``).
        teacher_forcing_iou: IoU of a person's mask below which motion is read under the true mask
            in training; 0: never.
    """

    state_weight: float = 0.5
    no_object_weight: float = 0.1
    entropy_weight: float = 2.0
    dice_weight: float = 2.0
    center_vote_weight: float = 5.0
    mixer_weight: float = 0.1
    activity_weight: float = 1.0
    articulation_weight: float = 3.0
    sdr_weight: float = 0.1
    spectrum_weight: float = 1.0
    silence_weight: float = 0.02
    sync_weight: float = 0.0
    points: int = 512
    cue_only_until: float = 0.2
    cue_prob: float = 0.5
    hint_prob: float = 0.5
    teacher_forcing_iou: float = 0.6

    def __post_init__(self) -> None:
        if min(dataclasses.astuple(self)) < 0 or self.points < 1:
            raise UsageError("loss: weights cannot be negative, and points must be at least 1.")
        for name in ("cue_only_until", "cue_prob", "hint_prob", "teacher_forcing_iou"):
            if getattr(self, name) > 1:
                raise UsageError(f"loss.{name} {getattr(self, name)} is not from 0 to 1.")


@dataclasses.dataclass(frozen=True)
class SpeakerSettings:
    """A fine-tuning run.

    Args:
        data: shards that scenes are composed from.
        compose: distribution of scenes.
        model: its shape and initial weights.
        loss: weights of the losses.
        optimizer: updates of the weights.
        loop: length and conduct of the run.
    """

    data: SpeakerDataSettings = SpeakerDataSettings()
    compose: ComposeSettings = ComposeSettings()
    model: SpeakerModelSettings = SpeakerModelSettings()
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    loop: LoopSettings = LoopSettings()

    def __post_init__(self) -> None:
        if self.loss.sync_weight and self.model.freeze in ("trunk", "masks"):
            raise UsageError(
                f"model.freeze {self.model.freeze} freezes the pathways: set loss.sync_weight to "
                "0, which trains them."
            )
