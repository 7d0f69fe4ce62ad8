"""Evaluation of a sound separator on fixed lists of mixtures, beside oracle masks."""

from collections.abc import Mapping

import torch

from cavmae.datasets.mixtures.seed_stream import batch_seed
from cavmae.datasets.mixtures.sound_mixer import SoundMixer
from cavmae.finetune.separation.metrics import (
    ListRecord,
    list_metrics,
    list_record,
    output_records,
)
from cavmae.finetune.separation.model import SoundSeparator
from cavmae.finetune.separation.run import HELD_OUT_BATCH, HELD_OUT_SEED
from cavmae.finetune.separators.stft import oracle_masks, spectrum, wave

ORACLE = "oracle"


@torch.no_grad()
def evaluate_lists(
    model: SoundSeparator, mixers: Mapping[str, SoundMixer], mixtures: int, device: torch.device
) -> dict[str, float]:
    """Metrics of :func:`list_metrics` for every list, and for ``oracle`` ratio masks on it.

    Args:
        model: on the device, in evaluation mode.
        mixers: of each list, by name (:func:`cavmae.finetune.separation.run.held_out_mixers`).
        mixtures: of each list; the first ones are the same whatever their number.
        device: of the model.
    """
    records: list[ListRecord] = []
    for name, mixer in mixers.items():
        mixer.to(device)
        for number in range(mixtures // HELD_OUT_BATCH):
            sound = mixer.mix(batch_seed(HELD_OUT_SEED, number), HELD_OUT_BATCH)
            samples = sound.mixture.shape[-1]
            output = model(sound.mixture, sound.cues, sound.visible)
            records += output_records(name, output, sound, mixer.speech.pitches)
            masked = oracle_masks(spectrum(sound.mixture), spectrum(sound.voices))
            oracle = wave(masked, samples)
            records.append(list_record(f"{name}_{ORACLE}", oracle, sound, mixer.speech.pitches))
    return list_metrics(records)
