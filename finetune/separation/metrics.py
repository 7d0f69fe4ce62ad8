"""Metrics of separated voices of fixed lists of mixtures.

Shapes: N mixtures, K voices, S samples.
"""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from cavmae.datasets.mixtures.sound_mixer import SoundBatch
from cavmae.finetune.separation.binding import SeparatedVoices, bind
from cavmae.finetune.separation.losses import assign_to_voices
from cavmae.finetune.separators.stft import wave

ORACLE_BINDING = "oracle_binding"


class Improvements(NamedTuple):
    """Metrics of each voice of a batch of a list.

    Attributes:
        name: of the list.
        gains: SI-SDR improvement in dB.
        ratios: SI-SDR in dB.
        bound: whether the person got the output that is nearest to their voice; empty: voices are
            extracted by their cues.
    """

    name: str
    gains: list[float]
    ratios: list[float]
    bound: list[bool]


def improvements(
    name: str, waves: Tensor, batch: SoundBatch, bound: Tensor | None = None
) -> Improvements:
    """SI-SDR improvement and SI-SDR of each voice in dB.

    Args:
        name: of the list.
        waves: [N, K, S], separated.
        batch: whose voices are all audible.
        bound: bool [N, K]; see :class:`Improvements`.
    """
    waves, voices = waves.float(), batch.voices.float()
    mixture = batch.mixture[:, None].expand_as(voices)
    after = scale_invariant_signal_distortion_ratio(waves, voices)
    before = scale_invariant_signal_distortion_ratio(mixture, voices)
    return Improvements(
        name=name,
        gains=(after - before).flatten().tolist(),
        ratios=after.flatten().tolist(),
        bound=[] if bound is None else bound.flatten().tolist(),
    )


def output_improvements(
    name: str, output: SeparatedVoices, batch: SoundBatch
) -> list[Improvements]:
    """Improvements of an output, and of the list ``NAME_oracle_binding`` if cues bind its voices.

    Args:
        name: of the list.
        output: of the model for the batch.
        batch: whose voices are all audible.
    """
    samples, binding = batch.mixture.shape[-1], output.binding
    waves = wave(output.spectra[:, :-1], samples)
    if binding is None:
        return [improvements(name, waves, batch)]
    nearest = assign_to_voices(binding.outputs, batch)
    oracle = bind(binding.outputs, binding.logits, nearest)
    return [
        improvements(name, waves, batch, binding.assignment == nearest),
        improvements(f"{name}_{ORACLE_BINDING}", wave(oracle.spectra[:, :-1], samples), batch),
    ]


def list_metrics(records: Sequence[Improvements]) -> dict[str, float]:
    """Mean and median of each list, by names in the order of their appearance.

    Where cues bind voices, ``NAME_binding_acc`` is the fraction of people who are bound rightly.
    """
    metrics: dict[str, float] = {}
    for name in dict.fromkeys(record.name for record in records):
        own = [record for record in records if record.name == name]
        gains = [gain for record in own for gain in record.gains]
        metrics[f"{name}_si_sdri"] = statistics.fmean(gains)
        metrics[f"{name}_si_sdri_median"] = statistics.median(gains)
        metrics[f"{name}_si_sdr"] = statistics.fmean(x for record in own for x in record.ratios)
        if bound := [right for record in own for right in record.bound]:
            metrics[f"{name}_binding_acc"] = statistics.fmean(bound)
    return metrics
