"""Separation without cues: assignment of outputs to voices, and their binding to people."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from cavmae.datasets.mixtures.sound_mixer import SoundBatch
from cavmae.datasets.synthetic.articulation import at_frames, from_audio
from cavmae.datasets.synthetic.recordings import active_level
from cavmae.finetune.separation.binding import (
    MAX_SHIFT,
    Binding,
    SeparatedVoices,
    assign_to_cues,
    bind,
    correlations,
)
from cavmae.finetune.separation.config import SoundSeparatorConfig
from cavmae.finetune.separation.losses import (
    SILENCE_COST,
    assign_to_voices,
    binding_loss,
    separation_losses,
)
from cavmae.finetune.separation.metrics import list_metrics, output_records
from cavmae.finetune.separation.model import SoundSeparator
from cavmae.finetune.separation.settings import SoundLossSettings
from cavmae.finetune.separators.settings import BandSplitOptions
from cavmae.finetune.separators.stft import spectrum, wave
from cavmae.finetune.speaker.matcher import energies_db, sdr
from tests.datasets.mixtures.test_sound_mixer import syllables

SEPARATOR = BandSplitOptions(width=8, heads=2, shared_blocks=0, blocks=1)
CONFIG = SoundSeparatorConfig(SEPARATOR, width=8, cue_layers=1, conditioning="binding", queries=4)


def random_batch(n: int, people: int, silent: tuple[int, ...] = ()) -> SoundBatch:
    """Mixtures of white noises; in the first one, some people are silent."""
    voices = torch.randn(n, people, 6400)
    voices[0, list(silent)] = 0
    residual = 0.3 * torch.randn(n, 6400)
    mixture = voices.sum(1) + residual
    scale = mixture.square().mean(1, keepdim=True).sqrt()
    cues, visible = torch.rand(n, people, 10, 4), torch.ones(n, people, 10, dtype=torch.bool)
    speakers = torch.arange(people).expand(n, -1)
    mixture, voices, residual = mixture / scale, voices / scale[..., None], residual / scale
    return SoundBatch(mixture, voices, residual, cues, visible, speakers)


def noisy_outputs(batch: SoundBatch, queries: int) -> SeparatedVoices:
    """Outputs that each mix all voices, with a residual."""
    shares = torch.rand(len(batch.voices), queries, batch.voices.shape[1])
    outputs = spectrum(shares @ batch.voices)
    rest = spectrum(batch.mixture)[:, None] - outputs.sum(1, keepdim=True)
    return SeparatedVoices(torch.cat([outputs, rest], 1), torch.randn(len(shares), queries + 1, 10))


def bound(outputs: SeparatedVoices, assignment: Tensor) -> SeparatedVoices:
    n, k = assignment.shape
    logits = torch.randn(n, outputs.spectra.shape[1], n, k)
    return bind(outputs, logits, assignment)


def test_the_loss_is_the_least_of_all_permutations() -> None:
    torch.manual_seed(0)
    batch = random_batch(2, 2)
    outputs = noisy_outputs(batch, 3)
    settings = SoundLossSettings(activity_weight=0, spectrum_weight=0)
    permutations = list(itertools.permutations(range(3), 2))
    totals = []
    for pair in itertools.product(permutations, repeat=2):
        output = bound(outputs, torch.tensor(pair))._replace(binding=None)
        totals.append(separation_losses(output, batch, settings)[0])
    assert len(totals) == 36 and max(totals) > min(totals) + 0.1
    given = bound(outputs, torch.tensor([[2, 1], [0, 1]]))  # replaced, whatever the cues say
    total, parts = separation_losses(given, batch, settings)
    torch.testing.assert_close(total - parts["binding"], min(totals))


def test_a_silent_person_gets_the_quietest_output_that_is_left() -> None:
    torch.manual_seed(1)
    batch = random_batch(3, 3, silent=(1,))
    outputs = noisy_outputs(batch, 4)
    outputs.spectra[0, 2] *= 0.01
    waves = wave(outputs.spectra, 6400)
    assignment = assign_to_voices(outputs, batch)
    assert assignment[0, 1] == 2
    for row in range(3):

        def cost(person: int, output: int, row: int = row) -> float:
            if row == 0 and person == 1:
                energy = energies_db(waves[row : row + 1], batch.mixture[row : row + 1])
                return SILENCE_COST * float(energy[0, output])
            return -float(sdr(waves[row, output], batch.voices[row, person]))

        best = min(
            itertools.permutations(range(4), 3),
            key=lambda outputs: sum(cost(*pair) for pair in enumerate(outputs)),
        )
        assert tuple(assignment[row].tolist()) == best


def test_the_binding_loss_is_that_of_a_loop() -> None:
    torch.manual_seed(2)
    logits = torch.randn(2, 4, 2, 2)  # 3 outputs and none
    assignment = torch.tensor([[2, 0], [1, 2]])
    audible = torch.tensor([[True, False], [True, True]])
    by_voice, by_cue = [], []
    for n, k in itertools.product(range(2), repeat=2):
        output = int(assignment[n, k])
        if audible[n, k]:
            by_voice.append(logits[n, output].logsumexp((0, 1)) - logits[n, output, n, k])
        target = output if audible[n, k] else 3
        by_cue.append(logits[n, :, n, k].logsumexp(0) - logits[n, target, n, k])
    binding = Binding(SeparatedVoices(torch.zeros(0), torch.zeros(0)), logits, assignment)
    expected = torch.stack(by_voice).mean() + torch.stack(by_cue).mean()
    torch.testing.assert_close(binding_loss(binding, assignment, audible), expected)


def test_correlations_are_those_of_numpy_at_every_shift() -> None:
    rng = np.random.default_rng(0)
    articulation, cues = rng.standard_normal((2, 3, 40, 1)).astype(np.float32)
    cues[1, MAX_SHIFT:] = articulation[2, :-MAX_SHIFT]
    cues[2] = 0.5  # a mouth that does not move
    visible = torch.ones(3, 40, dtype=torch.bool)
    values = correlations(torch.from_numpy(articulation), torch.from_numpy(cues), visible)
    assert values.shape == (3, 3, 2 * MAX_SHIFT + 1)
    assert values[2, 1].argmax() == 2 * MAX_SHIFT and values[2, 1, -1] > 0.99
    assert not values[:, 2].any()
    early = np.corrcoef(articulation[0, 1:, 0], cues[0, :-1, 0])[0, 1]
    assert values[0, 0, MAX_SHIFT - 1] == pytest.approx(early, abs=2e-3)
    visible[0, 10:20] = False
    hidden = correlations(torch.from_numpy(articulation), torch.from_numpy(cues), visible)
    cues[0, 10:20] = 9.0
    again = correlations(torch.from_numpy(articulation), torch.from_numpy(cues), visible)
    assert torch.equal(hidden, again) and not torch.equal(hidden[:, 0], values[:, 0])


def test_an_output_is_bound_once_and_a_quiet_output_to_nobody() -> None:
    logits = torch.tensor([[[5.0, 4.0], [3.0, 0.0], [9.0, 9.0], [1.0, 1.0]]])  # 3 outputs and none
    audible = torch.tensor([[True, True, False]])
    assert assign_to_cues(logits, audible).tolist() == [[1, 0]]
    assert assign_to_cues(logits, audible & False).tolist() == [[3, 3]]


@pytest.mark.parametrize("none_logit", [-50.0, 50.0])
def test_permuted_cues_permute_the_voices_to_the_bit(none_logit: float) -> None:
    torch.manual_seed(3)
    model = SoundSeparator(CONFIG).eval()
    mixture, cues = torch.randn(2, 10240), torch.rand(2, 3, 16, 4)
    mixture /= mixture.square().mean(1, keepdim=True).sqrt()
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        model.binder.none_logit.fill_(none_logit)
        output, permuted = model(mixture, cues), model(mixture, cues[:, order])
    assert (output.binding.assignment < 4).all() == (none_logit < 0)
    for values, others in zip(output[:2], permuted[:2], strict=True):
        assert torch.equal(values[:, order], others[:, :3])
        assert torch.equal(values[:, 3], others[:, 3])
    torch.testing.assert_close(output.spectra.sum(1), spectrum(mixture), atol=1e-4, rtol=0)
    assert output.spectra[:, :3].any() == (none_logit < 0)


def test_separator_and_binder_learn_apart_and_every_weight_gets_a_gradient() -> None:
    torch.manual_seed(4)
    model = SoundSeparator(CONFIG)
    batch = random_batch(2, 2)
    total, parts = separation_losses(model(batch.mixture, batch.cues), batch, SoundLossSettings())
    parts["binding"].backward(retain_graph=True)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("binder."), name
    total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def talking_batch() -> SoundBatch:
    """Two mixtures of two people whose mouths move; the last person is not heard."""
    waves = [syllables(90 + 31 * number, 0.64, number) for number in range(4)]
    times = (np.arange(16) + 0.5) / 25
    cues = [at_frames(from_audio(wave, active_level(wave)), times) for wave in waves]
    voices = torch.from_numpy(np.stack(waves)).view(2, 2, 10240) / 0.1
    voices[1, 1] = 0
    mixture = voices.sum(1)
    scale = mixture.square().mean(1, keepdim=True).sqrt()
    mouths = torch.from_numpy(np.stack(cues)).view(2, 2, 16, 4)
    visible = torch.ones(2, 2, 16, dtype=torch.bool)
    speakers = torch.arange(4).view(2, 2)
    mixture, voices = mixture / scale, voices / scale[..., None]
    return SoundBatch(mixture, voices, 0 * mixture, mouths, visible, speakers)


def test_one_batch_is_learnt_with_the_right_voice_for_every_cue() -> None:
    batch = talking_batch()
    audible = torch.tensor([[True, True], [True, False]])
    torch.manual_seed(0)
    model = SoundSeparator(dataclasses.replace(CONFIG, width=16, queries=3))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(30):
        output = model(batch.mixture, batch.cues)
        optimizer.zero_grad()
        separation_losses(output, batch, SoundLossSettings())[0].backward()
        optimizer.step()
    with torch.no_grad():
        output = model.eval()(batch.mixture, batch.cues)
    assert output.binding is not None
    nearest = assign_to_voices(output.binding.outputs, batch)
    assert torch.equal(output.binding.assignment, torch.where(audible, nearest, 3))
    waves = wave(output.spectra[:, :-1], 10240)
    assert not waves[~audible].any()  # the silent person, though their mouth moves
    assert sdr(waves[audible], batch.voices[audible]).min() > 6

    def metrics(swapped: bool) -> dict[str, float]:
        talking = SoundBatch(*(part[:1] for part in batch))
        if swapped:
            talking = talking._replace(voices=talking.voices.flip(1))
        with torch.no_grad():
            output = model(talking.mixture, talking.cues)
        return list_metrics(output_records("x", output, talking))

    right, wrong = metrics(swapped=False), metrics(swapped=True)
    assert right["x_binding_acc"] == 1 and wrong["x_binding_acc"] == 0
    assert right["x_si_sdri"] == right["x_oracle_binding_si_sdri"] > 6
    assert wrong["x_oracle_binding_si_sdri"] == right["x_si_sdri"] > wrong["x_si_sdri"] + 6
