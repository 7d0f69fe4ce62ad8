"""`cavmae bench sound-steps`: its comparison with the CPU finds no difference of the CPU."""

from pathlib import Path

import soundfile
import torch

from cavmae.datasets.mixtures.speech_bank import load_or_build_bank
from cavmae.tools.benchmarks import sound_steps
from tests.datasets.mixtures.test_sound_mixer import syllables


def test_the_cpu_equals_itself(tmp_path: Path) -> None:
    speech = tmp_path / "speech"
    speech.mkdir()
    for number in range(4):
        wave = syllables(90 + 30 * number, 3.0, number)
        soundfile.write(speech / f"s{number}-0.wav", wave, 16_000)
    cache = tmp_path / "cache"
    bank = load_or_build_bank([speech], cache, 1)
    losses, gradients = sound_steps.parity("tiny", bank, torch.device("cpu"), sound_steps.EAGER)
    assert losses == 0 and gradients == 0
    assert sound_steps.model_settings_of("base").separator.name == "film-unet"
