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
HIGH_PITCH = 165.0  # Hz: the trough between the median F0 of men (120 Hz) and of women (205 Hz)


class ListRecord(NamedTuple):
    """Metrics of mixtures of a list, a value for each voice of each mixture.

    Attributes:
        name: of the list.
        si_sdri, si_sdr: in dB.
        confusion: whether the separated voice is nearer to another person's voice.
        similar_pitch: whether the median F0 of all speakers of the mixture is on the same side of
            165 Hz. Recordings have no labels of sex; this is nearest to "same sex", since most men
            are below and most women above, while two men often differ by half an octave, so that
            a difference in semitones says less. None: pitches are not known.
        bound: whether the person got the output that is nearest to their voice; empty: voices are
            extracted by their cues.
    """

    name: str
    si_sdri: list[float]
    si_sdr: list[float]
    confusion: list[float]
    similar_pitch: list[bool | None]
    bound: list[bool]


def list_record(
    name: str,
    waves: Tensor,
    sound: SoundBatch,
    pitches: Tensor | None = None,
    bound: Tensor | None = None,
) -> ListRecord:
    """Metrics of separated voices.

    Args:
        name: of the list.
        waves: [N, K, S], separated.
        sound: the mixtures; all voices are audible.
        pitches: [speakers], median F0 in Hz of the speakers of the bank; None: not known.
        bound: bool [N, K]; see :class:`ListRecord`.
    """
    waves, voices = waves.float(), sound.voices.float()
    before = scale_invariant_signal_distortion_ratio(
        sound.mixture[:, None].expand_as(voices), voices
    )
    # [N, K, K]: each separated voice against the voice of each person.
    n, k, s = waves.shape
    pairs = scale_invariant_signal_distortion_ratio(
        waves[:, :, None].expand(n, k, k, s), voices[:, None].expand(n, k, k, s)
    )
    after = pairs.diagonal(dim1=1, dim2=2)
    similar: list[bool | None] = [None] * (n * k)
    if pitches is not None:
        high = pitches[sound.speakers] > HIGH_PITCH
        alike = (high == high[:, :1]).all(1, keepdim=True)
        similar = alike.expand(-1, k).flatten().tolist()
    return ListRecord(
        name,
        (after - before).flatten().tolist(),
        after.flatten().tolist(),
        (pairs.amax(2) > after).float().flatten().tolist(),
        similar,
        [] if bound is None else bound.flatten().tolist(),
    )


def output_records(
    name: str, output: SeparatedVoices, sound: SoundBatch, pitches: Tensor | None = None
) -> list[ListRecord]:
    """Records of an output, and of the list ``NAME_oracle_binding`` if cues bind its voices.

    Args:
        name: of the list.
        output: of the model for the mixtures.
        sound: the mixtures; all voices are audible.
        pitches: see :func:`list_record`.
    """
    samples, binding = sound.mixture.shape[-1], output.binding
    waves = wave(output.spectra[:, :-1], samples)
    if binding is None:
        return [list_record(name, waves, sound, pitches)]
    nearest = assign_to_voices(binding.outputs, sound)
    oracle = wave(bind(binding.outputs, binding.logits, nearest).spectra[:, :-1], samples)
    return [
        list_record(name, waves, sound, pitches, binding.assignment == nearest),
        list_record(f"{name}_{ORACLE_BINDING}", oracle, sound, pitches),
    ]


def list_metrics(records: Sequence[ListRecord]) -> dict[str, float]:
    """Metrics of each list, ``LIST_METRIC``, in the order of their appearance.

    ``si_sdri``, ``si_sdri_median``, ``si_sdri_similar_pitch`` and ``si_sdri_different_pitch`` (see
    :class:`ListRecord`; left out without such a pair), ``si_sdr``, ``confusion``, and
    ``binding_acc`` where cues bind voices.
    """
    metrics: dict[str, float] = {}
    for name in dict.fromkeys(record.name for record in records):
        own = [record for record in records if record.name == name]
        gains = [gain for record in own for gain in record.si_sdri]
        similar = [flag for record in own for flag in record.similar_pitch]
        metrics[f"{name}_si_sdri"] = statistics.fmean(gains)
        metrics[f"{name}_si_sdri_median"] = statistics.median(gains)
        for group, flag in (("similar", True), ("different", False)):
            values = [g for g, other in zip(gains, similar, strict=True) if other is flag]
            if values:
                metrics[f"{name}_si_sdri_{group}_pitch"] = statistics.fmean(values)
        metrics[f"{name}_si_sdr"] = statistics.fmean(v for r in own for v in r.si_sdr)
        metrics[f"{name}_confusion"] = statistics.fmean(v for r in own for v in r.confusion)
        if bound := [right for record in own for right in record.bound]:
            metrics[f"{name}_binding_acc"] = statistics.fmean(bound)
    return metrics
