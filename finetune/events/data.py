"""Streams and preprocessing of labelled clips."""

import dataclasses
import statistics
from collections import Counter
from typing import Any, NamedTuple

from cavmae.common.errors import UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.format.sample import SampleInfo
from cavmae.datasets.format.weighted_sets import check_mixable, load_manifests
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.datasets.stream.shard_reader import Access, ShardOpener
from cavmae.datasets.stream.shuffle import class_balanced_weights
from cavmae.datasets.stream.stream import EvalStream, TrainStream
from cavmae.datasets.stream.transforms import Augmentation, DeviceTransform, Statistics
from cavmae.datasets.stream.view import View
from cavmae.datasets.stream.weighted_stream import training_stream
from cavmae.finetune.events.config import EventConfig, Mode
from cavmae.finetune.events.factory import Padding
from cavmae.finetune.events.labels import ClassList, check_labels, warn_of_rare_classes
from cavmae.finetune.events.model import uses_audio, uses_video
from cavmae.finetune.events.settings import EventDataSettings
from cavmae.pretrain.engine.run import RunContext

CHECKED = 32  # clips whose frame rate is looked at
LEAST_RATE = 10  # frames a second of a clip, below which its grey frames show no motion


class DataSets(NamedTuple):
    """Manifests of a run.

    Attributes:
        train: clips to learn from, of one or several data sets.
        weights: of these.
        held_out: clips to measure on; None: none.
        access: to their shards.
    """

    train: list[Manifest]
    weights: list[float]
    held_out: Manifest | None
    access: Access


def open_data_sets(data: EventDataSettings, context: RunContext) -> DataSets:
    """Manifests of the shards of a run.

    Raises:
        UsageError: no shards to learn from are named.
        ShardError: a manifest is missing or damaged.
    """
    sets = data.train_sets
    if not sets:
        raise UsageError("Name the shards to learn from: --data.train FOLDER.")
    access = Access(data.verify, data.cache_dir, data.cache_gb, data.max_broken, context.quarantine)
    held_out = None if data.held_out is None else Manifest.load(data.held_out)
    return DataSets(load_manifests(sets), [own.weight for own in sets], held_out, access)


def event_view(
    config: EventConfig,
    mode: Mode,
    padding: Padding,
    training: bool = False,
    frames: int | None = None,
) -> View:
    """View of the modalities that a mode takes, in the model's sizes.

    A clip that is longer than the model hears is cut, a shorter one padded. Several frames are
    evenly spaced over the clip, in order of time, those of a clip with fewer repeated; one is the
    middle frame (the reference's frame 5 of 10). With a motion pathway they are spread over the
    length of the model's audio, as the grey frames are.

    Args:
        config: of the model.
        mode: of the model.
        padding: of short clips.
        training: a model of one frame gets a random one instead.
        frames: of a clip; None: as many as the model takes at once.
    """
    count = frames or config.encoder.frames
    wanted: Any = "none"
    if uses_video(mode):
        wanted = "random" if training and count == 1 else count
    return View(
        fbank=uses_audio(mode),
        fbank_frames=config.encoder.audio_frames,
        padding=padding,
        frames=wanted,
        motion_size=config.motion_size if uses_video(mode) else None,
        frame_size=config.encoder.image_size,
    )


def build_event_loaders(
    data: EventDataSettings,
    sets: DataSets,
    classes: ClassList,
    config: EventConfig,
    padding: Padding,
    seed: int,
    context: RunContext,
) -> tuple[Loader, Loader | None]:
    """Loaders of this process's share: endless training batches, finite validation batches.

    Raises:
        CavmaeError: a clip lacks a label that is a class, or a data set cannot be used.
    """
    mode = config.modalities
    for manifest in (*sets.train, sets.held_out):
        if manifest is not None:
            check_frame_rate(manifest, config, sets.access)
    counts: Counter[str] = Counter()
    for manifest in sets.train:
        counts += check_labels(manifest, classes, sets.access, config.multi_label)
    if context.processes.is_main:
        folders = ", ".join(manifest.folder for manifest in sets.train)
        warn_of_rare_classes(counts, classes, folders)
    where: dict[str, Any] = {
        "rank": context.processes.rank,
        "world_size": context.processes.count,
        "access": sets.access,
        "labels": classes.names,
        "label_ids": classes.ids,
    }
    view = event_view(config, mode, padding, training=True)
    if data.mixup_prob and view.fbank:
        view = dataclasses.replace(view, waveform=True)
    check_mixable(sets.train, waveforms=view.waveform, motion=view.motion_size is not None)

    def build(manifest: Manifest, own_seed: int, share: float) -> TrainStream:
        weights = None
        if data.balanced:
            weights = class_balanced_weights([manifest.sample_labels(s) for s in manifest.shards])
        buffer = max(1, round(share * data.shuffle_buffer))
        return TrainStream(
            manifest, view, data.batch_size, own_seed, shuffle_buffer=buffer, weights=weights,
            **where,
        )  # fmt: skip

    stream = training_stream(sets.train, sets.weights, seed, build)
    loader = Loader(stream, data.workers, pin_memory=context.on_gpu)
    if sets.held_out is None:
        return loader, None
    check_labels(sets.held_out, classes, sets.access, config.multi_label)
    held_out = EvalStream(
        sets.held_out, event_view(config, mode, padding), data.batch_size, seed, **where
    )
    return loader, Loader(held_out, data.workers, pin_memory=context.on_gpu)


def check_frame_rate(manifest: Manifest, config: EventConfig, access: Access) -> None:
    """Checks that the first clips have the frames for a motion pathway, if there is one.

    Raises:
        UsageError: most have too few.
        CavmaeError: the first shard cannot be read.
    """
    if config.motion_size is None or not manifest.shards:
        return
    opener = ShardOpener(manifest, access)
    try:
        shard = opener.get(0)
        entries = shard.entries[:CHECKED]
        infos = [SampleInfo.from_bytes(shard.read(entry, "json")) for entry in entries]
    finally:
        opener.close()
    rate = statistics.median(len(info.frame_times) / info.duration for info in infos)
    if rate < LEAST_RATE:
        raise UsageError(
            f"The clips of {manifest.folder} have {rate:.2g} frames a second, of which a motion "
            f"pathway reads {VIDEO_RATE}: shard them with --frame-rate {VIDEO_RATE}, or leave the "
            "pathway out (model.motion_height and model.motion_width 0)."
        )


def event_transform(
    data: EventDataSettings, statistics: Statistics, padding: Padding
) -> DeviceTransform:
    """Normalisation and the augmentation of fine-tuning.

    Raises:
        UsageError: an augmentation out of range.
    """
    augmentation = Augmentation(
        freq_mask=data.freq_mask,
        time_mask=data.time_mask,
        noise=data.noise,
        roll=data.roll,
        mixup=data.mixup_prob,
        mixup_alpha=data.mixup_alpha,
        label_smoothing=data.label_smoothing,
        crop=data.crop,
        flip=data.flip,
    )
    return DeviceTransform(statistics, augmentation, padding)
