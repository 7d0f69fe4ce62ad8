"""Metrics of fixed lists on hand-made voices: confusion, and groups by pitch."""

import pytest
import torch

from cavmae.datasets.mixtures.sound_mixer import SoundBatch
from cavmae.finetune.separation.metrics import list_metrics, list_record

PITCHES = torch.tensor([110.0, 130.0, 220.0])


def test_confusion_and_groups_of_similar_and_different_pitch() -> None:
    torch.manual_seed(0)
    voices = torch.randn(2, 2, 8000)
    speakers = torch.tensor([[0, 1], [0, 2]])  # two low voices; a low and a high one
    mixture, empty = voices.sum(1), torch.zeros(2, 8000)
    visible = torch.ones(2, 2, 12, dtype=torch.bool)
    sound = SoundBatch(mixture, voices, empty, torch.zeros(2, 2, 12, 4), visible, speakers)
    noise = 0.1 * torch.randn(2, 2, 8000)  # an SI-SDR of 20 dB
    waves = torch.stack([voices[0], voices[1].flip(0)]) + noise
    metrics = list_metrics([list_record("a", waves, sound, PITCHES)])
    assert metrics["a_confusion"] == 0.5  # the voices of the second mixture are exchanged
    assert metrics["a_si_sdri_similar_pitch"] == pytest.approx(20, abs=1)
    assert metrics["a_si_sdri_different_pitch"] < -10
    mean = (metrics["a_si_sdri_similar_pitch"] + metrics["a_si_sdri_different_pitch"]) / 2
    assert metrics["a_si_sdri"] == pytest.approx(mean, abs=1e-4)
    unknown = list_metrics([list_record("a", waves, sound)])
    assert unknown == {k: v for k, v in metrics.items() if not k.endswith("_pitch")}
