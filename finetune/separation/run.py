"""A training run of the sound separator: the parts that its settings make."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from cavmae.common.errors import UsageError
from cavmae.datasets.mixtures.seed_stream import SeedStream
from cavmae.datasets.mixtures.sound_mixer import SoundMixer
from cavmae.datasets.mixtures.sound_settings import SoundSettings
from cavmae.datasets.mixtures.speaker_pitch import speaker_pitches
from cavmae.datasets.mixtures.speech_bank import RecordingBank, load_or_build_bank
from cavmae.datasets.stream.loader import Loader
from cavmae.finetune.initial_weights import report_unused_settings
from cavmae.finetune.separation.config import SoundSeparatorConfig
from cavmae.finetune.separation.model import SoundSeparator
from cavmae.finetune.separation.settings import (
    SeparationSettings,
    SoundDataSettings,
    SoundModelSettings,
)
from cavmae.finetune.separation.task import SeparationTask
from cavmae.finetune.separation.weights import load_sound
from cavmae.pretrain.config import as_base_config
from cavmae.pretrain.engine.run import RunContext, TrainingParts
from cavmae.pretrain.engine.run_length import RunLength
from cavmae.pretrain.factory import compile_blocks

log = logging.getLogger("cavmae")
HELD_OUT_SEED = 2026  # of lists of mixtures, the same in every run
HELD_OUT_BATCH = 8  # part of a list's definition: a seed makes a whole batch
CUES = {"clean": False, "spoiled": True}


def build(settings: SeparationSettings, context: RunContext) -> TrainingParts:
    """Task and seeds of this process.

    Raises:
        CavmaeError: settings that do not go together, recordings or weights that cannot be used.
    """
    data, loop, processes = settings.data, settings.loop, context.processes
    if not data.train:
        raise UsageError("Name the folders of speech to train on: --data.train '[FOLDER, ...]'.")
    check_graph(settings, context)
    banks = load_banks(data) if processes.is_main else None
    processes.any_process(True)  # the others find in the cache what the first one has decoded
    speech, noise, held_out_banks = banks or load_banks(data)
    check_speakers(data.held_out, held_out_banks, speech)
    log.info(
        "%.1f min of speech of %d speakers, %.1f min of noise.", speech.seconds / 60,
        len(speech.names), noise.seconds / 60 if noise else 0,
    )  # fmt: skip
    torch.manual_seed(loop.seed)
    model = build_sound_separator(settings.model)
    check_mixtures(model, settings.mix)
    if loop.compile != "off":
        compile_blocks(model.separator, loop.compile)
    mixer = SoundMixer(speech, noise, settings.mix)
    lists = held_out_mixers(data.held_out, held_out_banks, settings.mix)
    rank, count = processes.rank, processes.count
    stream = SeedStream(
        data.batch_size, loop.seed, rank=rank, world_size=count, parts=data.made_together
    )
    loader = Loader(stream)
    steps = RunLength.of(settings, stream.samples, count).steps
    task = SeparationTask(
        model, mixer, lists, settings.loss, (steps, loop.grad_accum_steps), loop.cuda_graph
    )
    held_out = None
    if lists:
        batches = data.held_out_mixtures // HELD_OUT_BATCH
        seeds = SeedStream(HELD_OUT_BATCH, HELD_OUT_SEED, tuple(lists), batches, rank, count)
        held_out = Loader(seeds)
    return TrainingParts(task, loader, held_out)


def check_graph(settings: SeparationSettings, context: RunContext) -> None:
    """Raises UsageError for a run whose step cannot be recorded as a CUDA graph."""
    if not settings.loop.cuda_graph:
        return
    if not context.on_gpu:
        raise UsageError("loop.cuda_graph is for a GPU: set it to false on the CPU.")
    if context.processes.count > 1:
        raise UsageError("loop.cuda_graph is for a run of one process: set it to false.")
    if settings.model.conditioning == "binding":
        raise UsageError(
            "loop.cuda_graph: under model.conditioning binding each step waits for an assignment "
            "by the CPU; set it to false."
        )


def held_out_mixers(
    folders: Sequence[str], banks: Sequence[RecordingBank], settings: SoundSettings
) -> dict[str, SoundMixer]:
    """Mixers of the lists ``FOLDER_clean`` and ``FOLDER_spoiled``: two voices all the time.

    The pitch of their speakers is measured, for metrics.
    """
    two = dataclasses.replace(settings, voices=2)
    measured = [bank._replace(pitches=speaker_pitches(bank)) for bank in banks]
    return {
        f"{Path(folder).name.replace('-', '_')}_{cue}": SoundMixer(bank, None, two.talking(spoiled))
        for folder, bank in zip(folders, measured, strict=True)
        for cue, spoiled in CUES.items()
    }


def build_sound_separator(settings: SoundModelSettings) -> SoundSeparator:
    """Sound separator, new or with the weights of a checkpoint.

    Raises:
        CavmaeError: weights are missing, damaged, or of another kind of model.
    """
    if settings.init_from is not None:
        initial = load_sound(settings.init_from)
        report_unused_settings(settings, initial.config)
        return initial
    model = SoundSeparator(as_base_config(settings, SoundSeparatorConfig))
    model.separator.load_pretrained()
    return model


def check_mixtures(model: SoundSeparator, settings: SoundSettings) -> None:
    """Raises UsageError for mixtures that are too short, or of too many voices, for the model."""
    config = model.config
    if config.conditioning == "binding" and settings.voices > config.queries:
        raise UsageError(
            f"mix.voices {settings.voices} is above model.queries {config.queries}: raise the "
            "latter, at best by 1 more for voices without a cue."
        )
    least = model.separator.least_samples
    if settings.samples < least:
        raise UsageError(
            f"mix.seconds {settings.seconds} is too short for the separator: at least "
            f"{least / 16_000:g}."
        )


def check_speakers(
    folders: Sequence[str], banks: Sequence[RecordingBank], speech: RecordingBank
) -> None:
    """Raises UsageError for held-out folders with speakers that are trained on."""
    for folder, bank in zip(folders, banks, strict=True):
        if both := sorted(set(bank.names) & set(speech.names)):
            raise UsageError(
                f"{len(both)} speakers of data.held_out {folder} are trained on, too "
                f"({', '.join(both[:3])}): name folders of other speakers."
            )


def load_banks(
    data: SoundDataSettings,
) -> tuple[RecordingBank, RecordingBank | None, list[RecordingBank]]:
    """Banks of speech, of noise, and of each held-out folder.

    Raises:
        CavmaeError: recordings cannot be used.
    """
    cache = Path(data.cache)

    def bank_of(folders: Sequence[str]) -> RecordingBank:
        return load_or_build_bank([Path(folder) for folder in folders], cache, data.workers)

    noise = bank_of(data.noise) if data.noise else None
    return bank_of(data.train), noise, [bank_of([folder]) for folder in data.held_out]
