"""Streams and preprocessing of a pretraining run."""

from typing import Any

from cavmae.common.errors import UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.format.weighted_sets import check_mixable, load_manifests
from cavmae.datasets.stream.features import FBANK_RATE
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.datasets.stream.shard_reader import Access
from cavmae.datasets.stream.stream import EvalStream, TrainStream
from cavmae.datasets.stream.transforms import Augmentation, DeviceTransform, Statistics
from cavmae.datasets.stream.view import View
from cavmae.datasets.stream.weighted_stream import training_stream
from cavmae.pretrain.config import CAVMAEConfig
from cavmae.pretrain.engine.run import RunContext
from cavmae.pretrain.settings import DataSettings, ObjectiveSettings


def views_for(
    data: DataSettings, objective: ObjectiveSettings, config: CAVMAEConfig
) -> tuple[View, View]:
    """Views of a clip in training and in validation.

    Raises:
        UsageError: settings that do not go together.
    """
    if data.window is not None and round(data.window * FBANK_RATE) != config.audio_size[1]:
        raise UsageError(
            f"data.window {data.window} s has {round(data.window * FBANK_RATE)} fbank frames, the "
            f"model hears {config.audio_size[1]}: set model.audio_frames."
        )
    aligned = objective.aligned_weight > 0
    fit = data.window is not None and data.frames > 1 and not data.roll and config.contrast_width
    if aligned and not fit:
        raise UsageError(
            "The frame contrast (objective.aligned_weight) needs data.window, at least 2 "
            "data.frames, model.contrast_width, and no data.roll, which breaks what it looks for."
        )
    if aligned and config.frames > 1:
        raise UsageError(
            "objective.aligned_weight matches frames in random order by what they show, and "
            f"model.frames {config.frames} would number them: leave one of both out."
        )
    if not aligned and data.frames != config.frames:
        raise UsageError(
            f"data.frames {data.frames}, model.frames {config.frames}: without "
            "objective.aligned_weight they must be equal."
        )
    if data.window is not None and data.frames > round(data.window * VIDEO_RATE):
        raise UsageError(
            f"data.frames {data.frames}: a window of {data.window} s has "
            f"{round(data.window * VIDEO_RATE)}; make data.window longer."
        )
    common: dict[str, Any] = {
        "fbank_frames": config.audio_size[1],
        "padding": data.padding,
        "window": data.window,
        "frame_size": config.image_size,
    }
    time_bins = config.audio_grid[1] if aligned else None
    single = data.frames == 1
    training = View(frames="random" if single else data.frames, time_bins=time_bins, **common)
    in_validation: Any = "all" if aligned else "middle" if single else data.frames
    held_out = View(frames=in_validation, random_window=False, **common)
    return training, held_out


def build_loaders(
    data: DataSettings,
    training: View,
    held_out: View,
    seed: int,
    context: RunContext,
) -> tuple[Loader, Loader | None]:
    """Loaders of this process's share: endless training batches, finite validation batches.

    Args:
        data: of the run.
        training, held_out: parts of a clip that training and validation see.
        seed: of the order.
        context: of the run.

    Raises:
        CavmaeError: a data set is missing, altered, or too small for so many readers.
    """
    sets = data.train_sets
    if not sets:
        raise UsageError("Name the shards to learn from: --data.train FOLDER.")
    access = Access(data.verify, data.cache_dir, data.cache_gb, data.max_broken, context.quarantine)
    where: dict[str, Any] = {
        "rank": context.processes.rank,
        "world_size": context.processes.count,
        "access": access,
    }
    manifests = load_manifests(sets)
    moving = data.window is not None and data.frames > 1
    check_mixable(manifests, waveforms=training.waveform, motion=moving)

    def build(manifest: Manifest, own_seed: int, share: float) -> TrainStream:
        buffer = max(1, round(share * data.shuffle_buffer))
        return TrainStream(
            manifest, training, data.batch_size, own_seed, shuffle_buffer=buffer, **where
        )

    stream = training_stream(manifests, [own.weight for own in sets], seed, build)
    loader = Loader(stream, data.workers, pin_memory=context.on_gpu)
    if data.held_out is None:
        return loader, None
    # Metrics of the frame contrast need all frames of a window, which is much memory a clip.
    batch = max(1, data.batch_size // 8) if held_out.frames == "all" else data.batch_size
    held_out_stream = EvalStream(Manifest.load(data.held_out), held_out, batch, seed, **where)
    return loader, Loader(held_out_stream, data.workers, pin_memory=context.on_gpu)


def build_transform(data: DataSettings) -> DeviceTransform:
    """Normalisation by the statistics of the training sets, and the augmentations."""
    statistics = (
        Statistics.of_mixture(data.train_sets) if data.statistics == "data" else Statistics()
    )
    augmentation = Augmentation(noise=data.noise, roll=data.roll, crop=data.crop, flip=data.flip)
    return DeviceTransform(statistics, augmentation, data.padding)
