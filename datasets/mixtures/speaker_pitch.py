"""Median pitch of the speakers of a bank, by which pairs of voices are told apart in metrics."""

import statistics
from itertools import starmap

import torch
from torch import Tensor

from cavmae.datasets.mixtures.speech_bank import RecordingBank
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.datasets.synthetic.voices import pitch_of

LONGEST = 10 * SAMPLE_RATE  # samples of a recording that are measured


def speaker_pitches(bank: RecordingBank) -> Tensor:
    """Median F0 of each speaker in Hz: float32 [speakers], in the order of ``bank.names``.

    The median over the recordings of :func:`cavmae.datasets.synthetic.voices.pitch_of`, of the
    first 10 s of each. Ten minutes of speech take a second.
    """

    def pitch(start: int, length: int) -> float:
        samples = bank.samples[start : start + min(length, LONGEST)]
        return pitch_of(samples.cpu().numpy().astype("float32"))

    recordings = list(starmap(pitch, zip(bank.starts.tolist(), bank.lengths.tolist(), strict=True)))
    by_speaker: list[list[float]] = [[] for _ in bank.names]
    for speaker, hertz in zip(bank.speakers.tolist(), recordings, strict=True):
        by_speaker[speaker].append(hertz)
    return torch.tensor([statistics.median(values) for values in by_speaker])
