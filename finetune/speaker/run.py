"""A fine-tuning run of the speaker model: the parts that its settings make."""

import logging
from collections.abc import Sequence
from typing import Any

from cavmae.common.errors import UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.format.weighted_sets import check_mixable, load_manifests
from cavmae.datasets.mixtures.clip_pool import ClipPool
from cavmae.datasets.mixtures.scene_stream import ComposedStream
from cavmae.datasets.stream.features import FBANK_RATE
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.stream.shard_reader import Access
from cavmae.datasets.stream.transforms import Statistics
from cavmae.datasets.stream.weighted_stream import training_stream
from cavmae.finetune.speaker.factory import build_speaker, configure_compute, statistics_for
from cavmae.finetune.speaker.lips_task import LipsTask
from cavmae.finetune.speaker.model import SpeakerModel
from cavmae.finetune.speaker.scene_lists import listed_stream, shared_sources
from cavmae.finetune.speaker.settings import SpeakerSettings
from cavmae.finetune.speaker.task import SpeakerTask, class_number
from cavmae.pretrain.engine.run import RunContext, TrainingParts

log = logging.getLogger("cavmae")
REMEMBERED = "%d people or videos are both trained and measured on (%s): a model remembers them."


def build(settings: SpeakerSettings, context: RunContext) -> TrainingParts:
    """Task and scenes of this process.

    Raises:
        CavmaeError: settings that do not go together, data or weights that cannot be used.
    """
    data, compose, loop = settings.data, settings.compose, settings.loop
    sets = data.train_sets
    if not sets:
        raise UsageError("Name the shards to compose from: --data.train FOLDER.")
    fbank_frames = round(compose.seconds * FBANK_RATE)
    frame_size = compose.height, compose.width
    model = build_speaker(settings.model, frame_size, fbank_frames, loop.seed)
    configure_compute(model, loop)
    most_people = max(k + 1 for k, share in enumerate(compose.people) if share)
    if most_people > model.config.slots - 1:
        raise UsageError(
            f"compose.people: up to {most_people} people, but model.slots {model.config.slots} has "
            f"places for {model.config.slots - 1} beside the residual."
        )
    processes = context.processes
    options: dict[str, Any] = {
        "rank": processes.rank,
        "world_size": processes.count,
        "access": Access(
            data.verify, data.cache_dir, data.cache_gb, data.max_broken, context.quarantine
        ),
    }
    shape = model.config.motion_size, model.config.key_frames, data.batch_size
    manifests = load_manifests(sets)
    check_mixable(manifests, waveforms=True, motion=True)
    pools: list[ClipPool] = []

    def build_stream(manifest: Manifest, seed: int, _: float) -> ComposedStream:
        stream = ComposedStream(
            manifest, compose, *shape, clips=data.clips, exclude=data.exclude, seed=seed, **options
        )
        pools.append(stream.pool)
        return stream

    stream = training_stream(manifests, [own.weight for own in sets], loop.seed, build_stream)
    _check_added_classes(settings, model.config.classes, pools)
    loader = Loader(stream, data.workers, pin_memory=context.on_gpu)
    held_out = None
    if data.held_out is not None and data.held_out_shards is not None:
        held_out_stream = listed_stream(
            data.held_out, data.held_out_shards, model.config, data.batch_size, seed=loop.seed,
            **options,
        )  # fmt: skip
        held_out = Loader(held_out_stream, data.workers, pin_memory=context.on_gpu)
        known = sorted({n for p in pools for n in shared_sources(p, held_out_stream.pool)})
        if processes.is_main and known:
            log.warning(REMEMBERED, len(known), ", ".join(known[:3]))
    task = build_task(model, settings, statistics_for(settings.model, sets))
    return TrainingParts(task, loader, held_out)


def build_task(
    model: SpeakerModel, settings: SpeakerSettings, statistics: Statistics
) -> SpeakerTask:
    """Training task of a run: of the whole model, or of what ``model.freeze`` leaves."""
    chosen = settings.model
    # An encoder from scratch has no pretrained lower layers to protect.
    pretrained = chosen.encoder_from is not None or chosen.init_from is not None
    task_class = LipsTask if chosen.freeze == "masks" else SpeakerTask
    return task_class(
        model,
        settings.loss,
        statistics,
        frozen=chosen.train_encoder == "frozen",
        decay=chosen.layer_decay if pretrained else 1.0,
        sound_lr_scale=chosen.sound_lr_scale,
        seed=settings.loop.seed,
        freeze_voices=chosen.freeze == "voices",
    )


def _check_added_classes(
    settings: SpeakerSettings, classes: tuple[str, ...], pools: Sequence[ClipPool]
) -> None:
    """Check that each of ``model.add_classes`` is the hint of some scene.

    Raises:
        UsageError: hints are off, or no clip counts as a class.
    """
    added = settings.model.add_classes
    if added and settings.loss.hint_prob == 0:
        raise UsageError("loss.hint_prob 0: model.add_classes learn from hints; raise it.")
    clips = [clip for pool in pools for clip in pool.clips if not clip.background]
    numbers = {class_number(classes, clip.info.labels) for clip in clips}
    folders = ", ".join(pool.manifest.folder for pool in pools)
    for name in added:
        if classes.index(name) + 1 not in numbers:
            raise UsageError(
                f"model.add_classes: no clip of {folders} counts as {name!r}: label "
                f"clips with it, and with no class before it ({', '.join(classes)})."
            )
