"""Every registered separator and fusion fulfils its interface."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from cavmae.finetune.separators.base import MixtureFeatures, VoiceSeparator
from cavmae.finetune.separators.layers import at_frame_rate
from cavmae.finetune.separators.settings import FUSIONS, SEPARATORS
from cavmae.finetune.separators.stft import STFT, spectrum, wave

WIDTH, SAMPLES = 12, 64 * 160
STEP = 640  # samples of a frame of 40 ms


def variants() -> list[tuple[str, str | None]]:
    """Separators, each with every fusion that it takes."""
    pairs: list[tuple[str, str | None]] = []
    for name in SEPARATORS:
        fusions = [f.name for f in dataclasses.fields(SEPARATORS.options(name))]
        pairs += [(name, fusion) for fusion in (FUSIONS if "fusion" in fusions else [None])]
    return pairs


Build = Any


@pytest.fixture(params=variants(), ids=lambda pair: "-".join(filter(None, pair)))
def build(request: pytest.FixtureRequest) -> Build:
    name, fusion = request.param
    changes = {} if fusion is None else {"fusion": FUSIONS.options(fusion)()}

    def made(width: int = 8) -> VoiceSeparator:
        torch.manual_seed(0)
        built: VoiceSeparator = SEPARATORS.build(
            SEPARATORS.options(name)(width=width, **changes), WIDTH
        )
        for key, parameter in built.named_parameters():
            if key.endswith("fusion.attention.gate"):  # 0 before training: voices are the same
                torch.nn.init.ones_(parameter)
        return built

    return made


def estimate(separator: VoiceSeparator, mixture: Tensor, voices: Tensor) -> Tensor:
    return separator.estimate(separator.features(mixture), voices)


def voices_of(count: int, samples: int = SAMPLES, batch: int = 1) -> Tensor:
    return torch.randn(batch, count, samples // STEP, WIDTH)


def test_shapes_and_sum(build: Build) -> None:
    separator = build()
    mixture = torch.randn(2, SAMPLES)
    features = separator.features(mixture)
    assert features.latent.shape == (2, SAMPLES // STEP, separator.latent_width)
    activity = torch.rand(2, 4, SAMPLES // STEP) + 0.1
    spectra = separator.separate(mixture, features, voices_of(3, batch=2), activity)
    assert spectra.shape == (2, 4, 257, SAMPLES // 160 + 1)
    torch.testing.assert_close(wave(spectra, SAMPLES).sum(1), mixture, atol=1e-4, rtol=1e-3)


def test_a_voice_does_not_depend_on_the_others(build: Build) -> None:
    separator = build().eval()
    mixture, voices = torch.randn(1, SAMPLES), voices_of(3)
    together = estimate(separator, mixture, voices)
    close: Any = torch.testing.assert_close
    alone = estimate(separator, mixture, voices[:, 1:2])
    close(alone, together[:, 1:2], atol=1e-4, rtol=1e-3)
    order = [2, 0, 1]
    permuted = estimate(separator, mixture, voices[:, order])
    close(permuted, together[:, order], atol=1e-4, rtol=1e-3)


def test_different_voices_get_different_estimates_that_may_be_negative(build: Build) -> None:
    values = estimate(build(), torch.randn(1, SAMPLES), voices_of(2))
    assert not torch.allclose(values[:, 0], values[:, 1], atol=1e-4)
    assert values.min() < 0 < values.max()


def test_embeddings_count_at_their_time(build: Build) -> None:
    """The embedding of the last quarter has little influence on the first eighth (of 5 s)."""
    separator = build().eval()
    samples = 512 * 160
    mixture, voices = torch.randn(1, samples), voices_of(1, samples)
    other = voices.clone()
    other[:, :, 96:] += torch.randn(32, WIDTH)
    with torch.no_grad():
        change = estimate(separator, mixture, other) - estimate(separator, mixture, voices)
    by_time = change.abs().flatten(0, -2).amax(0)
    first, last = len(by_time) // 8, len(by_time) * 100 // 128
    assert by_time[last:].max() > 3 * by_time[:first].max()


def test_every_weight_gets_a_gradient(build: Build) -> None:
    """DDP waits for those that get none."""
    separator = build()
    features = separator.features(torch.randn(2, SAMPLES))
    values = separator.estimate(features, voices_of(2, batch=2))
    (values.square().mean() + features.latent.square().mean()).backward()
    for key, parameter in separator.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


def test_a_separator_learns_to_extract_what_its_embedding_says(build: Build) -> None:
    """With an embedding of 0 or 1 it learns to extract the lower or the upper of two tones."""
    separator = build(16)
    samples = max(16 * 160, separator.least_samples)
    time = torch.arange(samples) / 16_000
    tones = torch.stack([(2 * torch.pi * f * time).sin() for f in (500.0, 5000.0)])
    mixture = tones.sum(0).expand(2, -1)
    voices = torch.zeros(2, 1, samples // STEP, WIDTH)
    voices[1] = 1.0
    activity = torch.ones(2, 2, samples // STEP)
    optimizer = torch.optim.Adam(separator.parameters(), 1e-3)
    losses = []
    for _ in range(90):
        spectra = separator.separate(mixture, separator.features(mixture), voices, activity)
        loss = (wave(spectra[:, 0], samples) - tones).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        if losses[-1] < 0.35 * losses[0]:
            break
    assert losses[-1] < 0.35 * losses[0]


def test_silent_voices_give_the_mixture_to_the_residual(build: Build) -> None:
    separator = build()
    mixture = torch.randn(1, SAMPLES)
    activity = torch.zeros(1, 3, SAMPLES // STEP)
    activity[:, -1] = 1
    spectra = separator.separate(mixture, separator.features(mixture), voices_of(2), activity)
    assert spectra[:, :2].abs().max() == 0
    torch.testing.assert_close(wave(spectra, SAMPLES)[:, 2], mixture, atol=1e-4, rtol=1e-3)


def test_rates_meet() -> None:
    voices = torch.arange(4.0)[None, None, :, None]
    resampled = at_frame_rate(voices, 16)
    assert resampled.shape == (1, 1, 1, 16)
    assert resampled[0, 0, 0].diff().min() >= 0
    assert float(resampled[0, 0, 0, 6:10].mean()) == pytest.approx(1.5)


def test_unknown_separator() -> None:
    with pytest.raises(ValueError, match="there are unet, looking-to-listen, band-split"):
        SEPARATORS.options("wavenet")


@pytest.mark.parametrize("width", [0, 5000])
def test_widths_that_fit_no_memory_are_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"unet: width {width} is not from 1 to 4096"):
        SEPARATORS.options("unet")(width=width)


@pytest.mark.parametrize("gives", ["masks", "spectra", "waveforms"])
def test_what_a_separator_gives_comes_to_the_standard_spectra(gives: Any) -> None:
    """Halves of the mixture, given in three ways and at a resolution of its own."""

    class Halves(VoiceSeparator):
        stft = STFT(1024, 800, 200)
        latent_width = 1

        def encode_mixture(self, mixture: Tensor) -> MixtureFeatures:
            return MixtureFeatures(mixture.new_zeros(len(mixture), SAMPLES // STEP, 1), mixture)

        def estimate(
            self, features: MixtureFeatures, voices: Tensor, visible: Tensor | None = None
        ) -> Tensor:
            if gives == "waveforms":
                return features.map[:, None].expand(-1, voices.shape[1], -1) / 2
            if gives == "spectra":
                return features.map[:, None].expand(-1, voices.shape[1], -1, -1, -1) / 2
            n, _, bins, frames = features.map.shape
            masks = torch.zeros(n, voices.shape[1], 2, bins, frames)
            masks[:, :, 0] = 5 * torch.atanh(torch.tensor(0.1))  # bounded: 0.5
            return masks

        def features(self, mixture: Tensor) -> MixtureFeatures:
            if gives == "spectra":  # of the mixture itself, not compressed
                spectra = spectrum(mixture, self.stft)[:, :-1, :-1]
                return self.encode_mixture(torch.stack([spectra.real, spectra.imag], dim=1))
            return super().features(mixture)

    Halves.gives = gives
    Halves.takes = "waveform" if gives == "waveforms" else "spectrum"
    separator = Halves()
    time = torch.arange(SAMPLES) / 16_000
    mixture = ((2 * torch.pi * 440 * time).sin() + (2 * torch.pi * 1000 * time).sin())[None]
    activity = torch.tensor([1.0, 0.5, 1e-3])[None, :, None].expand(1, -1, SAMPLES // STEP)
    features = separator.features(mixture)
    voices = wave(separator.separate(mixture, features, voices_of(2), activity), SAMPLES)
    torch.testing.assert_close(voices.sum(1), mixture, atol=1e-4, rtol=1e-3)
    # Gates 1 and 0.5 leave a quarter of the mixture, shared out as 1 : 0.5 : 0.001.
    inner = slice(1600, -1600)
    for index, share in enumerate((0.5 + 0.25 / 1.501, 0.25 + 0.125 / 1.501)):
        expected = share * mixture[0, inner]
        torch.testing.assert_close(voices[0, index, inner], expected, atol=2e-3, rtol=1e-2)
