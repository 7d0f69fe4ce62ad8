"""What a person sets of a fine-tuning run, beside what the loop of pretraining reads."""

import dataclasses
from typing import Literal

from cavmae.common.errors import UsageError
from cavmae.datasets.mixtures.clip_pool import NOT_SINGLE


@dataclasses.dataclass(frozen=True)
class SpeakerDataSettings:
    """What is trained on.

    Args:
        train: folder or URL of the shards to compose from (clips of single people, made with
            `--profile speakers`).
        held_out: list of scenes that is measured on, made with `cavmae evaluate --make`; None:
            no evaluation.
        held_out_shards: shards that the list was made of.
        batch_size: scenes that one process takes at a time.
        workers: processes that compose, for each process that trains.
        clips: so many clips of the set are used, drawn by the seed; 0: all.
        exclude: clips with one of these labels are left out.
        verify: check shards before the first step by ``hash`` or by ``size``.
        max_broken: share of broken scenes an epoch that is still no error.
    """

    train: str = ""
    held_out: str | None = None
    held_out_shards: str | None = None
    batch_size: int = 16
    workers: int = 2
    clips: int = 0
    exclude: tuple[str, ...] = NOT_SINGLE
    verify: Literal["hash", "size"] = "hash"
    max_broken: float = 0.01

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("workers", 0), ("clips", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"data.{name} {getattr(self, name)}: at least {least}.")
        if (self.held_out is None) != (self.held_out_shards is None):
            raise UsageError("data.held_out and data.held_out_shards go together.")


@dataclasses.dataclass(frozen=True)
class SpeakerModelSettings:
    """The model, and what it starts from.

    Args:
        init_from: a checkpoint of `cavmae finetune speakers`, a folder or a name on the hub, from
            which the whole model goes on; of all that follows only ``train_encoder`` and
            ``layer_decay`` count. None: a new model around the encoder.
        encoder: a checkpoint of pretraining, a folder or a name on the hub; None: from scratch, of
            the size ``encoder_size``.
        encoder_size: ``tiny``, ``small``, ``base`` or ``large``.
        train_encoder: ``frozen``, or ``all``: every block, each by ``layer_decay`` slower than the
            one after it (from scratch all alike).
        layer_decay: see there.
        slots: places for people, and one for the rest.
        width: of slots and voices.
        heads: of their attentions.
        query_layers: of the query generator.
        slot_layers: of the decoder of slots.
        voice_layers: of the decoder of voices.
        mask_width: channels of the map that masks are read from.
        key_frames: key frames of a clip in colour.
        motion_height: of the grey frames in pixels.
        motion_width: of the grey frames in pixels.
        motion_channels: of the motion pathway.
        motion_blocks: of the motion pathway.
        separator: ``unet`` or ``looking-to-listen``.
        separator_width: its channels.
        classes: labels of clips that are hints (a category of people, the topic of a meeting): in a
            share of scenes the model is told which of them the person has whom a cue would mean.
    """

    init_from: str | None = None
    encoder: str | None = None
    encoder_size: Literal["tiny", "small", "base", "large"] = "base"
    train_encoder: Literal["frozen", "all"] = "frozen"
    layer_decay: float = 0.75
    slots: int = 8
    width: int = 256
    heads: int = 8
    query_layers: int = 6
    slot_layers: int = 6
    voice_layers: int = 3
    mask_width: int = 64
    key_frames: int = 8
    motion_height: int = 224
    motion_width: int = 224
    motion_channels: int = 64
    motion_blocks: int = 4
    separator: str = "unet"
    separator_width: int = 32
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.layer_decay <= 1:
            raise UsageError(f"model.layer_decay {self.layer_decay} is not in (0, 1].")
        if self.init_from is not None and self.encoder is not None:
            raise UsageError(
                "model.init_from is a whole model with an encoder of its own: leave "
                "model.encoder out."
            )


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """What is minimised: a weighted sum.

    Args:
        state: of the cross-entropy of speaking, silent, none.
        no_object: of slots that are nobody, relative to people.
        entropy: of the masks' binary cross-entropy.
        dice: of the masks' dice loss.
        center_vote: of how far pixels vote beside their person's middle, as a share of the picture.
        mixer: of the dice loss of the cross-modal mixer.
        activity: of the cross-entropy of who is heard in each 40 ms.
        sdr: of every dB of the voices' SDR (not scale-invariant: they add up to the mixture).
        spectrum: of the difference of compressed complex spectra.
        silence: of every dB of the energy of who is not heard, relative to the mixture.
        points: pixels of a key frame that masks are compared in.
        cue_only_until: share of training in which every scene comes with a cue.
        cue_prob: share of scenes with a cue afterwards.
        hint_prob: share of scenes in which the class is told (``model.classes``).
        teacher_forcing_iou: where the mask of a person's slot has an IoU below this with the true
            one, the true one says where motion is read; 0: never.
    """

    state: float = 0.5
    no_object: float = 0.1
    entropy: float = 2.0
    dice: float = 2.0
    center_vote: float = 5.0
    mixer: float = 0.1
    activity: float = 1.0
    sdr: float = 0.1
    spectrum: float = 1.0
    silence: float = 0.02
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
